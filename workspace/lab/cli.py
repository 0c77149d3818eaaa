"""The command line: `kws --help` inside the environment, or `python -m lab`."""

from json import dumps
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    change: Annotated[
        list[str] | None, typer.Option(help="A changed value of the experiment, e.g. training.rounds=5; repeatable.")
    ] = None,
    baselines: Annotated[
        str,
        typer.Option(
            help="What to compare with: pooled, alone, or both (pooled,alone; 1); 0: nothing.", envvar="BASELINES"
        ),
    ] = "1",
    no_baselines: Annotated[bool, typer.Option("--no-baselines", help="The same as --baselines 0.")] = False,
    budget: Annotated[
        str | None,
        typer.Option(
            help="How much a baseline is trained: as many epochs as the sites, or as many steps as one of them.",
            show_default="epochs; steps with training.local_steps",
        ),
    ] = None,
    seeds: Annotated[
        str,
        typer.Option(help="Seeds, 0,1,2 say: an experiment each; mean and spread.", show_default="the experiment's"),
    ] = "",
    simulate: Annotated[int, typer.Option(help="Rounds to simulate first, in the notebook's process.")] = 0,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the time.")] = None,
    model: Annotated[
        str | None,
        typer.Option(help="tiny, a model on the Hugging Face hub, or a folder with one.", envvar="MODEL"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(
            help="How it is trained: tiny, superb_ks, hf_finetune or adapter_hubert.",
            envvar="PRESET",
            show_default="tiny for tiny, else superb_ks",
        ),
    ] = None,
) -> None:
    """Run a whole federation on this machine: director, two envoys, notebook, trained model."""
    from lab.asked import Asked, names_of, numbers_of
    from lab.demo import run_demo
    from lab.presets import asked_for

    try:
        if model and (folder := Path(model).expanduser()).is_dir():
            model = str(folder.resolve())  # the sites start in folders of their own
        asked_for(preset, model, change or [])
        compared = () if no_baselines else names_of(baselines)
        asked = Asked(preset, model, change or (), compared, budget, numbers_of(seeds), simulate)
        status = run_demo(asked, name)
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        status = 2
    raise typer.Exit(status)


@app.command()
def run(
    record: Annotated[Path, typer.Argument(help="The config.json of a run, runs/NAME/config.json.", dir_okay=False)],
    name: Annotated[str | None, typer.Option(help="Name of the new run; default: the time.")] = None,
) -> None:
    """Run again what a run has recorded: the same sites, data and settings; says what is different here."""
    from lab.demo import run_demo
    from lab.rerun import repeat

    try:
        again = repeat(record)
        typer.echo(f"repeats     {record.resolve()}")
        typer.echo("different   " + ("\n            ".join(again.different) or "nothing that the record knows of"))
        status = run_demo(again.asked, name, again.sites, again.data_path)
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        status = 2
    raise typer.Exit(status)


@app.command()
def add_site(
    name: Annotated[str, typer.Argument(help="The new site's name and folder, e.g. envoy_three.")] = "envoy_three",
) -> None:
    """Make the folder of one more site: its YAML and its start script."""
    from lab.sites import SiteError, add_site

    try:
        typer.echo(add_site(name))
    except SiteError as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def partition(
    scheme: Annotated[
        str | None,
        typer.Option(
            help="speakers, clients, quantity, column, dirichlet, pathological, iid or own.", show_default="speakers"
        ),
    ] = None,
    shards: Annotated[
        int | None, typer.Option(help="Number of shards.", show_default="2, or what the data says")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the partition.", show_default="0")] = None,
    option: Annotated[
        list[str] | None, typer.Option(help="A setting of the scheme, e.g. alpha=0.3; repeatable.")
    ] = None,
    site: Annotated[
        Path | None, typer.Option(help="An envoy.yaml whose settings hold unless others are given.", dir_okay=False)
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Where recordings come from.", show_default="speech_commands")
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Where they lie; default for speech_commands: $DATA, else synthetic speech.")
    ] = None,
    setting: Annotated[list[str] | None, typer.Option(help="A setting of the source; repeatable.")] = None,
    split: Annotated[str, typer.Option(help="The split to show: train, validation or test.")] = "train",
    json: Annotated[bool, typer.Option("--json", help="Print JSON, all splits.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Also draw it, into this file.", dir_okay=False)] = None,
) -> None:
    """Show who would hold what: utterances, speakers and labels of each shard, and how much the shards differ."""
    from lab.partitions import as_text, make_preview, scheme_settings, values

    try:
        chosen = scheme_settings(scheme, option or [])
        shown = make_preview(site, chosen, source=source, data_path=data, of=shards, seed=seed, **values(setting or []))
        typer.echo(dumps(shown, indent=2) if json else as_text(shown, split))
        if plot:
            from shard_descriptors.partition.report import plot_shards

            plot_shards(shown["shards"], split)[0].savefig(plot)
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def corpus(
    download: Annotated[
        bool,
        typer.Option(help="Get the official archives first, as DATA=download does: 1.6 GB, and 4 GB of disk."),
    ] = False,
) -> None:
    """Print where the corpus lies and what it holds; synthetic speech, or tarballs in DATA, are made ready first."""
    from shard_descriptors.sources.registry import DOWNLOAD, resolve_corpus
    from shard_descriptors.sources.speech_commands import describe

    try:
        root = resolve_corpus(DOWNLOAD if download else None)
        typer.echo(f"{root}\n{describe(root)}")
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None


Model = Annotated[
    str, typer.Argument(help="A saved model's folder, a run, an exported model, or a name on the Hugging Face hub.")
]
TrustCode = Annotated[bool, typer.Option("--trust-code", help="Run Python code that lies beside the weights.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Out = Annotated[Path, typer.Argument(help="The folder to write into; it is made.", file_okay=False)]
Source = Annotated[str, typer.Option(help="Where recordings come from.")]
Settings = Annotated[list[str] | None, typer.Option(help="A setting of the source; repeatable.")]


@app.command()
def predict(
    model: Model,
    paths: Annotated[
        list[str], typer.Argument(metavar="PATH...", help="Recordings, folders of them, or - for a stream of samples.")
    ],
    json: AsJson = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    threshold: Annotated[
        float, typer.Option(help="The least score of an answer that counts as sure.", min=0, max=1)
    ] = 0.5,
    hop: Annotated[
        float, typer.Option(help="Seconds between the windows of a long recording.", min=0.01, max=3600)
    ] = 0.25,
    batch_size: Annotated[int, typer.Option(help="Windows that the model hears at a time.", min=1)] = 64,
    rate: Annotated[int, typer.Option(help="Of -: samples a second.", min=1000, max=1_000_000)] = 16_000,
    samples: Annotated[str, typer.Option(help="Of -: s16 or f32, little-endian, one channel.")] = "s16",
    trust_code: TrustCode = False,
) -> None:
    """Say what is spoken in recordings. Exit status 1: some could not be used, and are named."""
    import sys

    from lab.product.commands import predict_files, predict_stream
    from lab.product.recordings import SAMPLES
    from lab.product.spotter import load

    form = "json" if json else "csv" if csv else "table"
    try:
        if samples not in SAMPLES:
            raise ValueError(f"--samples is {samples!r}; allowed: {', '.join(SAMPLES)}")
        if json and csv:
            raise ValueError("--json and --csv exclude each other")
        if "-" in paths:
            if paths != ["-"] or csv:
                raise ValueError("- stands alone, as a table or as --json")
            heard = predict_stream(load(model, trust_code), sys.stdin.buffer, samples, rate, form, threshold, hop)
            for line in heard:
                print(line, flush=True)
            return
        text, failed = predict_files(load(model, trust_code), paths, form, threshold, hop, batch_size)
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(text)
    if failed:
        typer.echo(f"kws: {failed} of the recordings cannot be used", err=True)
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Model,
    data: Annotated[
        str | None,
        typer.Option(help="Where recordings lie; default for speech_commands: $DATA, else synthetic speech."),
    ] = None,
    source: Annotated[str, typer.Option(help="Where recordings come from.")] = "speech_commands",
    setting: Annotated[list[str] | None, typer.Option(help="A setting of the source; repeatable.")] = None,
    split: Annotated[str, typer.Option(help="train, validation or test.")] = "test",
    by: Annotated[
        list[str] | None, typer.Option(help="Also by this column: speaker, label, accent...; repeatable.")
    ] = None,
    json: AsJson = False,
    plots: Annotated[Path | None, typer.Option(help="Draw into this folder.", file_okay=False)] = None,
    mistakes: Annotated[
        Path | None, typer.Option(help="Write the worst mistakes, to listen to, into this HTML page.", dir_okay=False)
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Clips that the model hears at a time.", min=1)] = 64,
    trust_code: TrustCode = False,
) -> None:
    """Measure a model on recordings whose labels are known: every metric, with intervals over speakers."""
    import sys

    from tqdm import tqdm

    from lab.partitions import values
    from lab.product import evaluate as measuring
    from lab.product.commands import write_text
    from lab.product.spotter import load
    from shard_descriptors.sources.registry import open_corpus

    try:
        spotter = load(model, trust_code)
        found = open_corpus(source, data, **values(setting or []))
        total = sum(each.split == split for each in found.utterances)
        with tqdm(total=total, unit="clip", disable=None, file=sys.stderr, leave=False) as bar:
            measured = measuring.evaluate(spotter, found, split, batch_size, bar.update)
        typer.echo(dumps(measured.as_values(by or []), indent=2) if json else measuring.as_text(measured, by or []))
        if plots:
            measured.save_plots(plots)
        if mistakes:
            write_text(mistakes, measuring.mistakes_page(measured))
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def export(
    model: Model,
    out: Out,
    data: Annotated[
        str | None, typer.Option(help="Also check on test clips of a corpus: where it lies.", show_default="noise only")
    ] = None,
    source: Source = "speech_commands",
    setting: Settings = None,
    trust_code: TrustCode = False,
) -> None:
    """Write a saved model as ONNX that hears raw waveforms, with its labels and an example, checked against PyTorch."""
    from lab.partitions import values
    from lab.product.export import export_checked

    try:
        typer.echo(export_checked(model, out, source, data, values(setting or []), trust_code).text())
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None


@app.command()
def quantise(
    model: Model,
    out: Out,
    data: Annotated[
        str | None, typer.Option(help="Where the corpus lies; default: $DATA, else synthetic speech.")
    ] = None,
    source: Source = "speech_commands",
    setting: Settings = None,
    choose: Annotated[
        str, typer.Option(help="Which variant to write: accuracy, f1 or iou; then fastest, smallest or leanest.")
    ] = "f1 within 0.5 points, then fastest",
    variant: Annotated[
        list[str] | None, typer.Option(help="Try only this one; repeatable.", show_default="all")
    ] = None,
    threads: Annotated[int, typer.Option(help="Cores for every measurement.")] = 1,
    seconds: Annotated[float, typer.Option(help="How long each size of batch is timed.")] = 3.0,
    clips: Annotated[int | None, typer.Option(help="Test clips at most.", show_default="all")] = None,
    calibrate: Annotated[int, typer.Option(help="Train clips that ranges are taken from.")] = 64,
    json: AsJson = False,
    trust_code: TrustCode = False,
) -> None:
    """Make smaller and faster variants of a saved model, measure them, and write the one that is chosen."""
    from lab.partitions import values
    from lab.product.quantise import Effort, quantise
    from shard_descriptors.sources.registry import open_corpus

    try:
        corpus = open_corpus(source, data, **values(setting or []))
        effort = Effort(threads, seconds, clips, calibrate)
        found = quantise(model, out, corpus, choose, effort, variant, trust_code)
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo(dumps(found.to_dict(), indent=2) if json else found.text())
