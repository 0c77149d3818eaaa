"""What the director keeps of an experiment on disk, so that it can be killed, or lose its power, at any time and go on.

A folder per experiment, named after it:

- `experiment.json`: who submitted what for which sites; `experiment.zip`: the shipped workspace.
- `round-N.safetensors`: the model after N rounds of training; `best-N.safetensors`: the best one; `rule-N.safetensors`:
  what the aggregation rule has to remember with the model of round N.
- `metrics.jsonl`: a line a metric, under a line with the version.
- `progress.json`: how far it has come, and which of the other files belong to that.
- `updates/`: what the sites have sent in the running round; nobody needs it after a restart.

All that `progress.json` names is synced before it is, and what the one before it named stays until the next. So there
is always a round that is whole, and a model that cannot be read although it was synced costs one round, not the
experiment. A folder that cannot be read, because it is damaged or of a newer version, is left as it is, and skipped.
"""

import json
import math
import threading
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from federation.wire import files
from federation.wire.models import ModelFile, best_path, round_path, rule_path, updates_folder

VERSION = 2
"""Of the files in a folder. Version 1 told none; it is read, and written as version 2 when the experiment goes on."""

PENDING, IN_PROGRESS, FINISHED, FAILED, REJECTED = "pending", "in_progress", "finished", "failed", "rejected"
OVER = (FINISHED, FAILED, REJECTED)
STATUSES = (PENDING, IN_PROGRESS, *OVER)
"""The engine's own words (`openfl.component.director.experiment.Status`)."""

READ_BYTES = 2**20
"""Of metrics, in one go."""


class Unreadable(ValueError):
    """A folder of which this version can make nothing; says why."""


@dataclass(frozen=True)
class Submitted:
    """Who submitted what, and when (seconds since 1970). rounds: of training; None where version 1 did not tell.

    Raises:
        ValueError: with everything that is wrong.
    """

    name: str
    collaborators: tuple[str, ...]
    sender: str
    submitted: float
    rounds: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "collaborators", _names(self.collaborators))
        problems = [f"{key} is {value!r}" for key in ("name", "sender") if not _is_text(value := getattr(self, key))]
        if not self.collaborators:
            problems.append("collaborators are not a list of names")
        if not _is_number(self.submitted):
            problems.append(f"submitted is {self.submitted!r}")
        if self.rounds is not None and not _is_count(self.rounds):
            problems.append(f"rounds is {self.rounds!r}")
        _raise_all(problems)


@dataclass(frozen=True)
class Progress:
    """How far an experiment has come.

    next_round: the engine round that comes next, from 0. last_round, best_round: rounds of training that the newest and
    the best model have had. best_score: the best model's validation score. rule: whether the rule has left something
    with the newest model. asked: whom the next round asks, where not all. metrics: bytes of `metrics.jsonl` that belong
    to this; None in version 1. before: the progress with the model before this one, whose files are there still.

    Raises:
        ValueError: with everything that is wrong.
    """

    status: str = PENDING
    failure: str | None = None
    next_round: int = 0
    last_round: int = 0
    best_round: int | None = None
    best_score: float | None = None
    rule: bool = False
    asked: tuple[str, ...] | None = None
    metrics: int | None = None
    before: "Progress | None" = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.asked is not None:
            object.__setattr__(self, "asked", _names(self.asked))
        checks = {
            "status": self.status in STATUSES,
            "failure": self.failure is None or isinstance(self.failure, str),
            "next_round": _is_count(self.next_round),
            "last_round": _is_count(self.last_round),
            "best_round": self.best_round is None or _is_count(self.best_round),
            "best_score": self.best_score is None or _is_number(self.best_score),
            "rule": isinstance(self.rule, bool),
            "asked": self.asked is None or bool(self.asked),
            "metrics": self.metrics is None or _is_count(self.metrics),
            "before": self.before is None or isinstance(self.before, Progress),
        }
        _raise_all([f"{name} is {getattr(self, name)!r:.100}" for name, right in checks.items() if not right])

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.status in OVER


class ExperimentState:
    """The folder of one experiment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.archive = folder / "experiment.zip"
        self._metrics = folder / "metrics.jsonl"
        self._lock = threading.RLock()  # rounds end in the collaborators' threads, experiments in the director's

    @classmethod
    def create(cls, root: Path, archive: Path, model: Path, about: Submitted) -> "ExperimentState":
        """Keep a submitted experiment, its archive and its initial model (both are moved): all of it, or nothing.

        Raises:
            OSError: the disk does not take it.
        """
        folder = folder_of(root, about.name)
        unfinished = cls(folder.with_name(f".{folder.name}"))
        files.clear(unfinished.folder)
        try:
            files.make_folder(unfinished.folder)
            files.adopt(archive, unfinished.archive)
            files.adopt(model, round_path(unfinished.folder, 0))
            _write(unfinished.folder / "experiment.json", asdict(about))
            unfinished._begin_metrics([])
            unfinished._write_progress(Progress(metrics=unfinished._metrics.stat().st_size))
            files.rename(unfinished.folder, folder)
        except OSError:
            files.clear(unfinished.folder)
            raise
        return cls(folder)

    def about(self) -> Submitted:
        """What was submitted.

        Raises:
            Unreadable: the file is damaged or of a newer version.
        """
        built: Submitted = _built(Submitted, _read(self.folder / "experiment.json"), "experiment.json")
        return built

    def progress(self) -> Progress:
        """How far it has come.

        Raises:
            Unreadable: the file is damaged or of a newer version.
        """
        told = _read(self.folder / "progress.json")
        if isinstance(before := told.get("before"), dict):
            told["before"] = _built(Progress, before, "progress.json")
        built: Progress = _built(Progress, told, "progress.json")
        return built

    def check(self) -> None:
        """Look whether the experiment can be told of, and, unless it is over, go on; changes nothing.

        Raises:
            Unreadable: it cannot; says why.
        """
        name, progress = self.about().name, self.progress()
        if quote(name, safe="") != self.folder.name:
            raise Unreadable(f"it holds experiment {name!r}, whose folder has another name: a copy?")
        self._check_metrics(progress)
        if not progress.over:
            if not zipfile.is_zipfile(self.archive):
                raise Unreadable(f"{self.archive.name} is damaged or missing")
            self._whole(progress)

    def resume(self) -> str | None:
        """Make the folder ready to go on from its last whole round: what an interrupted round has left is dropped.

        Returns:
            A round that has to be done once more although it was finished, and why; None where there is none.

        Raises:
            Unreadable: see `check`.
            OSError: the disk does not take it.
        """
        with self._lock:
            told = self.progress()
            progress = self._whole(told)
            if progress.metrics is None:  # version 1
                self._begin_metrics(self._finished_metrics(progress.next_round))
                progress = replace(progress, metrics=self._metrics.stat().st_size)
            files.cut(self._metrics, progress.metrics or 0)
            if progress != told:
                self._write_progress(progress)
            self._forget(progress)
            self.forget_updates()
            for path in self.folder.glob(".*"):
                files.remove(path)
        lost = told.last_round > progress.last_round
        return f"the model of round {told.last_round} is damaged: that round is done again" if lost else None

    def save_round(
        self,
        *,
        next_round: int,
        last_round: int,
        best_round: int | None,
        best_score: float | None,
        rule: bool = False,
        asked: Iterable[str] | None = None,
    ) -> None:
        """Put a finished round on disk; its model, `round_path(folder, last_round)`, has been written by then.

        Everything is synced before the progress names it, whoever has written it. What the round before needs stays;
        older files are forgotten. The best model becomes a second name of the round's whose score it was.

        Args:
            next_round: the engine round that comes next.
            last_round: rounds of training that the newest model has had.
            best_round, best_score: of the best model so far; its round is an earlier one that is kept.
            rule: whether the rule has left something with the newest model, if that is a new one, in
                `rule_path(folder, last_round)`.
            asked: whom the next round asks; None: whoever is there.

        Raises:
            OSError: the disk does not take it; the round before is as it was.
        """
        with self._lock:
            now = self.progress()
            if best_round not in (None, now.best_round):
                files.link(round_path(self.folder, best_round), best_path(self.folder, best_round))
            told = replace(now, next_round=next_round, best_round=best_round, best_score=best_score)
            told = replace(told, asked=None if asked is None else tuple(asked))
            if last_round != now.last_round:
                files.sync(round_path(self.folder, last_round))
                if rule:
                    files.sync(rule_path(self.folder, last_round))
                told = replace(told, last_round=last_round, rule=rule, before=replace(now, before=None))
            told = replace(told, metrics=self._metrics.stat().st_size)
            files.sync(self._metrics)
            files.sync_folder(self.folder)
            self._write_progress(told)
            self._forget(told)

    def end(self, status: str, failure: str | None = None) -> None:
        """Say how it stands, or how it ended; of what is over only the newest and the best model are kept.

        Raises:
            OSError: the disk does not take it.
        """
        with self._lock:
            told = replace(self.progress(), status=status, failure=failure)
            if told.over and told.metrics is not None:  # what a failed round has told until then is kept, too
                files.sync(self._metrics)
                told = replace(told, metrics=self._metrics.stat().st_size, before=None)
            self._write_progress(told)
            self._forget(told)

    def forget_updates(self) -> None:
        """Remove what the sites have sent in a round that nobody will close."""
        files.clear(updates_folder(self.folder))

    def drop_round(self) -> None:
        """Forget what a round that will be begun anew has told so far."""
        with self._lock:
            self.forget_updates()
            if (size := self.progress().metrics) is not None:
                files.cut(self._metrics, size)

    def last_model(self) -> ModelFile:
        """The newest model; the initial one before the first round.

        Raises:
            ValueError: the file is damaged.
            OSError: it is not there.
        """
        return ModelFile(round_path(self.folder, self.progress().last_round))

    def best_model(self) -> ModelFile | None:
        """The best model; None before the first validation.

        Raises:
            ValueError: the file is damaged.
            OSError: it is not there.
        """
        best_round = self.progress().best_round
        return None if best_round is None else ModelFile(best_path(self.folder, best_round))

    def rule_file(self) -> ModelFile | None:
        """What the rule has left with the newest model; None where it has left nothing.

        Raises:
            ValueError: the file is damaged.
            OSError: it is not there.
        """
        progress = self.progress()
        return ModelFile(rule_path(self.folder, progress.last_round)) if progress.rule else None

    def add_metrics(self, metrics: Iterable[Mapping[str, Any]]) -> None:
        """Append metrics: all of the lines, or none. They are synced with their round.

        Raises:
            OSError: the disk does not take them.
        """
        files.append(self._metrics, b"".join(map(_line, metrics)))

    def metrics(self, start: int = 0, runs: bool = False) -> tuple[list[dict[str, Any]], int]:
        """Some of the metrics from a place in their file on (0: the first), and where the next ones are.

        The place stays the same when there are no more so far. At most `READ_BYTES` are read. runs: it is known that
        the experiment goes on, so that nobody has to look how it stands.

        Raises:
            ValueError: the file is damaged.
            OSError: it is not there.
        """
        end = self._metrics.stat().st_size
        if not runs:
            progress = self.progress()
            if progress.metrics is None:  # version 1: read as a whole
                return ([] if start else self._finished_metrics(progress.next_round)), 1
            end = progress.metrics if progress.over else end
        if end <= start:
            return [], start
        with self._metrics.open("rb") as file:
            file.seek(start)
            part = file.read(min(READ_BYTES, max(0, end - start)))
        whole = part[: part.rfind(b"\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        return lines[0 if start else 1 :], start + len(whole)

    def all_metrics(self) -> Iterator[dict[str, Any]]:
        """Every metric so far, from the first on."""
        place = 0
        while True:
            lines, after = self.metrics(place)
            yield from lines
            if after == place:
                return
            place = after

    def size(self) -> int:
        """Bytes that the experiment takes on disk."""
        sizes: dict[int, int] = {}  # by inode: the best model is mostly a second name of another
        for path in self.folder.rglob("*"):
            with suppress(FileNotFoundError):  # the round goes on meanwhile
                status = path.lstat()
                sizes[status.st_ino] = status.st_size
        return sum(sizes.values())

    def remove(self) -> None:
        """Forget the experiment, all of it in one step: a folder that is being removed has another name.

        Raises:
            OSError: the disk does not take it.
        """
        leaving = self.folder.with_name(f".removed-{self.folder.name}"[:255])
        files.clear(leaving)
        files.rename(self.folder, leaving)
        files.clear(leaving)

    def _check_metrics(self, progress: Progress) -> None:
        if progress.metrics is None:
            return
        try:
            with self._metrics.open("rb") as file:
                first = json.loads(file.readline())
            _check_version(first, self._metrics.name)
            missing = progress.metrics - self._metrics.stat().st_size
        except (OSError, ValueError, AttributeError) as error:
            raise error if isinstance(error, Unreadable) else Unreadable(f"metrics.jsonl: {error}") from None
        if missing > 0:
            raise Unreadable(f"metrics.jsonl: {missing} of {progress.metrics} bytes are missing")

    def _whole(self, progress: Progress) -> Progress:
        """The progress, or the one before it where its own files are damaged.

        Raises:
            Unreadable: neither is whole.
        """
        problems = []
        for each in (progress, progress.before):
            if each is None:
                continue
            if (problem := self._problem(each)) is None:
                return each if each is progress else replace(each, status=progress.status, failure=progress.failure)
            problems.append(problem)
        raise Unreadable("; ".join(problems))

    def _problem(self, progress: Progress) -> str | None:
        for path in self._named(progress):
            try:
                ModelFile(path)
            except (OSError, ValueError) as error:
                return f"{path.name}: {error}"
        return None

    def _named(self, progress: Progress) -> list[Path]:
        """The files that belong to a progress."""
        best = [] if progress.best_round is None else [best_path(self.folder, progress.best_round)]
        rule = [rule_path(self.folder, progress.last_round)] if progress.rule else []
        return [round_path(self.folder, progress.last_round), *best, *rule]

    def _forget(self, progress: Progress) -> None:
        """Remove what neither this progress nor the one before it names."""
        named = {*self._named(progress), *(self._named(progress.before) if progress.before else ())}
        for path in self.folder.glob("*.safetensors"):
            if path not in named:
                files.remove(path)

    def _write_progress(self, progress: Progress) -> None:
        _write(self.folder / "progress.json", asdict(progress))

    def _begin_metrics(self, lines: list[dict[str, Any]]) -> None:
        files.write(self._metrics, b"".join(map(_line, [{"version": VERSION}, *lines])))

    def _finished_metrics(self, next_round: int) -> list[dict[str, Any]]:
        """The metrics of finished rounds as version 1 kept them: a kill may have cut the last line."""
        text = self._metrics.read_text(encoding="utf-8") if self._metrics.exists() else ""
        parsed = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
        return [metric for metric in parsed if metric.get("round", next_round) < next_round]


def folder_of(root: Path, name: str) -> Path:
    """The folder of an experiment of this name."""
    return root / quote(name, safe="")


def found(root: Path) -> tuple[list[ExperimentState], dict[str, str]]:
    """Every experiment under a director's state folder, in the order of their submission; changes nothing.

    Returns:
        Those that can be read, and why the other folders cannot, by the folders' names.
    """
    readable, unreadable = [], {}
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        state = ExperimentState(folder)
        try:
            state.check()
            readable.append((state.about().submitted, folder.name, state))
        except (Unreadable, OSError) as error:
            unreadable[folder.name] = str(error)
    return [state for _, _, state in sorted(readable, key=lambda each: each[:2])], unreadable


def clear_leftovers(root: Path) -> None:
    """Remove what a director that was killed has left of experiments half submitted or half removed."""
    for folder in root.iterdir():
        if folder.name.startswith(".") and folder.is_dir() and not folder.is_symlink():
            files.clear(folder)


def _write(path: Path, told: Mapping[str, Any]) -> None:
    files.write(path, json.dumps({"version": VERSION, **told}).encode())


def _read(path: Path) -> dict[str, Any]:
    """What a file tells, without its version."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise Unreadable(f"{path.name}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{path.name}: {error}") from None
    if not isinstance(told, dict):
        raise Unreadable(f"{path.name} holds no object")
    _check_version(told, path.name)
    told.pop("version", None)
    return told


def _check_version(told: Mapping[str, Any], name: str) -> None:
    version = told.get("version", 1)
    if version not in (1, VERSION) or isinstance(version, bool):
        raise Unreadable(f"{name} is of version {version!r:.50}; this director reads 1 and {VERSION}")


def _built(kind: Any, told: dict[str, Any], name: str) -> Any:
    known = {each.name for each in fields(kind)}
    if others := sorted(told.keys() - known):
        raise Unreadable(f"{name} tells of {', '.join(others):.200}, which this version does not know")
    try:
        return kind(**told)
    except (TypeError, ValueError) as error:
        raise Unreadable(f"{name}: {error}") from None


def _line(told: Mapping[str, Any]) -> bytes:
    return (json.dumps(told) + "\n").encode()


def _names(given: Any) -> tuple[str, ...]:
    whole = isinstance(given, list | tuple) and given and all(map(_is_text, given))
    return tuple(given) if whole else ()


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise ValueError("; ".join(problems))
