"""Smaller and faster forms of a saved model, measured on its own task, and one of them chosen."""

import json
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from tqdm import tqdm

from kws.metrics import Evaluation
from lab.product.choice import EAGER, FIRST, METRICS, NONE, Choice, Row
from lab.product.export import CLIPS, EXAMPLE, LABELS, MODULES, export, reason
from lab.product.extras import require
from lab.product.heard import clips_for
from lab.product.measured import BATCHES, Cost, Job, in_own_process
from lab.product.spotter import EXPORTED, Floats, SpotterError, TorchSpotter, load
from lab.product.variants import VARIANTS, silently
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import Corpus

BATCH = 8
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Quantised:
    """What came out.

    rows: `EAGER` first, then `NONE`. chosen: the variant that was written. wanted: the words it was chosen by.
    test_clips: measured on so many of the corpus' test split.
    """

    rows: tuple[Row, ...]
    chosen: str
    wanted: str
    corpus: str
    test_clips: int
    calibration_clips: int
    threads: int

    def table(self) -> pd.DataFrame:
        """A row for each variant: shares of 1, megabytes, milliseconds; NaN where nothing was measured."""
        eager = self.rows[0].latency
        made: dict[str, dict[str, float]] = {}
        for row in self.rows:
            columns = {metric: row.scores.get(metric, np.nan) for metric in METRICS.values()}
            columns["size MB"] = row.size / 1e6 or np.nan
            for batch in BATCHES:
                median, late = row.latency.get(batch, (np.nan, np.nan))
                columns[f"median ms, {batch}"] = 1e3 * median
                columns[f"95 % ms, {batch}"] = 1e3 * late
                columns[f"speed-up, {batch}"] = eager[batch][0] / median
            made[row.variant] = columns | {"peak MB": row.peak / 1e6 or np.nan}
        return pd.DataFrame.from_dict(made, orient="index").rename_axis("variant")

    def text(self) -> str:
        """For people."""
        digits = dict.fromkeys(METRICS.values(), "{:.4f}".format) | {"size MB": "{:.2f}".format}
        digits |= {f"speed-up, {batch}": "{:.2f}".format for batch in BATCHES}
        shown = self.table().rename_axis(None).to_string(formatters=digits, float_format="{:.1f}".format, na_rep="-")
        failed = [f"{row.variant} failed: {row.failed}" for row in self.rows if row.failed]
        return "\n".join(
            [
                f"{self.test_clips} test clips of {self.corpus}, calibrated on {self.calibration_clips} train clips; "
                f"clips of one second in batches of {' and '.join(map(str, BATCHES))}, {self.threads} thread"
                f"{'s' * (self.threads != 1)}; speed-up is over PyTorch, memory of the whole process",
                "",
                shown,
                "",
                *failed,
                f"chosen: {self.chosen} ({self.wanted})",
            ]
        )

    def to_dict(self) -> dict[str, Any]:
        """The same for programs, in bytes and seconds."""
        eager = self.rows[0].latency
        told = asdict(self)
        for row in told["rows"]:
            row["speed_up"] = {batch: eager[batch][0] / median for batch, (median, _) in row["latency"].items()}
        return told

    def plot(self) -> Figure:
        """Speed-up, macro F1, size and memory of each variant that worked; the chosen one has a colour."""
        table = self.table().loc[[row.variant for row in reversed(self.rows) if row.failed is None]]
        colours = ["tab:blue" if variant == self.chosen else "tab:gray" for variant in table.index]
        panels = {"speed-up, 1": "times as fast", "macro_f1": "macro F1", "size MB": "MB", "peak MB": "MB of memory"}
        figure, places = plt.subplots(
            1, len(panels), figsize=(11, 1.2 + 0.32 * len(table)), sharey=True, layout="constrained"
        )
        for place, (column, title) in zip(places, panels.items(), strict=True):
            bars = place.barh(list(table.index), table[column], color=colours)
            place.bar_label(bars, fmt="%.3f" if column == "macro_f1" else "%.1f", fontsize=8, padding=2)
            place.set_xlabel(title, fontsize=9)
            place.margins(x=0.3)
            place.tick_params(labelsize=8)
        figure.suptitle(f"{self.test_clips} test clips of {self.corpus}; chosen: {self.chosen}", fontsize=10)
        return figure


@dataclass(frozen=True)
class Effort:
    """How much is measured.

    threads: cores for every measurement, PyTorch's too. seconds: how long each size of batch is timed. test_clips and
    calibration_clips: as many at most; None: all.
    """

    threads: int = 1
    seconds: float = 3.0
    test_clips: int | None = None
    calibration_clips: int | None = 64

    def __post_init__(self) -> None:
        """SpotterError names every value that cannot be used."""
        least = {"threads": 1, "seconds": 0, "test_clips": 1, "calibration_clips": 1}
        given = {name: getattr(self, name) for name in least}
        wrong = [
            f"{name.replace('_', ' ')} is {value}; allowed: {least[name]} and more"
            for name, value in given.items()
            if value is not None and value < least[name]
        ]
        if wrong:
            raise SpotterError("; ".join(wrong))


def quantise(
    model: str,
    out: Path,
    corpus: Corpus,
    choose: str = FIRST,
    effort: Effort | None = None,
    variants: Sequence[str] | None = None,
    trust_code: bool = False,
) -> Quantised:
    """Make, measure and compare variants, and write the chosen one as `export` would.

    Beside it lies the table: `quantise.txt`, `quantise.json` and `quantise.png`.

    Args:
        model: a saved model's folder or name on the Hub.
        out: the folder; it is made, and its files of these names are replaced at the end.
        corpus: measured on its test split, calibrated on its train split.
        choose: see `Choice.of`.
        effort: how much is measured.
        variants: of `VARIANTS`; None: all.
        trust_code: as in `load`.

    Raises:
        SpotterError: model, corpus or a name cannot be used. Why a single variant does not work is in the table.
    """
    require("onnx", *MODULES)
    effort, wanted = effort or Effort(), Choice.of(choose)
    names = tuple(VARIANTS) if variants is None else tuple(variants)
    if unknown := [name for name in names if name not in VARIANTS]:
        raise SpotterError(f"there is no variant {unknown[0]!r}; allowed: {', '.join(VARIANTS)}")
    spotter = load(model, trust_code)
    if not isinstance(spotter, TorchSpotter):
        raise SpotterError(f"{model} is an exported model already; give the saved model that it was made of")
    tested = clips_for(spotter, corpus, "test", effort.test_clips)
    calibration = clips_for(spotter, corpus, "train", effort.calibration_clips)
    with (
        tempfile.TemporaryDirectory() as folder,
        tqdm(total=len(names) + 3, unit="variant", disable=None, leave=False) as bar,
    ):
        scratch = Path(folder)
        sound = stored(tested, scratch / "sound.npy")
        job = Job(model, sound, spotter.sample_rate, effort.threads, effort.seconds, trust_code)
        bar.set_description("export")
        few = tested.read(range(min(CLIPS, len(tested))))
        graph = export(model, scratch, few, trust_code).path
        bar.update()
        batches = [calibration.read(numbers) for numbers in _batches(len(calibration))]
        files = {NONE: graph} | {name: scratch / f"{name}.onnx" for name in names}
        bar.set_description(EAGER)
        weights = sum(each.nbytes for each in spotter.classifier.state_dict().values())
        rows = [row_of(EAGER, in_own_process(job), tested.labels, weights)]
        bar.update()
        for name, file in files.items():
            bar.set_description(name)
            rows.append(tried(name, graph, file, batches, job, tested.labels))
            bar.update()
        chosen = wanted.among(rows).variant
        counts = (len(tested), len(calibration), effort.threads)
        result = Quantised(tuple(rows), chosen, choose, corpus.name, *counts)
        _write(result, out, files[chosen])
    return result


def tried(name: str, graph: Path, file: Path, batches: Sequence[Floats], job: Job, labels: Ids) -> Row:
    """A variant, made where it is one of `VARIANTS` and measured, or why not. labels: ids of the job's sound."""
    try:
        if name in VARIANTS:
            with silently():
                VARIANTS[name](graph, file, batches)
        return row_of(name, in_own_process(replace(job, model=str(file))), labels, file.stat().st_size)
    except Exception as error:  # whatever the library's tools raise: the others go on
        return Row(name, failed=reason(error))


def row_of(name: str, cost: Cost, labels: Ids, size: int) -> Row:
    """What a process has measured, with the scores of its answers."""
    scores = Evaluation(labels, cost.logits).scalars()
    return Row(name, {metric: scores[metric] for metric in METRICS.values()}, size, cost.latency, cost.peak)


def stored(clips: ClipSet, path: Path) -> Path:
    """Write waveforms where another process maps them: float32 (n, num_samples)."""
    shape = (len(clips), clips.format.num_samples)
    sound: Floats = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
        path, mode="w+", dtype=np.float32, shape=shape
    )
    for numbers in _batches(len(clips)):
        sound[numbers.start : numbers.stop] = clips.read(numbers)
    sound.flush()  # type: ignore[attr-defined]
    return path


def _write(result: Quantised, out: Path, chosen: Path) -> None:
    """The chosen graph with what lies beside an exported one, and the table. `chosen` lies where the export does."""
    out.mkdir(parents=True, exist_ok=True)
    for name in (LABELS, EXAMPLE):
        shutil.copyfile(chosen.with_name(name), out / name)
    shutil.copyfile(chosen, out / f".{EXPORTED}")
    (out / f".{EXPORTED}").replace(out / EXPORTED)
    (out / "quantise.txt").write_text(result.text() + "\n", encoding="utf-8")
    (out / "quantise.json").write_text(json.dumps(result.to_dict(), indent=2) + "\n", encoding="utf-8")
    figure = result.plot()
    figure.savefig(out / "quantise.png", dpi=120)
    plt.close(figure)


def _batches(count: int) -> list[range]:
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]
