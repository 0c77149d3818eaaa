"""What the director keeps of an experiment on disk, so that it can be killed at any time and go on.

A folder per experiment: `experiment.json` (what was submitted), `experiment.zip` (the shipped workspace),
`metrics.jsonl`, `progress.json` (how far it has come), the models that `progress.json` names, `round-N.safetensors` and
`best-N.safetensors`, and in `updates/` what the sites have sent in the running round. A file is replaced in one step,
models before the progress that names them: a kill leaves the state before a round or after it.
"""

import errno
import json
import os
import shutil
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from federation.wire.models import ModelFile, best_path, round_path, updates_folder


@dataclass(frozen=True)
class Progress:
    """How far an experiment has come.

    next_round: the engine round that comes next, from 0. last_round, best_round: rounds of training that the newest and
    the best model have had. best_score: the best model's validation score.
    """

    status: str = "pending"
    failure: str | None = None
    next_round: int = 0
    last_round: int = 0
    best_round: int | None = None
    best_score: float | None = None


class ExperimentState:
    """The folder of one experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "experiment.zip"
        self._metrics = folder / "metrics.jsonl"
        self._lock = threading.RLock()  # rounds end in the collaborators' threads, experiments in the director's

    @classmethod
    def create(cls, root: Path, archive: Path, model: Path, about: Mapping[str, Any]) -> "ExperimentState":
        """Keep a submitted experiment, its archive and its initial model (both are moved): all of it, or nothing."""
        folder = root / quote(about["name"], safe="")
        unfinished = cls(folder.with_name(f".{folder.name}"))
        shutil.rmtree(unfinished.folder, ignore_errors=True)
        try:
            unfinished.folder.mkdir(parents=True)
            shutil.move(archive, unfinished.archive)
            _write(unfinished.folder / "experiment.json", json.dumps(about).encode())
            shutil.move(model, round_path(unfinished.folder, 0))
            unfinished.save(Progress())
            unfinished.folder.rename(folder)
        except OSError:
            shutil.rmtree(unfinished.folder, ignore_errors=True)
            raise
        return cls(folder)

    @classmethod
    def all(cls, root: Path) -> list["ExperimentState"]:
        """Every experiment under `root`, in the order of their submission."""
        found = [cls(path.parent) for path in root.glob("[!.]*/experiment.json")]
        return sorted(found, key=lambda state: float(state.about()["submitted"]))

    def about(self) -> dict[str, Any]:
        """What was submitted: name, collaborators, users, sender and time."""
        read: dict[str, Any] = json.loads((self.folder / "experiment.json").read_text(encoding="utf-8"))
        return read

    def progress(self) -> Progress:
        """How far it has come."""
        return Progress(**json.loads((self.folder / "progress.json").read_text(encoding="utf-8")))

    def save(self, progress: Progress) -> None:
        """Save the progress; its models are on disk. Older models are forgotten."""
        with self._lock:
            _write(self.folder / "progress.json", json.dumps(asdict(progress)).encode())
            named = (self._last(progress), self._best(progress))
            for path in self.folder.glob("*.safetensors"):
                if path not in named:
                    path.unlink()

    def end(self, status: str, failure: str | None = None) -> None:
        """Say how it stands, or how it ended."""
        with self._lock:
            self.save(replace(self.progress(), status=status, failure=failure))

    def forget_updates(self) -> None:
        """Remove what the sites have sent in a round that nobody will close."""
        shutil.rmtree(updates_folder(self.folder), ignore_errors=True)

    def last_model(self) -> ModelFile:
        """The newest model; the initial one before the first round."""
        return ModelFile(self._last(self.progress()))

    def best_model(self) -> ModelFile | None:
        """The best model; None before the first validation."""
        path = self._best(self.progress())
        return ModelFile(path) if path.exists() else None

    def add_metric(self, metric: Mapping[str, Any]) -> None:
        """Append one metric: the whole line, or nothing."""
        line = (json.dumps(metric) + "\n").encode()
        with self._metrics.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):  # as much as the disk took
                file.truncate(end)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._metrics))

    def finished_metrics(self) -> list[dict[str, Any]]:
        """The metrics of finished rounds; those of a round that was interrupted are dropped, to be measured again."""
        text = self._metrics.read_text(encoding="utf-8") if self._metrics.exists() else ""
        parsed = [json.loads(line) for line in text.splitlines() if line.endswith("}")]  # a kill may cut the last one
        finished = [metric for metric in parsed if metric["round"] < self.progress().next_round]
        kept = "".join(json.dumps(metric) + "\n" for metric in finished)
        if kept != text:
            _write(self._metrics, kept.encode())
        return finished

    def remove(self) -> None:
        """Forget the experiment."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _last(self, progress: Progress) -> Path:
        return round_path(self.folder, progress.last_round)

    def _best(self, progress: Progress) -> Path:
        return best_path(self.folder, progress.best_round)


def _write(path: Path, content: bytes) -> None:
    unfinished = path.with_name(f".{path.name}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError:
        unfinished.unlink(missing_ok=True)
        raise
    unfinished.replace(path)
