"""The data owner's command line: `python -m federation.review --help`. Prints what `federation.site` knows."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from federation.errors import FederationError
from federation.settings import EnvoySettings, load_envoy
from federation.site import audit
from federation.site.letters import oddities
from federation.site.listing import readable, visible
from federation.site.review import Received, ReviewFolder, Submission, Verdict, verdict
from federation.site.view import parts
from federation.wire import archives
from federation.wire.metadata import SHORT

app = typer.Typer(
    help="For a site's owner: see what was submitted, approve or reject it, see what has left the site.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_Config = Annotated[Path, typer.Option(help="The site's envoy.yaml.")]
_Prefix = Annotated[str, typer.Argument(metavar="DIGEST", help="The digest, or its beginning, as `list` shows it.")]
_Reason = Annotated[str, typer.Option(help="Why; the notebook is told why its code was rejected.")]
_YAML = Path("envoy/envoy.yaml")


@app.command("list")
def _list(config: _Config = _YAML) -> None:
    """Show every submission that is kept, which of them are new, and what was decided on it."""
    settings = load_envoy(config)
    row = f"{{:<{SHORT}}}  {{:<16}}  {{:<3}}  {{:<24}}  {{}}".format
    typer.echo(row("digest", "received", "", "experiment", f"decision (accept: {settings.accept})"))
    for each in ReviewFolder(settings.review_folder).received():
        new = "" if each.shown or each.decision else "new"
        typer.echo(row(each.digest[:SHORT], _time(each.time), new, visible(each.experiment), _decided(each, settings)))


@app.command("show")
def _show(
    prefix: _Prefix,
    config: _Config = _YAML,
    code: Annotated[
        bool, typer.Option(help="Show every file whole, also where a difference would do, or it is as installed here.")
    ] = False,
) -> None:
    """Show a submission: its description, odd letters in it, and of its code what is neither approved nor installed."""
    settings = load_envoy(config)
    folder = ReviewFolder(settings.review_folder)
    about = folder.find(prefix)
    submission = folder.load(about.digest)
    last = folder.last_approved(besides=about.digest)
    by = f" by {visible(about.experimenter)}" if about.experimenter else ""
    typer.echo(f"digest      {about.digest}")
    typer.echo(f"experiment  {visible(about.experiment)}, received {_time(about.time)}, submitted{by}")
    typer.echo(f"decision    {_decided(about, settings)}")
    odd = _odd(submission)
    if odd:
        typer.echo(f"WARNING     {len(odd)} places with letters that may mislead a reader; they are listed at the end")
    approved = (last, folder.load(last.digest)) if last else None
    for part in parts(submission, approved, code):
        typer.echo("\n".join(("", f"=== {part.title}", *part.lines)))
    if odd:
        typer.echo("\n".join(("", "=== WARNING: letters that may mislead a reader", *map(visible, odd))))
    folder.note_shown(about.digest)


def _odd(submission: Submission) -> list[str]:
    """Odd letters in the files as they are read: of the description, the letters that its numbers stand for."""
    found = []
    for name, content in sorted(submission.files.items()):
        read = readable(content.decode()).encode(errors="backslashreplace") if name == archives.DESCRIPTION else content
        found += oddities(name, read)
    return found


@app.command("approve")
def _approve(prefix: _Prefix, reason: _Reason = "", config: _Config = _YAML) -> None:
    """Let this code run here, now and whenever it is submitted again."""
    _decide(config, prefix, True, reason)


@app.command("reject")
def _reject(prefix: _Prefix, reason: _Reason = "", config: _Config = _YAML) -> None:
    """Let this code not run here; also takes an approval back."""
    _decide(config, prefix, False, reason)


@app.command("audit")
def _audit(
    config: _Config = _YAML,
    last: Annotated[int, typer.Option(help="How many messages.", min=1)] = 20,
    every: Annotated[bool, typer.Option(help="Questions for work and signs of life, too.")] = False,
) -> None:
    """Show what has left this site, newest last."""
    path = load_envoy(config).audit
    if path is None:
        raise FederationError(f"{config} says `audit: null`: no log is kept")
    for line in audit.table(path, last, every):
        typer.echo(visible(line))


def _decide(config: Path, prefix: str, approved: bool, reason: str) -> None:
    folder = ReviewFolder(load_envoy(config).review_folder)
    digest = folder.find(prefix).digest
    folder.decide(digest, approved, reason)
    typer.echo(f"{'approved' if approved else 'rejected'}: {digest}")


def _decided(each: Received, settings: EnvoySettings) -> str:
    if each.decision is None:
        return {Verdict.RUN: "none; ran", Verdict.WAIT: "waits for you", Verdict.REFUSE: "none; refused"}[
            verdict(settings.accept, None)
        ]
    words = f"{'approved' if each.decision.approved else 'rejected'} {_time(each.decision.time)}"
    return f"{words}: {visible(each.decision.reason)}" if each.decision.reason else words


def _time(seconds: float) -> str:
    return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def main() -> None:
    """Run the command line; an error is one text on standard error and status 2."""
    try:
        app()
    except (FederationError, OSError) as error:
        typer.echo(f"review: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
