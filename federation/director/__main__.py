"""`python -m federation.director`: a director from its `director.yaml`, and its operator's commands.

What `director/start_director.sh` runs, with or without a command.
"""

import asyncio
import logging
import signal
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from federation.director.commands import Request, Row, command
from federation.errors import FederationError
from federation.logs import configure_logging
from federation.settings import DirectorSettings, load_director

logger = logging.getLogger(__name__)

SITES_SHOWN = 4

app = typer.Typer(
    help="Start a director from `director.yaml`, where no command is given; what is given here wins over the file.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
_YAML = Path("director/director.yaml")
_Config = Annotated[Path | None, typer.Option(help=f"The director's settings.  [default: {_YAML}]", show_default=False)]
_State = Annotated[Path | None, typer.Option(help="The folder in which experiments are kept over restarts.")]
_Name = Annotated[str, typer.Argument(help="The experiment's name, as `list` shows it.")]


@app.callback(invoke_without_command=True)
def _start(
    context: typer.Context,
    config: _Config = None,
    host: Annotated[str | None, typer.Option(help="Name or address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one and prints it.")] = None,
    state: _State = None,
) -> None:
    context.obj = config, state
    if context.invoked_subcommand is None:
        configure_logging("director")
        settings = load_director(config or _YAML, listen_host=host, listen_port=port, state=state)
        asyncio.run(_until_stopped(settings))


@app.command("list")
def _list(context: typer.Context, config: _Config = None, state: _State = None) -> None:
    """Show every experiment: how it stands, its sites, its size on disk, and who submitted it when."""
    rows = [Row(**each) for each in _ask(context, config, state, Request("list"))]
    table = [("name", "status", "round", "sites", "size", "submitted", "by"), *map(_cells, rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(table[0]))]
    for line in table:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


@app.command("cancel")
def _cancel(context: typer.Context, name: _Name, config: _Config = None, state: _State = None) -> None:
    """End an experiment that waits or runs. Nothing is removed."""
    _say(_ask(context, config, state, Request("cancel", name)))


@app.command("remove")
def _remove(context: typer.Context, name: _Name, config: _Config = None, state: _State = None) -> None:
    """Remove an experiment that is over, with its models, or a folder that cannot be read. For good."""
    _say(_ask(context, config, state, Request("remove", name)))


@app.command("prune")
def _prune(
    context: typer.Context,
    keep: Annotated[int, typer.Option(min=0, help="How many experiments that are over stay: the newest.")],
    config: _Config = None,
    state: _State = None,
) -> None:
    """Remove the oldest of the experiments that are over, with their models. For good."""
    _say(_ask(context, config, state, Request("prune", keep=keep)))


def _ask(context: typer.Context, config: Path | None, state: Path | None, request: Request) -> list[Any]:
    given_config, given_state = context.obj  # options may stand before the command, too
    path = config or given_config or _YAML
    settings = load_director(path, state=state or given_state)
    if settings.state is None:
        raise FederationError(f"{path} names no `state`: this director keeps nothing, and takes no commands")
    return command(settings.state, request)


def _say(lines: list[str]) -> None:
    for line in lines:
        typer.echo(line)


def _cells(row: Row) -> tuple[str, ...]:
    rounds = "" if row.round is None else f"{row.round}/{'?' if row.rounds is None else row.rounds}"
    submitted = f"{datetime.fromtimestamp(row.submitted):%Y-%m-%d %H:%M}" if row.submitted else ""
    size = f"{row.size / 1e6:.1f} MB"
    return tuple(map(_visible, (row.name, row.status, rounds, _sites(row.sites), size, submitted, row.sender)))


def _sites(names: Sequence[str]) -> str:
    """Their names, or the first few and how many there are."""
    shown = sorted(names)[:SITES_SHOWN]
    return ",".join(shown) + (f",... ({len(names)})" if len(shown) < len(names) else "")


def _visible(text: str) -> str:
    """Without what could rewrite a terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


async def _until_stopped(settings: DirectorSettings) -> None:
    from federation.director.server import serve  # the engine takes seconds, and a command has no need of it

    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await serve(settings)
    logger.info("stopped")


def main() -> None:
    """Run the command line; an error is one text on standard error and status 1."""
    try:
        app(prog_name="start_director.sh")
    except (FederationError, OSError) as error:
        typer.echo(f"director: {error}", err=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
