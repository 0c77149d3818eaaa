"""How well a model does on a set of utterances, from its answers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support


@dataclass(frozen=True)
class Evaluation:
    """The answers of a model on n utterances.

    labels, predictions: int64 (n,), label ids. loss: mean cross-entropy in nats. Two evaluations of disjoint sets merge
    into the evaluation of their union.
    """

    labels: np.ndarray
    predictions: np.ndarray
    loss: float

    @property
    def accuracy(self) -> float:
        """Share of right answers, 0 to 1."""
        return float(np.mean(self.labels == self.predictions))

    @property
    def macro_f1(self) -> float:
        """Mean F1 over the labels that occur in the set, 0 to 1."""
        present = np.unique(self.labels)
        return float(f1_score(self.labels, self.predictions, labels=present, average="macro", zero_division=0.0))

    def scalars(self) -> dict[str, float]:
        """Loss, accuracy and macro F1 by name."""
        return {"loss": self.loss, "accuracy": self.accuracy, "macro_f1": self.macro_f1}

    def merge(self, other: "Evaluation") -> "Evaluation":
        """The evaluation of both sets together."""
        count, more = len(self.labels), len(other.labels)
        return Evaluation(
            np.concatenate([self.labels, other.labels]),
            np.concatenate([self.predictions, other.predictions]),
            (self.loss * count + other.loss * more) / (count + more),
        )

    def confusion(self, names: Sequence[str]) -> pd.DataFrame:
        """Counts, true label by row and answer by column."""
        counts = confusion_matrix(self.labels, self.predictions, labels=range(len(names)))
        return pd.DataFrame(counts, index=pd.Index(names, name="true"), columns=pd.Index(names, name="answered"))

    def per_label(self, names: Sequence[str]) -> pd.DataFrame:
        """Precision, recall, F1 and number of utterances of every label."""
        scores = precision_recall_fscore_support(
            self.labels, self.predictions, labels=range(len(names)), zero_division=0.0
        )
        return pd.DataFrame(
            dict(zip(("precision", "recall", "f1", "utterances"), scores, strict=True)),
            index=pd.Index(names, name="label"),
        )
