"""The log of what has left a site: a line of JSON for each message that carries something of the site's.

`kind` is `registration` (the description of the shard), `results` (metrics and trained tensors of one task of a round),
`tensors` (names, shapes and types of what `results` names by a digest; once an experiment), or `failure` (the text of
an error). A line is on disk before the message leaves; what cannot be written down is not sent. Left out are questions
for work, and the envoy's word every few seconds that it is there (with the load of its GPUs): no recording is in them.

The log tells what the project's own code sends. It is no proof against code that was approved and should not have been:
that runs with the envoy's rights.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from io import TextIOWrapper
from logging import INFO, LogRecord
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import Any

import numpy as np

from federation.schedule import TASK_NAMES, finished_rounds
from federation.wire.models import Packed

MAX_BYTES = 4 * 1024 * 1024
BACKUPS = 9
"""Older files are kept as `audit.jsonl.1` and so on: at most 40 MiB in all, some 100,000 messages."""


class AuditLog:
    """Appends to a site's log; without a path, to none.

    Args:
        path: the file.
        context: what every line says beside the time, such as site, director and experiment.

    Raises:
        OSError: from each method, when the line cannot be written.
    """

    def __init__(self, path: Path | None = None, **context: str) -> None:
        self._path, self._context = path, context
        self._told: set[str] = set()

    def registration(self, description: str, **shard: Any) -> None:
        """The site tells the director of its shard."""
        self._append("registration", description=description, **shard)

    def results(
        self, task: str, engine_round: int, examples: int, metrics: Mapping[Any, np.ndarray], update: Packed | None
    ) -> None:
        """The site sends what a task made.

        task, engine_round: as the engine counts them. examples: the number that weighs them. metrics: values by the
        engine's tensor keys. update: the trained tensors as they are sent.
        """
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
            metrics={key.tensor_name: float(value) for key, value in metrics.items()},
            tensors=len(pieces),
            bytes=update.size if update else 0,
            digest=digest if named else None,
        )

    def failure(self, text: str, experiment: str) -> None:
        """The site reports an error, with the text that it sends."""
        self._append("failure", experiment=experiment, text=text)

    def _append(self, kind: str, **what: Any) -> None:
        if self._path is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "kind": kind} | self._context | what
        # Opened anew for each line: envoy and trainer write to one file, and either may have begun a new one.
        handler = _Handler(self._path, maxBytes=MAX_BYTES, backupCount=BACKUPS, encoding="utf-8", delay=True)
        try:
            handler.emit(LogRecord("audit", INFO, "", 0, json.dumps(line), None, None))
        finally:
            handler.close()


class _Handler(RotatingFileHandler):
    """The standard library's handler, with files that only their owner may read, and errors that are raised."""

    def _open(self) -> TextIOWrapper:
        return open(self.baseFilename, "a", encoding=self.encoding, opener=_private)

    def handleError(self, record: LogRecord) -> None:  # noqa: N802
        """Raise what has happened while a line was written."""
        raise


def entries(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is kept, oldest first; one that a kill has cut is left out."""
    files = [path.with_name(f"{path.name}.{number}") for number in range(BACKUPS, 0, -1)]
    for file in (*files, path):
        for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else ():
            if line.endswith("}"):
                yield json.loads(line)


def table(path: Path, last: int) -> list[str]:
    """The newest messages as the rows of a table, newest last."""
    row = "{:<19}  {:<24}  {:>5}  {:<16}  {:>7}  {:>12}  {}".format
    rows = [row("time (UTC)", "experiment", "round", "message", "tensors", "bytes", "metrics, or the first words")]
    told = [each for each in entries(path) if each["kind"] != "tensors"]
    for each in told[-last:]:
        words = ", ".join(f"{name} {value:.4g}" for name, value in each.get("metrics", {}).items())
        text = str(each.get("description") or each.get("text") or "").strip().split("\n")[-1][:80]
        rows.append(
            row(
                each["time"][:19],
                each.get("experiment", ""),
                each.get("round", ""),
                each.get("task", each["kind"]),
                each.get("tensors", ""),
                each.get("bytes", len(each.get("description") or each.get("text") or "")),
                words or text,
            )
        )
    return rows


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
