"""How well a model does on a set of utterances, from its logits.

A metric is one entry of `METRICS`. It is a score of sums (`rules.scores`), so that what the sites send is counts, and
their federated value is that of one evaluation of all their utterances.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from rules.scores import SUM, Score

if TYPE_CHECKING:  # a site that evaluates needs no tables
    import pandas as pd

BINS = 15
"""Of equal width, for the calibration (Guo et al. 2017, section 2)."""


@dataclass(frozen=True)
class Metric:
    """One entry of the table.

    title: what plots call it. score: how it is made of sums. direction: "max" where larger is better, or "min".
    every_round: whether the tables and lines of each round show it, or only the comparison of final models.
    """

    title: str
    score: Score
    direction: str = "max"
    every_round: bool = True

    def better(self, one: float, other: float) -> bool:
        """Whether one value is better than the other, or as good."""
        return one >= other if self.direction == "max" else one <= other


METRICS: dict[str, Metric] = {
    "loss": Metric("cross-entropy (nats)", Score("ratio", {"loss": 1}, {"true": 1}), "min"),
    "accuracy": Metric("accuracy", Score("ratio", {"right": 1}, {"true": 1})),
    "macro_f1": Metric("macro F1", Score("mean", {"right": 2}, {"true": 1, "answered": 1}, among="true")),
    "mean_iou": Metric(
        "mean IoU",
        Score("mean", {"right": 1}, {"true": 1, "answered": 1, "right": -1}, among="true"),
        every_round=False,
    ),
    "worst_recall": Metric("recall of the worst label", Score("least", {"right": 1}, {"true": 1}), every_round=False),
    "calibration_error": Metric(
        "expected calibration error",
        Score("gaps", {"confidence": 1, "hits": -1}, {"true": 1}),
        "min",
        every_round=False,
    ),
}
"""Every metric by name. Means over labels are over those that occur in the set.

The sums, each over the utterances that it concerns: `loss`; by label (its id) `true`, `answered` with it, and `right`;
by bin of confidence (probability of the answer) `confidence` and `hits` (right answers).
"""


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model on n utterances; evaluations of disjoint sets merge into that of their union.

    labels: int64 (n,), label ids. logits: float32 (n, num_labels), unnormalised log probabilities.

    Raises:
        ValueError: other shapes, or a label that has no logit.
    """

    labels: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]

    def __post_init__(self) -> None:
        shape = self.logits.shape
        if len(shape) != 2 or self.labels.shape != shape[:1]:
            raise ValueError(f"labels {self.labels.shape} and logits {shape}; needed are (n,) and (n, num_labels)")
        if len(self.labels) and not 0 <= self.labels.min() <= self.labels.max() < shape[1]:
            raise ValueError(f"labels from {self.labels.min()} to {self.labels.max()}, and {shape[1]} logits")

    def __len__(self) -> int:
        return len(self.labels)

    @cached_property
    def predictions(self) -> npt.NDArray[np.int64]:
        """The answers: int64 (n,), label ids."""
        answers: npt.NDArray[np.int64] = self.logits.argmax(axis=1)
        return answers

    @cached_property
    def log_probabilities(self) -> npt.NDArray[np.float64]:
        """Natural logarithms: float64 (n, num_labels)."""
        shifted = self.logits.astype(np.float64) - self.logits.max(axis=1, keepdims=True)
        normalised: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return normalised

    @property
    def losses(self) -> npt.NDArray[np.float64]:
        """The cross-entropy of each utterance: float64 (n,), nats."""
        return -np.take_along_axis(self.log_probabilities, self.labels[:, None], axis=1)[:, 0]

    @property
    def confidences(self) -> npt.NDArray[np.float64]:
        """The probability of each answer: float64 (n,), above 0, up to 1."""
        return np.exp(np.take_along_axis(self.log_probabilities, self.predictions[:, None], axis=1)[:, 0])

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which answers are right: bool (n,)."""
        return np.equal(self.labels, self.predictions)

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats."""
        return self.scalars()["loss"]

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return self.scalars()["accuracy"]

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the labels that occur in the set, 0 to 1."""
        return self.scalars()["macro_f1"]

    def scalars(self) -> dict[str, float]:
        """Every metric by name; NaN for an evaluation of nothing."""
        sums = self.sums()
        return {name: float(metric.score.of(sums)) for name, metric in METRICS.items()}

    def sums(self) -> dict[str, float]:
        """What the metrics are made of, without the zeros (see `METRICS`): all that a site tells of its clips."""
        units, values = self.sums_by(np.zeros(len(self), np.int64), 1)
        return {name: float(value) for name, value in zip(units, values[0], strict=True) if value}

    def sums_by(self, unit: npt.NDArray[np.int64], units: int) -> tuple[list[str], npt.NDArray[np.float64]]:
        """The same sums for each unit of the utterances, a speaker say.

        Args:
            unit: int64 (n,), each utterance's unit, from 0.
            units: how many there are.

        Returns:
            The sums' names, and their values: float64 (units, names).
        """
        labels, bins, right = self.logits.shape[1], self._bins, self.right.astype(np.float64)
        names, columns = [f"{SUM}loss"], [np.bincount(unit, self.losses, units)[:, None]]
        for name, group, groups, weights in (
            ("true", self.labels, labels, None),
            ("answered", self.predictions, labels, None),
            ("right", self.labels, labels, right),
            ("confidence", bins, BINS, self.confidences),
            ("hits", bins, BINS, right),
        ):
            names += [f"{SUM}{name}/{number}" for number in range(groups)]
            columns.append(np.bincount(unit * groups + group, weights, units * groups).reshape(units, groups))
        return names, np.hstack(columns).astype(np.float64)

    def merge(self, other: "Evaluation") -> "Evaluation":
        """The evaluation of both sets together."""
        return Evaluation(
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.logits, other.logits]),
        )

    def confusion(self, names: Sequence[str]) -> "pd.DataFrame":
        """Counts, true label by row and answer by column."""
        import pandas as pd
        from sklearn.metrics import confusion_matrix

        counts = confusion_matrix(self.labels, self.predictions, labels=range(len(names)))
        return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="answered"))

    def per_label(self, names: Sequence[str]) -> "pd.DataFrame":
        """Precision, recall, F1, IoU (Jaccard) and number of utterances of every label."""
        return per_label(self.sums(), names)

    def calibration(self) -> "pd.DataFrame":
        """By bin of confidence: utterances, mean confidence and accuracy, of the bins that are not empty."""
        import pandas as pd

        answers = pd.DataFrame(
            {"bin": self._bins, "confidence": self.confidences, "accuracy": self.right.astype(float)}
        )
        table = answers.groupby("bin").mean()
        table.insert(0, "utterances", answers.groupby("bin").size())
        return table

    @property
    def _bins(self) -> npt.NDArray[np.int64]:
        known = np.nan_to_num(self.confidences)  # of a model that has diverged: its loss tells
        return np.minimum((known * BINS).astype(np.int64), BINS - 1)


def per_label(sums: Mapping[str, float], names: Sequence[str]) -> "pd.DataFrame":
    """Precision, recall, F1, IoU (Jaccard) and number of utterances of every label, from sums as `Evaluation.sums`.

    Those that have nothing to divide by are 0, as in scikit-learn with `zero_division=0`.
    """
    import pandas as pd

    true, answered, right = (
        np.array([sums.get(f"{SUM}{name}/{number}", 0.0) for number in range(len(names))])
        for name in ("true", "answered", "right")
    )
    scores = {
        "precision": (right, answered),
        "recall": (right, true),
        "f1": (2 * right, true + answered),
        "iou": (right, true + answered - right),
    }
    columns = {name: top / np.maximum(bottom, 1) for name, (top, bottom) in scores.items()}
    return pd.DataFrame(columns | {"utterances": true.astype(np.int64)}, index=pd.Index(names, name="label"))
