"""What people would rather look at than read: curves, confusion, comparison."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kws.metrics import Evaluation
from lab.tables import GLOBAL, history


def curves(metrics: pd.DataFrame) -> Figure:
    """Training loss of every site, and validation accuracy of every site's own and of the averaged model, by round."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 3.6), layout="constrained")
    for axes, task, metric, note in (
        (left, "train", "loss", ""),
        (right, "validate_local", "accuracy", ", before averaging"),
    ):
        table = history(metrics, task, metric)
        for site in table.columns.drop(GLOBAL, errors="ignore"):
            axes.plot(table.index, table[site], marker=".", linewidth=1, label=f"{site}{note}")
    average = history(metrics, "validate_global", "accuracy")
    if GLOBAL in average:
        right.plot(average.index, average[GLOBAL], marker="o", color="black", label="averaged model")
    left.set(xlabel="round", ylabel="training loss (nats)")
    right.set(xlabel="round", ylabel="validation accuracy", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if axes.lines:
            axes.legend(fontsize=8)
    return figure


def confusion(evaluation: Evaluation, labels: tuple[str, ...]) -> Figure:
    """Confusion matrix: the share of each true label's utterances by answer; the cells hold counts."""
    counts = evaluation.confusion(labels).to_numpy()
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(7, 6), layout="constrained")
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in zip(*np.nonzero(counts), strict=True):
        colour = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(counts[row, column]), ha="center", va="center", fontsize=8, color=colour)
    axes.set_xticks(range(len(labels)), labels, rotation=60)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(
        xlabel="answered",
        ylabel="true label",
        title=f"accuracy {evaluation.accuracy:.3f}, macro F1 {evaluation.macro_f1:.3f}",
    )
    figure.colorbar(image, ax=axes, shrink=0.8, label="share of the true label")
    return figure


def comparison(evaluations: Mapping[str, Evaluation]) -> Figure:
    """Test accuracy of the federation and its baselines, with 95 % intervals over the test utterances (normal)."""
    figure, axes = plt.subplots(figsize=(7, 0.6 + 0.5 * len(evaluations)), layout="constrained")
    for place, (name, evaluation) in enumerate(reversed(list(evaluations.items()))):
        accuracy = evaluation.accuracy
        margin = 1.96 * np.sqrt(accuracy * (1 - accuracy) / len(evaluation.labels))
        axes.barh(name, accuracy, xerr=margin, color="tab:blue" if name == "federated" else "tab:gray", capsize=3)
        axes.text(0.01, place, f"{accuracy:.3f}", va="center", color="white")
    axes.set(xlabel="test accuracy on speakers that no site trained on", xlim=(0, 1))
    return figure


class LiveCurves:
    """The curves of a run, redrawn in one place of the notebook while it goes on."""

    def __init__(self, every: float = 2.0) -> None:
        from IPython.display import display

        self._every = every
        self._drawn = 0.0
        self._handle: Any = display(display_id=True)

    def update(self, metrics: pd.DataFrame, now: bool = False) -> None:
        """Draw again, at most every few seconds unless `now`."""
        if now or time.monotonic() - self._drawn > self._every:
            figure = curves(metrics)
            self._handle.update(figure)
            plt.close(figure)
            self._drawn = time.monotonic()


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write the figure as `<name>.png` into the run and return it, closed, so that a notebook shows it once."""
    figure.savefig(folder / f"{name}.png", dpi=120)
    plt.close(figure)
    return figure
