"""The certificate authority's command line: `python -m federation.certificates --help`. Says what `authority` did."""

from pathlib import Path
from typing import Annotated

import typer

from federation.authority import (
    COMMAND,
    CRL,
    DEFAULT_DAYS,
    ROOT_KEY,
    Issued,
    Role,
    handover,
    init,
    issue,
    issued,
    renew,
    revoke,
)
from federation.errors import FederationError

app = typer.Typer(
    help="Certificates and roles for a federation on several machines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
_Folder = Annotated[Path, typer.Argument(help="The authority's folder.")]
_Name = Annotated[str, typer.Argument(help="The holder's name; for an envoy, the site's name in envoy.yaml.")]
_Days = Annotated[int, typer.Option(help="How long the certificate is valid.")]


@app.command("init")
def _init(folder: _Folder) -> None:
    """Make a certificate authority in a new folder."""
    init(folder)
    typer.echo(
        f"{folder} is a certificate authority now. Keep the folder on one machine, best one without a network, and\n"
        f"keep a copy. {ROOT_KEY} goes nowhere: whoever has it can be anyone in this federation.\n"
        f"Next: {COMMAND} issue {folder} director director --host HOST"
    )


@app.command("issue")
def _issue(
    folder: _Folder,
    role: Annotated[str, typer.Argument(help=f"One of: {', '.join(Role)}.")],
    name: _Name,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address under which others reach a director; repeatable.")
    ] = None,
    days: _Days = DEFAULT_DAYS,
) -> None:
    """Make a key and a certificate for a director, an envoy or an experimenter."""
    typer.echo(_what_to_copy(folder, issue(folder, role, name, host or (), days)))


@app.command("renew")
def _renew(folder: _Folder, name: _Name, days: _Days = DEFAULT_DAYS) -> None:
    """Replace a key and certificate before the old one expires, or after it was revoked."""
    typer.echo(_what_to_copy(folder, renew(folder, name, days)))
    typer.echo("Then start its process again: the files are read at the start.")


@app.command("revoke")
def _revoke(folder: _Folder, name: _Name) -> None:
    """Make the director refuse every certificate of a name."""
    revoked = revoke(folder, name)
    for each in revoked:
        typer.echo(f"revoked: {each.name}, role {each.role}, serial {each.serial:x}")
    typer.echo(
        f"Copy {folder / CRL} to the director's machine, over the one there; the director reads it at the next call."
    )
    if revoked[0].role == Role.DIRECTOR:
        typer.echo("Envoys and notebooks read no revocation list: stop that director, and make a new authority.")


@app.command("list")
def _list(folder: _Folder) -> None:
    """Show every certificate that was issued."""
    row = "{:<20} {:<13} {:<40} {:<12} {}".format
    typer.echo(row("name", "role", "serial", "valid until", "revoked"))
    for each in issued(folder):
        revoked = "yes" if each.revoked else "no"
        typer.echo(row(each.name, each.role, f"{each.serial:x}", f"{each.valid_until:%Y-%m-%d}", revoked))


def _what_to_copy(folder: Path, made: Issued) -> str:
    """What was made, and what to do with it."""
    given = handover(folder, made)
    return "\n".join(
        (
            f"{made.name}: role {made.role}, serial {made.serial:x}, valid until {made.valid_until:%Y-%m-%d}",
            f"Copy to the machine of this {made.role}, into {given.into}:",
            *(f"  {file}" for file in given.files),
            f"and say {given.where}:",
            *(f"  {line}" for line in given.lines),
            f"{made.name}.key goes to no other machine, {ROOT_KEY} to none at all.",
        )
    )


def main() -> None:
    """Run the command line; an error is one text on standard error and status 2."""
    try:
        app()
    except (FederationError, OSError) as error:
        typer.echo(f"certificates: {error}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
