"""How fast and how heavy a federation is, beside others and beside the limit; see docs/benchmarks.md."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import algorithms
import crowd
import data_layer
import measure
import report
import rules_cost
import scaling
import training_loops
import typer
from addition import Job, JobError
from sizes import shapes

HOUSE = Path(__file__).resolve().parents[1]
RESULTS = HOUSE / "benchmarks" / "results"
SMALL = "16"
ALL, LARGE = "floor,ours,flower,nvflare,openfl", "floor,ours,flower,nvflare"

Size = Annotated[str, typer.Option(help='"base" (378 MB), "tiny" (0.5 MB), or megabytes')]
Systems = Annotated[str, typer.Option(help=f"which systems, with commas: {ALL}")]
Rounds = Annotated[int, typer.Option(min=3, help="rounds; the first two models are not timed")]

app = typer.Typer(add_completion=False, help=__doc__, no_args_is_help=True, pretty_exceptions_enable=False)


@app.command()
def one(system: str, size: Size = "tiny", rounds: Rounds = 7, sites: int = 2) -> None:
    """Measure one system, and print its figures as JSON."""
    figures = measure.measure(system, Job(shapes(size), sites, rounds, str(RESULTS / system)))
    print(json.dumps(asdict(figures) | {"seconds": figures.seconds, "copies": figures.copies}, indent=2))


@app.command()
def compare(size: Size = "base", rounds: Rounds = 7, systems: Systems = LARGE, small_systems: Systems = ALL) -> None:
    """Have every system do the same job, a small one first, and print what it cost."""
    runs: dict[str, dict[str, measure.Figures]] = {"small": {}, "large": {}}
    for which, names, megabytes in (("small", small_systems, SMALL), ("large", systems, size)):
        for system in names.split(","):
            say(f"{system}, {megabytes} MB" if megabytes != "base" else f"{system}, wav2vec2-base")
            job = Job(shapes(megabytes), 2, rounds, str(RESULTS / system))
            runs[which][system] = measure.measure(system, job)
    keep("compare", {which: {name: asdict(run) for name, run in each.items()} for which, each in runs.items()})
    print(report.comparison(runs["small"], runs["large"]), flush=True)
    if "ours" in runs["small"] and "ours" in runs["large"]:
        print(f"\n{report.goals(runs['small'], runs['large'])}", flush=True)


@app.command("scaling")
def scale(rounds: Rounds = 7) -> None:
    """Time rounds of this project's federation over bytes and over sites, and draw docs/scaling.png."""
    say("bytes")
    lines = {name: scaling.with_bytes(name, RESULTS / name, rounds) for name in ("ours", "floor")}
    say("sites")
    sites = scaling.with_sites(RESULTS / "ours", rounds)
    say("the director's memory over sites")
    model_bytes, peaks = scaling.director_memory(RESULTS / "ours")
    kept = {"bytes": {name: asdict(line) for name, line in lines.items()}, "sites": asdict(sites), "director": peaks}
    keep("scaling", kept)
    scaling.plot({report.TITLES[name]: line for name, line in lines.items()}, sites, HOUSE / "docs" / "scaling.png")
    print(f"{report.scaling(lines, sites)}\n\n{report.director_memory(model_bytes, peaks)}", flush=True)


@app.command("sites")
def crowds(
    rounds: Annotated[int, typer.Option(min=3, help="rounds; the first is not timed")] = 4,
    most: Annotated[int, typer.Option(min=10, help="the largest number of sites")] = max(crowd.SITES),
) -> None:
    """Have a director serve 10 to 1,000 light sites, and draw docs/sites.png."""
    counts = [count for count in crowd.SITES if count <= most]
    say(f"{', '.join(map(str, counts))} sites")
    costs = crowd.with_crowds(RESULTS / "sites", rounds, counts)
    keep("sites", [asdict(each) | {"milliseconds": each.milliseconds} for each in costs])
    if counts[-1] == max(crowd.SITES):
        crowd.plot(costs, HOUSE / "docs" / "sites.png")
    print(report.crowd(costs), flush=True)


@app.command()
def clock(rounds: Rounds = 10) -> None:
    """Time what a federation does when there is nothing to do."""
    say("clock")
    measured = scaling.clock(RESULTS / "clock", rounds)
    keep("clock", measured)
    print(report.clock(measured), flush=True)


@app.command()
def data(
    corpus: Annotated[
        Path | None,
        typer.Option(help="recordings in the official layout; none: synthetic speech of its size, made once (2.3 GB)"),
    ] = None,
) -> None:
    """Time listing, decoding, packing and reading of recordings, and their share of an epoch of training."""
    say("data")
    folder = corpus.resolve() if corpus else data_layer.full_corpus()
    figures = data_layer.measure_data(folder, RESULTS / "data")
    keep("data", figures)
    print(report.data(figures), flush=True)


@app.command()
def training(
    size: Annotated[str, typer.Option(help='"base" (wav2vec2-base, random weights) or "tiny"')] = "base",
    corpus: Annotated[
        Path | None, typer.Option(help="recordings in the official layout to train on; none: tones")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="steps that are timed as one")] = 5,
    threads: Annotated[int | None, typer.Option(min=1, help="of every loop", show_default="all cores")] = None,
) -> None:
    """Train by this project, by a bare loop and by the Trainer of Transformers, and print what each costs."""
    if size not in training_loops.BATCH:
        raise ValueError(f"size {size!r} is none; allowed: {', '.join(training_loops.BATCH)}")
    say(f"training of {size}")
    folder = str(corpus.resolve()) if corpus else ""
    figures = training_loops.measure_training(size, folder, steps, threads or os.cpu_count() or 1)
    keep(f"training-{size}", figures)
    print(report.training(figures), flush=True)


@app.command()
def rules(
    size: Size = "base",
    updates: Annotated[str, typer.Option(help="how many, with commas")] = "2,10",
    repeats: Annotated[int, typer.Option(min=1, help="how often each rule is timed")] = 3,
) -> None:
    """Time a round of every rule at the director beside the mean's, on files."""
    counts = [int(each) for each in updates.split(",")]
    measured = rules_cost.measure_rules(size, counts, RESULTS / "rules", repeats, say)
    keep(f"rules-{size}", measured)
    columns = (text for count in counts for text in (f"{count} updates, s", "times the mean", "… of the CPU"))
    head = ["rule", *columns, "wanted"]
    print(f"{measured['machine']}, updates of {size}\n\n{report.table(head, rules_cost.figures(measured))}", flush=True)


@app.command("algorithms")
def compare_algorithms(
    corpus: Annotated[Path, typer.Option(help="recordings in the official layout", envvar="DATA")],
    encoder: Annotated[Path, typer.Option(help="a folder with a pretrained model")],
    rounds: Annotated[int, typer.Option(min=1)] = algorithms.ROUNDS,
    seeds: Annotated[int, typer.Option(min=1, help="how many")] = len(algorithms.SEEDS),
) -> None:
    """Train a probe by every algorithm on several partitions, and by rules with one site of five that sends garbage.

    Goes on where it was ended.
    """
    kept, chosen = RESULTS / "algorithms.json", range(seeds)
    found = algorithms.measure_algorithms(corpus.resolve(), encoder.resolve(), kept, rounds, chosen, say)
    honest, spoiled = algorithms.tables(found["cells"], chosen)
    head = ["", *(f"{name}{what}" for name in algorithms.PARTITIONS for what in ("", ", macro-F1"))]
    print(f"{report.table(head, honest)}\n\n{report.table(['', *algorithms.GARBAGE], spoiled)}", flush=True)


@app.command("all")
def everything(size: Size = "base") -> None:
    """All of it: fifty minutes on two cores."""
    for which, steps in (("tiny", 20), ("base", 3)):
        training(which, steps=steps)
        print()
    data()
    print()
    clock()
    print()
    scale()
    print()
    crowds()
    print()
    compare(size)


@app.command(hidden=True)
def inside_system(system: str, private: bool = False) -> None:
    """Run one system in this process's namespaces."""
    prepare(private)
    measure.inside_system(system, private)


@app.command(hidden=True)
def inside_clock(private: bool = False) -> None:
    """Run the clock's experiments in this process's namespaces."""
    prepare(private)
    scaling.inside_clock()


def prepare(private: bool) -> None:
    """Make new namespaces usable."""
    if private:
        measure.loopback_up()


def keep(name: str, figures: object) -> None:
    """Write figures to benchmarks/results/."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(figures, indent=2))


def say(what: str) -> None:
    """Tell on standard error what is measured now; standard output gets only tables."""
    print(f"measuring {what} ...", file=sys.stderr, flush=True)


def main() -> None:
    """The command line."""
    try:
        app()
    except (JobError, ValueError) as error:
        sys.exit(f"benchmarks: {error}")
