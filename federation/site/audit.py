"""The log of what has left a site: a line of JSON for each message, with the digest of the bytes that were sent.

`kind` is `message` (any message to the director: its call, size and SHA-256), and, in words, what a message carries of
the site's: `registration` (the description of the shard), `results` (metrics and trained tensors of one task of a
round; `sha256` is that of the file of tensors), `tensors` (names, shapes and types of what `results` names by a digest;
once an experiment), or `failure` (the text of an error). A line is on disk before the message leaves; what cannot be
written down is not sent. A message that is the same as the one of its call before is counted (`repeated`, in the next
line of that call); of the envoy's word every few seconds that it is there, with the load of its GPUs, there is a line
a minute at most.

The log tells what the project's own code sends. It is no proof against code that was approved and should not have been:
that runs with the envoy's rights.
"""

import errno
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from federation.schedule import TASK_NAMES, finished_rounds
from federation.site.disk import outlast
from federation.wire.models import Packed

MAX_BYTES = 4 * 1024 * 1024
BACKUPS = 9
"""Older files are kept as `audit.jsonl.1` and so on: at most 40 MiB in all, some 100,000 messages."""
PRESENCE = "UpdateEnvoyStatus"
PRESENCE_SECONDS = 60.0


class AuditLog:
    """Appends to a site's log; without a path, to none. A disk that is full for a moment is waited for.

    Args:
        path: the file.
        context: what every line says beside the time, such as site, director and experiment.

    Raises:
        OSError: from each method, when the line cannot be written.
    """

    def __init__(self, path: Path | None = None, **context: str) -> None:
        self._path, self._context = path, context
        self._told: set[str] = set()
        self._last: dict[str, tuple[str, float]] = {}  # of each call: the digest of its last line, and when that was
        self._repeated: dict[str, int] = {}

    @property
    def kept(self) -> bool:
        """Whether there is a log."""
        return self._path is not None

    def message(self, call: str, content: bytes) -> None:
        """The site sends these bytes; of a stream they are its first message."""
        digest, now = hashlib.sha256(content).hexdigest(), time.monotonic()
        last, when = self._last.get(call, ("", 0.0))
        if digest == last or (call == PRESENCE and last and now < when + PRESENCE_SECONDS):
            self._repeated[call] = self._repeated.get(call, 0) + 1
            return
        repeated: dict[str, Any] = {"repeated": self._repeated[call]} if self._repeated.get(call) else {}
        line = partial(self._append, "message", call=call, bytes=len(content), sha256=digest, **repeated)
        if call == PRESENCE:  # of a site whose disk is full the director is to know that it is there
            with suppress(OSError):
                line(patient=False)
        else:
            line()
        self._last[call], self._repeated[call] = (digest, now), 0

    def registration(self, description: str, **shard: Any) -> None:
        """The site tells the director of its shard."""
        self._append("registration", description=description, **shard)

    def results(
        self, task: str, engine_round: int, examples: int, metrics: Mapping[str, float], update: Packed | None
    ) -> None:
        """The site sends what a task made.

        task, engine_round: as the engine counts them. examples: the number that weighs them. update: the trained
        tensors as they are sent.
        """
        if self._path is None:
            return
        pieces = update.pieces if update else {}
        named = {name: f"{piece.dtype}{list(piece.shape)}" for name, piece in sorted(pieces.items())}
        digest = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:12]
        if named and digest not in self._told:
            self._append("tensors", digest=digest, tensors=named)
            self._told.add(digest)
        self._append(
            "results",
            round=finished_rounds(task, engine_round),
            task=TASK_NAMES.get(task, task),
            examples=examples,
            metrics=dict(metrics),
            tensors=len(pieces),
            bytes=update.size if update else 0,
            digest=digest if named else None,
            sha256=_digest(update) if update else None,
        )

    def failure(self, text: str, experiment: str) -> None:
        """The site reports an error, with the text that it sends."""
        self._append("failure", experiment=experiment, text=text)

    def _append(self, kind: str, *, patient: bool = True, **what: Any) -> None:
        if self._path is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind} | self._context | what
        write = partial(_write, self._path, json.dumps(line).encode() + b"\n")
        outlast(write, "a line of the audit log") if patient else write()


def _write(path: Path, line: bytes) -> None:
    """Append a line: the whole line, or nothing; envoy and trainers write to one file, one after the other."""
    with os.fdopen(os.open(path.with_name(f".{path.name}.lock"), os.O_WRONLY | os.O_CREAT, 0o600), "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists() and path.stat().st_size + len(line) > MAX_BYTES:
            for number in range(BACKUPS, 0, -1):
                older = path.with_name(f"{path.name}.{number - 1}") if number > 1 else path
                with suppress(FileNotFoundError):
                    older.replace(path.with_name(f"{path.name}.{number}"))
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            if file.write(line) < len(line):  # as much as the disk took
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _digest(update: Packed) -> str:
    whole = hashlib.sha256()
    for chunk in update.chunks():
        whole.update(chunk)
    return whole.hexdigest()


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is kept, oldest first; one that a kill has cut is left out."""
    files = [path.with_name(f"{path.name}.{number}") for number in range(BACKUPS, 0, -1)]
    for file in (*files, path):
        for line in file.read_bytes().splitlines() if file.is_file() else ():
            with suppress(ValueError):
                yield json.loads(line)


def table(path: Path, last: int, every: bool = False) -> list[str]:
    """The newest messages as the rows of a table, newest last; `every`: those too that carry nothing of the site's."""
    row = "{:<19}  {:<24}  {:>5}  {:<16}  {:>7}  {:>12}  {}".format
    rows = [row("time (UTC)", "experiment", "round", "message", "tensors", "bytes", "metrics, or the first words")]
    told = [each for each in entries(path) if each["kind"] != "tensors" and (every or each["kind"] != "message")]
    for each in told[-last:]:
        words = ", ".join(f"{name} {value:.4g}" for name, value in each.get("metrics", {}).items())
        text = str(each.get("description") or each.get("text") or each.get("sha256") or "").strip().split("\n")[-1][:80]
        rows.append(
            row(
                each["time"][:19],
                each.get("experiment", ""),
                each.get("round", ""),
                each.get("task") or each.get("call") or each["kind"],
                each.get("tensors", ""),
                each.get("bytes", len(each.get("description") or each.get("text") or "")),
                words or text,
            )
        )
    return rows
