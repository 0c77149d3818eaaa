"""The run directory: what was asked for, what was measured, what came out."""

import json
import os
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pandas as pd
import soundfile

LATEST = "latest"
"""The name by which the newest run is found, too."""
MOST_LETTERS = 60
"""Of a run's name: it names the experiment as well, with its seed behind it."""

COLUMNS = ["round", "site", "task", "metric", "value"]
PACKAGES = (
    *("openfl", "torch", "transformers", "peft", "safetensors", "numpy", "scipy", "scikit-learn", "pandas"),
    *("soundfile", "soxr", "datasets", "pyarrow", "librosa", "espeakng-loader", "flwr-datasets"),
)
"""What computes, and what decodes, makes and deals recordings."""


class _MetricLines:
    """A table of the whole lines of a file that grows; each is read once."""

    def __init__(self) -> None:
        self._end = 0
        self._table = pd.DataFrame(columns=COLUMNS)

    def read(self, path: Path) -> pd.DataFrame:
        """The table, with what has been added since."""
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._end)
                whole = file.read().rpartition(b"\n")
            # Not pd.read_json: that makes numbers of a site named "007", and no columns of an empty file.
            rows = [json.loads(line) for line in whole[0].splitlines()]
            if rows:
                added = pd.DataFrame(rows, columns=COLUMNS)
                self._table = pd.concat([self._table, added], ignore_index=True) if self._end else added
            self._end += len(whole[0] + whole[1])
        return self._table.copy()


@dataclass(frozen=True)
class Run:
    """A folder `runs/<name>/`: config.json, metrics.jsonl, summary.json, model/, plots.

    Written line by line while the run goes on; tables and plots are made from these files.
    """

    folder: Path
    _lines: _MetricLines = field(default_factory=_MetricLines, compare=False, repr=False)

    @classmethod
    def create(cls, root: Path, name: str | None = None) -> "Run":
        """Make a new run directory under `root` and point `latest` at it.

        Raises:
            ValueError: the name is none for a folder in there.
            FileExistsError: there is a run of that name already.
        """
        name = name or datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")[:-4]
        if not name[0].isalnum() or not name.isprintable() or "/" in name or len(name) > MOST_LETTERS or name == LATEST:
            raise ValueError(
                f"{name[:60]!r} is not a name for a run; allowed: up to {MOST_LETTERS} characters that can be printed, "
                f"no '/', the first a letter or a digit, and not {LATEST!r}, which is the newest run"
            )
        folder = root / name
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(f"there is already a run {folder}; give this one another name") from None
        link = root / f".latest-{os.getpid()}"
        link.symlink_to(name)
        link.replace(root / LATEST)  # in one step: a reader never finds it missing
        return cls(folder)

    def __reduce__(self) -> tuple[type["Run"], tuple[Path]]:
        """To another process goes the folder alone."""
        return Run, (self.folder,)

    @property
    def name(self) -> str:
        """The run's name, which is also the experiment's."""
        return self.folder.name

    @property
    def metrics_path(self) -> Path:
        """One JSON object a line: round, site, task, metric, value."""
        return self.folder / "metrics.jsonl"

    @property
    def predictions_path(self) -> Path:
        """What each final model answered to each test utterance: see `lab.predictions`."""
        return self.folder / "predictions.parquet"

    @property
    def summary_path(self) -> Path:
        """The figures of the finished run."""
        return self.folder / "summary.json"

    @property
    def config_path(self) -> Path:
        """What decides the result; `kws run` repeats it."""
        return self.folder / "config.json"

    def write_config(self, **values: Any) -> None:
        """Save what the run was asked to do (see `lab.provenance`), with the versions that it ran on."""
        self._write("config.json", values | {"versions": versions()})

    def config(self) -> dict[str, Any]:
        """What the run was asked to do."""
        loaded: dict[str, Any] = json.loads(self.config_path.read_text(encoding="utf-8"))
        return loaded

    def of_seed(self, seed: int) -> "Run":
        """The records of the same experiment with another seed: a folder in this one."""
        return self.within(f"{self.name}-seed{seed}")

    def within(self, name: str) -> "Run":
        """Records that belong to this run: a folder in its own."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        return Run(folder)

    def add_metric(self, round_number: int, site: str, task: str, metric: str, value: float) -> None:
        """Append one line; several processes may append to one run."""
        line = {"round": round_number, "site": site, "task": task, "metric": metric, "value": value}
        with self.metrics_path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def add_metrics(self, round_number: int, site: str, task: str, values: Mapping[str, float]) -> None:
        """Append one line for each metric of a task."""
        for metric, value in values.items():
            self.add_metric(round_number, site, task, metric, value)

    def metrics(self) -> pd.DataFrame:
        """All metric lines: columns round, site, task, metric, value. Reads what is new since the last call."""
        return self._lines.read(self.metrics_path)

    def write_summary(self, **values: Any) -> None:
        """Save the figures of the finished run."""
        self._write("summary.json", values)

    def summary(self) -> dict[str, Any]:
        """The figures of the finished run."""
        loaded: dict[str, Any] = json.loads(self.summary_path.read_text(encoding="utf-8"))
        return loaded

    def _write(self, name: str, values: Mapping[str, Any]) -> None:
        text = json.dumps(values, indent=2) + "\n"
        unfinished = self.folder / f".{name}"
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(self.folder / name)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {"libsndfile": soundfile.__libsndfile_version__}


def finished(root: Path) -> list[Run]:
    """The runs in a folder that have a summary and a record of what they did, the newest first."""
    paths = sorted(root.glob("*/summary.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    runs = [Run(path.parent) for path in paths if not path.parent.is_symlink()]
    return [run for run in runs if run.config_path.is_file() and "asked" in run.config()]


def follow(path: Path) -> Iterator[dict[str, Any]]:
    """Metric lines that were added since the last call of `next`; yields nothing new as an empty dict."""
    with path.open(encoding="utf-8") as file:
        pending = ""
        while True:
            pending += file.readline()
            if pending.endswith("\n"):
                yield json.loads(pending)
                pending = ""
            else:
                yield {}
