"""A saved model measured on recordings with known labels: every metric, by speaker or any column, and its mistakes."""

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import soundfile
from jinja2 import Environment, PackageLoader, select_autoescape

from kws.metrics import METRICS, Evaluation
from lab import plots
from lab.comparison import RESAMPLES, Interval, compare
from lab.predictions import FEDERATED, Predictions
from lab.product.spotter import BATCH, Spotter, SpotterError
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat, Corpus
from shard_descriptors.utterances import Utterance

NOBODY = "(nobody)"
"""The group of utterances of which the column is not known."""


@dataclass(frozen=True)
class Measured:
    """What came out.

    corpus, split: on what. clips: as the model heard them. predictions: under the name `lab.predictions.FEDERATED`.
    """

    corpus: str
    split: str
    clips: ClipSet
    predictions: Predictions

    @property
    def evaluation(self) -> Evaluation:
        """The answers."""
        return self.predictions.evaluations[FEDERATED]

    @property
    def labels(self) -> tuple[str, ...]:
        """The model's."""
        return self.predictions.labels

    def by(self, column: str) -> pd.DataFrame:
        """Utterances, accuracy and macro F1 of each value of a column (label, speaker, or what the source tells).

        The worst first.

        Raises:
            ValueError: no utterance has such a column; says which there are.
        """
        values = [utterance.column(column) for utterance in self.clips.utterances]
        if not any(value is not None for value in values):
            known = sorted({name for each in self.clips.utterances for name, _ in each.columns})
            raise ValueError(
                f"{self.corpus} has no column {column!r}; it has {', '.join(['label', 'speaker', *known])}"
            )
        groups = pd.Series([NOBODY if value is None else value for value in values])
        rows = {}
        for name, places in groups.groupby(groups).indices.items():
            scores = Evaluation(self.evaluation.labels[places], self.evaluation.logits[places]).scalars()
            rows[name] = {"utterances": len(places), "accuracy": scores["accuracy"], "macro_f1": scores["macro_f1"]}
        table = pd.DataFrame.from_dict(rows, orient="index").rename_axis(column)
        return table.sort_values(["accuracy", "utterances"], ascending=[True, False])

    def intervals(self, resamples: int = RESAMPLES) -> Mapping[str, Interval]:
        """Every metric with its 95 % interval (`lab.comparison`)."""
        return compare(self.predictions, resamples).scores[FEDERATED]

    def as_values(self, columns: Sequence[str] = (), resamples: int = RESAMPLES) -> dict[str, Any]:
        """Plain values, for JSON."""
        intervals = self.intervals(resamples)
        evaluation = self.evaluation
        return {
            "corpus": self.corpus,
            "split": self.split,
            "utterances": len(evaluation),
            "metrics": evaluation.scalars(),
            "intervals": {name: [each.low, each.high] for name, each in intervals.items()},
            "per_label": _plain(evaluation.per_label(self.labels)),
            "confusion": {"labels": list(self.labels), "counts": evaluation.confusion(self.labels).to_numpy().tolist()},
            "calibration": evaluation.calibration().reset_index().to_dict("records"),
            "by": {column: _plain(self.by(column)) for column in columns},
        }

    def save_plots(self, folder: Path) -> list[Path]:
        """Draw confusion, calibration, and speakers where they are known; returns the files.

        Raises:
            OSError: the folder cannot be written.
        """
        folder.mkdir(parents=True, exist_ok=True)
        drawn = {
            "confusion": plots.confusion(self.evaluation, self.labels),
            "calibration": plots.calibration(self.evaluation),
        }
        if any(speaker is not None for speaker in self.predictions.speakers):
            drawn["speakers"] = plots.speakers(self.predictions)
        for name, figure in drawn.items():
            figure.savefig(folder / f"{name}.png", dpi=150)
        return [folder / f"{name}.png" for name in drawn]


def evaluate(
    spotter: Spotter,
    corpus: Corpus,
    split: str = "test",
    batch: int = BATCH,
    progress: Callable[[int], None] = lambda clips: None,
) -> Measured:
    """Ask a model about a split of a corpus.

    progress: called with the number of clips of each batch.

    Raises:
        SpotterError: the corpus has labels that the model does not have.
        ValueError: the split is empty.
        AudioError: a recording cannot be read; names it.
    """
    utterances = [each for each in corpus.utterances if each.split == split]
    if not utterances:
        there = sorted({each.split for each in corpus.utterances})
        raise ValueError(f"{corpus.name} has no {split} utterances; it has {', '.join(there)}")
    if absent := sorted({each.label for each in utterances} - set(spotter.labels)):
        raise SpotterError(
            f"{corpus.name} has the labels {', '.join(absent)}, which the model has not; it has "
            f"{', '.join(spotter.labels)}"
        )
    if spotter.sample_rate != corpus.format.sample_rate:
        # The starts of clips within a recording are counted at the corpus' rate.
        factor = spotter.sample_rate / corpus.format.sample_rate
        utterances = [
            replace(
                each,
                start=round(each.start * factor),
                num_samples=each.num_samples and round(each.num_samples * factor),
            )
            for each in utterances
        ]
    clips = ClipSet(utterances, ClipFormat(spotter.labels, spotter.sample_rate, spotter.window))
    logits = []
    for first in range(0, len(clips), batch):
        numbers = np.arange(first, min(first + batch, len(clips)))
        logits.append(spotter.logits(clips.read(numbers)))
        progress(len(numbers))
    evaluation = Evaluation(clips.labels, np.concatenate(logits))
    predictions = Predictions.of({FEDERATED: evaluation}, utterances, spotter.labels)
    return Measured(corpus.name, split, clips, predictions)


def mistakes_page(measured: Measured, most: int = 50) -> str:
    """The most confident mistakes as an HTML page that needs nothing else: what was said, what was heard, a player."""
    evaluation = measured.evaluation
    wrong = np.flatnonzero(~evaluation.right)
    worst = wrong[np.argsort(-evaluation.confidences[wrong], kind="stable")][:most]
    rows = []
    for place in worst.tolist():
        utterance = measured.clips.utterances[place]
        rows.append(
            {
                "said": measured.labels[evaluation.labels[place]],
                "heard": measured.labels[evaluation.predictions[place]],
                "score": f"{evaluation.confidences[place]:.2f}",
                "name": utterance.name,
                "speaker": utterance.speaker or "",
                "sound": _wav(measured.clips.read(np.array([place]))[0], measured.clips.format.sample_rate),
            }
        )
    pages = Environment(loader=PackageLoader("lab.product"), autoescape=select_autoescape())
    return pages.get_template("mistakes.html").render(
        corpus=measured.corpus, split=measured.split, rows=rows, wrong=len(wrong), of=len(evaluation)
    )


def as_text(measured: Measured, columns: Sequence[str] = (), resamples: int = RESAMPLES) -> str:
    """The figures for people."""
    intervals = measured.intervals(resamples)
    lines = [f"{len(measured.predictions)} {measured.split} utterances of {measured.corpus}\n"]
    lines += [f"{metric.title:<28} {intervals[name].text()}" for name, metric in METRICS.items()]
    lines += ["", measured.evaluation.per_label(measured.labels).to_string(float_format="{:.3f}".format)]
    for column in columns:
        lines += ["", measured.by(column).to_string(float_format="{:.3f}".format)]
    return "\n".join(lines)


def _at_rate(utterance: Utterance, factor: float) -> Utterance:
    """The same clip, counted at another rate."""
    length = utterance.num_samples and round(utterance.num_samples * factor)
    return replace(utterance, start=round(utterance.start * factor), num_samples=length)


def _plain(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    told: dict[str, dict[str, float]] = {
        str(name): {column: float(value) for column, value in row.items()} for name, row in table.iterrows()
    }
    return told


def _wav(waveform: np.ndarray, rate: int) -> str:
    sound = io.BytesIO()
    soundfile.write(sound, waveform, rate, format="WAV", subtype="PCM_16")
    return base64.b64encode(sound.getvalue()).decode("ascii")
