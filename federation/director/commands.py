"""What the operator asks of a director beside its port: list, cancel, remove, prune; whether it runs or not.

One that does not run is a folder: the command works in it, under the director's own lock. One that runs is asked
through a socket in that folder, which only the user who runs the director can reach: it takes no certificate and no
port, and nobody else on the machine or the network can give a command. A request is a line of JSON, and so is the
answer.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Iterator
from contextlib import chdir
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote

from federation.director import who
from federation.director.lock import DIRECTOR, Held, locked
from federation.director.state import FAILED, ExperimentState, folder_of, found
from federation.director.who import Who
from federation.errors import FederationError

logger = logging.getLogger(__name__)

FOLDER, SOCKET = ".operator", "socket"
ANSWER_SECONDS = 60.0
"""How long a command waits for a director that runs."""
REQUEST_BYTES = 64 * 1024
UNREADABLE = "cannot be read"


@dataclass(frozen=True)
class Row:
    """An experiment as `list` shows it.

    rounds: None where version 1 did not tell. size: bytes on disk. submitted: seconds since 1970; None, as `round`, for
    a folder that cannot be read (`status` says why).
    """

    name: str
    status: str
    over: bool
    round: int | None
    rounds: int | None
    sites: tuple[str, ...]
    size: int
    submitted: float | None
    sender: str


@dataclass(frozen=True)
class Request:
    """One command: "list", "cancel" (name), "remove" (name), "prune" (keep: how many that are over stay)."""

    command: str
    name: str = ""
    keep: int = 0


class Keeper(Protocol):
    """Who has the experiments: a director that runs, or the folder of one that does not."""

    def rows(self) -> Iterator[Row]:
        """Every experiment, in the order of their submission; then the folders that cannot be read."""

    def cancel(self, name: str, by: Who) -> str:
        """End an experiment; says what was done."""

    def remove(self, name: str, by: Who) -> str:
        """Forget an experiment that is over, or a folder that cannot be read; says what was done."""


def carry_out(keeper: Keeper, request: Request, by: Who) -> Iterator[Any]:
    """Do what is asked, and tell of it: rows for `list`, lines for the others.

    Raises:
        FederationError: it cannot be done; says why.
        OSError: the disk refuses.
    """
    if request.command == "list":
        yield from map(asdict, keeper.rows())
    elif request.command == "cancel":
        yield keeper.cancel(request.name, by)
    elif request.command == "remove":
        yield keeper.remove(request.name, by)
    elif request.command == "prune":
        over = [each.name for each in keeper.rows() if each.over]
        leaving = over[: max(0, len(over) - request.keep)]
        for name in leaving:
            yield keeper.remove(name, by)
        yield f"{len(leaving)} removed, {len(over) - len(leaving)} that are over stay"
    else:
        raise FederationError(f"this director knows no command {request.command!r:.50}")


def row(state: ExperimentState, status: str) -> Row:
    """What `list` shows of an experiment whose folder can be read."""
    about, progress = state.about(), state.progress()
    return Row(
        about.name, status, progress.over, progress.last_round, about.rounds, about.collaborators, state.size(),
        about.submitted, about.sender,
    )  # fmt: skip


def unreadable_row(folder: Path, reason: str) -> Row:
    """What `list` shows of a folder that cannot be read."""
    size = ExperimentState(folder).size()
    return Row(unquote(folder.name), f"{UNREADABLE}: {reason}", False, None, None, (), size, None, "")


class Stopped:
    """A director that does not run: its folder, under its lock."""

    def __init__(self, root: Path) -> None:
        self._root = root
        states, self._unreadable = found(root)
        self._states = {state.about().name: state for state in states}

    def rows(self) -> Iterator[Row]:
        """Every experiment that is kept."""
        for state in self._states.values():
            progress = state.progress()
            yield row(state, progress.status if progress.over else f"{progress.status}, when the director is started")
        for folder, reason in self._unreadable.items():
            yield unreadable_row(self._root / folder, reason)

    def cancel(self, name: str, by: Who) -> str:
        """End an experiment before the director goes on with it."""
        state = self._find(name)
        if state.progress().over:
            return is_over(name, state.progress().status)
        state.end(FAILED, cancelled(name, by))
        return done("cancelled", name)

    def remove(self, name: str, by: Who) -> str:
        """Forget an experiment that is over, or a folder that cannot be read."""
        folder = folder_of(self._root, name)
        if folder.name in self._unreadable:
            ExperimentState(folder).remove()
            del self._unreadable[folder.name]
        elif not self._find(name).progress().over:
            raise not_over(name)
        else:
            self._states.pop(name).remove()
        return done("removed", name)

    def _find(self, name: str) -> ExperimentState:
        if name in self._states:
            return self._states[name]
        raise unknown(name, folder_of(self._root, name).name in self._unreadable)


def is_over(name: str, status: str) -> str:
    """The answer to a `cancel` that comes too late."""
    return f"{name} is over already ({status}); nothing was done"


def done(what: str, name: str) -> str:
    """The answer to a command that was carried out."""
    return f"{what}: {name}" + ("; what it has reached is kept until it is removed" if what == "cancelled" else "")


def cancelled(name: str, by: Who) -> str:
    """Why an experiment that was cancelled has failed."""
    return f"experiment {name} was cancelled by {by}"


def not_over(name: str) -> FederationError:
    """The answer to a `remove` that comes too early."""
    return FederationError(f"{name} is not over; cancel it first, then remove it")


def unknown(name: str, unreadable: bool = False) -> FederationError:
    """The answer to a name that stands for no experiment that can be read."""
    if unreadable:
        return FederationError(f"experiment {name} cannot be read (`list` says why); it can only be removed")
    return FederationError(f"this director knows no experiment {name!r:.120}; `list` shows those that there are")


def command(root: Path, request: Request) -> list[Any]:
    """Carry out a command on the director with this state folder, whether it runs or not.

    Raises:
        FederationError: it cannot be done; says why, and what to do.
        OSError: the disk refuses.
    """
    if not root.is_dir():
        raise FederationError(f"there is no state folder {root}: nothing is kept there")
    try:
        with locked(root, f"command {request.command}"):
            return list(carry_out(Stopped(root), request, who.of_this_process()))
    except Held as held:
        if held.holder is None or held.holder.what != DIRECTOR:
            raise FederationError(f"another command is at work ({held.holder}); try again") from None
        return ask(root, request, str(held.holder))


def ask(root: Path, request: Request, holder: str, seconds: float = ANSWER_SECONDS) -> list[Any]:
    """Ask the director that runs with this state folder; `holder` tells where, for whoever has to look.

    Raises:
        FederationError: it refuses, or it does not answer.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(seconds)
            with chdir(root / FOLDER):  # a socket's path is short, a folder's may be long
                connection.connect(SOCKET)
            connection.sendall(json.dumps(asdict(request)).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer = json.loads(answers.readline())
    except PermissionError:
        raise FederationError(f"only the user who runs the director may give it commands; it is {holder}") from None
    except TimeoutError:
        raise FederationError(
            f"the director has not answered within {seconds:.0f} s; try again, or stop it and give the command then; "
            f"it is {holder}"
        ) from None
    except (OSError, ValueError) as error:
        raise FederationError(
            f"the director cannot be asked from here ({error}); give the command on its own machine, or stop it first; "
            f"it is {holder}"
        ) from None
    if "error" in answer:
        raise FederationError(answer["error"])
    told: list[Any] = answer["told"]
    return told


class Door:
    """Where a director that runs hears its operator's commands."""

    def __init__(self, root: Path, keeper: Keeper) -> None:
        self._folder, self._keeper = root / FOLDER, keeper
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        """Hear commands; where the file system takes no sockets, say that there will be none."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
            self._folder.chmod(0o700)
            with chdir(self._folder):
                Path(SOCKET).unlink(missing_ok=True)
                listener.bind(SOCKET)
            self._server = await asyncio.start_unix_server(self._hear, sock=listener, limit=REQUEST_BYTES)
        except OSError as error:
            listener.close()
            logger.warning("state: no commands can be given to this director while it runs (%s)", error)

    def close(self) -> None:
        """Hear no more."""
        if self._server:
            self._server.close()
            (self._folder / SOCKET).unlink(missing_ok=True)

    async def _hear(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        by = who.of_local(writer.get_extra_info("socket"))
        answer: dict[str, Any]
        try:
            request = Request(**json.loads(await reader.readline()))
            told = []
            for each in carry_out(self._keeper, request, by):
                told.append(each)
                await asyncio.sleep(0)  # others have their turn while many are removed
            answer = {"told": told}
        except (FederationError, ValueError, TypeError, OSError) as error:
            answer = {"error": str(error)}
        writer.write(json.dumps(answer).encode() + b"\n")
        writer.close()
