"""The command line: `python -m kws --help`, or `kws` inside the environment."""

from typing import Annotated

import typer

app = typer.Typer(help=__doc__, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.command()
def demo(
    change: Annotated[
        list[str] | None, typer.Option(help="A changed value of the experiment, e.g. training.rounds=5; repeatable.")
    ] = None,
    baselines: Annotated[
        bool, typer.Option(help="Also train on pooled data and at each site alone.", envvar="BASELINES")
    ] = True,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the time.")] = None,
) -> None:
    """Run a whole federation on this machine: director, two envoys, notebook, trained model."""
    from kws.config import ConfigError, ExperimentConfig, changed
    from kws.demo import run_demo

    try:
        changed(ExperimentConfig(), change or [])
        status = run_demo(change or [], baselines, name)
    except (ConfigError, ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        status = 2
    raise typer.Exit(status)


@app.command()
def add_site(
    name: Annotated[str, typer.Argument(help="The new site's name and folder, e.g. envoy_three.")] = "envoy_three",
) -> None:
    """Make the folder of one more site: its YAML and its start script."""
    from kws.sites import SiteError, add_site

    try:
        typer.echo(add_site(name))
    except SiteError as error:
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
    from shard_descriptors.sources import DOWNLOAD, resolve_corpus
    from shard_descriptors.speech_commands import describe

    try:
        root = resolve_corpus(DOWNLOAD if download else None)
        typer.echo(f"{root}\n{describe(root)}")
    except (ValueError, OSError) as error:
        typer.echo(f"kws: {error}", err=True)
        raise typer.Exit(2) from None
