"""One process at a time works in a director's state folder: a second director would destroy what the first one runs.

The lock is the kernel's (`man 2 flock`) on a file in the folder: it goes with the process that holds it, however that
ends. What the file says of its holder is for people.
"""

import errno
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from federation.errors import FederationError

FILE = ".lock"
DIRECTOR = "director"
PATIENCE = 10.0
"""Seconds for which a command is waited for; a director holds its folder as long as it runs."""


@dataclass(frozen=True)
class Holder:
    """Who works in a state folder: "director" or a command, its process and host, and since when (local time)."""

    what: str
    pid: int
    host: str
    since: str

    def __str__(self) -> str:
        return f"{self.what}, process {self.pid} on {self.host} since {self.since}"


class Held(FederationError):
    """Another process works in the state folder; `holder` says which, as far as it is known."""

    def __init__(self, root: Path, holder: Holder | None) -> None:
        self.holder = holder
        who = "another director" if holder is None or holder.what == DIRECTOR else "a command"
        super().__init__(
            f"{who} uses the state folder {root}, and nothing was touched: {holder or 'who it is is not known'}; stop "
            f"that one, or give this one a folder of its own (`state` in director.yaml)"
        )


@contextmanager
def locked(root: Path, what: str) -> Iterator[Holder | None]:
    """Hold a state folder, which is there, for the block.

    Yields:
        Who held it on another host and has not given it back: where a network's file system keeps its locks on each
        host for itself, that one may still run.

    Raises:
        Held: another process holds it; nothing was touched.
        FederationError: the folder's file system knows no locks, or its lock cannot be opened.
    """
    try:
        descriptor = os.open(root / FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise FederationError(f"state: {root} cannot be used ({error})") from error
    try:
        _lock(root, descriptor)
        before = _read(descriptor)
        if os.geteuid() == 0:  # the operator's root session must not lock the director's own user out
            owner = root.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        _write(descriptor, Holder(what, os.getpid(), socket.gethostname(), f"{datetime.now():%Y-%m-%d %H:%M:%S}"))
        try:
            yield before if before and before.host != socket.gethostname() else None
        finally:
            os.ftruncate(descriptor, 0)
    finally:
        os.close(descriptor)


def _lock(root: Path, descriptor: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise FederationError(
                    f"state: the file system of {root} knows no locks ({error.strerror}), so that a second director "
                    f"could destroy what the first one runs; name a folder on a local disk"
                ) from error
            holder = _read(descriptor)
            if (holder and holder.what == DIRECTOR) or time.monotonic() > deadline:
                raise Held(root, holder) from None
            time.sleep(0.05)
        else:
            return


def _read(descriptor: int) -> Holder | None:
    try:
        return Holder(**json.loads(os.pread(descriptor, 4096, 0)))
    except (ValueError, TypeError):
        return None


def _write(descriptor: int, holder: Holder) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, json.dumps(asdict(holder)).encode(), 0)
