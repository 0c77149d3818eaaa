"""What people would rather look at than read: curves, confusion, comparison, speakers, calibration."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kws.metrics import METRICS, Evaluation
from lab.comparison import Comparison
from lab.predictions import FEDERATED, Predictions
from lab.sounds import HOP_SECONDS, mel_spectrogram
from lab.tables import GLOBAL, POOLED, history, sites_of, validation
from shard_descriptors.clips.clip_set import ClipSet

MANY = 11
"""With more sites than this, curves show the sites' median and range instead of each site."""
OWN, AVERAGED = "tab:orange", "tab:blue"
STYLES = ("-", "--", ":")
COLOURS = {FEDERATED: AVERAGED, POOLED: OWN}


def curves(metrics: pd.DataFrame, metric: str = "accuracy") -> Figure:
    """Losses by round, and for every site its own model beside the averaged one, on the same validation speakers.

    The first panel has each site's training loss (its own model, on its training clips as they are changed) and the
    averaged model's validation loss at all sites: both are plain cross-entropy.
    """
    sites = sorted(sites_of(metrics), key=_by_number)
    shown = {site: [site] for site in sites} if len(sites) <= MANY else {f"{len(sites)} sites": sites}
    figure, places = _panels(1 + len(shown))
    _losses(places[0], metrics, sites)
    own, averaged = (history(metrics, task, metric) for task in ("validate_local", "validate_global"))
    for place, (title, among) in zip(places[1:], shown.items(), strict=True):
        _line(place, own.reindex(columns=among), color=OWN, marker=".", linewidth=1, label="its own model")
        _line(place, averaged.reindex(columns=among), color=AVERAGED, marker="o", markersize=3, label="averaged model")
        place.set_title(title, fontsize=10)
        place.set_ylabel(f"validation {METRICS[metric].title}", fontsize=8)
    _alike(places[1:], bounded=metric != "loss")
    for place in places:
        place.grid(alpha=0.3)
        place.set_xlabel("round", fontsize=8)
        place.tick_params(labelsize=8)
        place.xaxis.set_major_locator(MaxNLocator(integer=True))
    for place in places[:2]:
        if place.lines:
            place.legend(fontsize=7)
    return figure


def learning(trials: Sequence[pd.DataFrame], metric: str = "accuracy") -> Figure:
    """By round, the averaged model and each baseline on the validation speakers of all sites.

    trials: the metric lines of each seed. Of several, the line is their mean and the band their range. The federated
    and the pooled model have colours; what sites would have alone is grey.
    """
    names = dict.fromkeys(name for lines in trials for name in _validated(lines))
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    own = [name for name in names if name not in COLOURS]
    for place, name in enumerate(sorted(own, key=_by_number)):
        few = len(own) <= len(STYLES)
        label = name if few else "each site alone" if place == 0 else None
        curves_ = [validation(lines, name, metric) for lines in trials]
        _band(axes, curves_, label=label, color="darkgrey", linestyle=STYLES[place] if few else "-", linewidth=1)
    for name in (POOLED, FEDERATED):
        curves_ = [validation(lines, name, metric) for lines in trials if name in names]
        _band(axes, curves_, label=name, color=COLOURS[name], marker=".")
    return _by_round(figure, axes, metric, len(trials))


def runs(compared: Mapping[str, pd.DataFrame], metric: str = "accuracy") -> Figure:
    """By round, the averaged model of each of these runs (by name, their metric lines) on its validation speakers."""
    figure, axes = plt.subplots(figsize=(7.5, 3.6), layout="constrained")
    for place, (name, lines) in enumerate(compared.items()):
        _band(axes, [validation(lines, FEDERATED, metric)], label=name, color=f"C{place % 10}", marker=".")
    return _by_round(figure, axes, metric, 1)


def _validated(lines: pd.DataFrame) -> list[str]:
    """The models of which there is a validation on all sites' speakers: baselines by name, the average as federated."""
    return [FEDERATED, *lines["site"][lines["task"] == "validate"].unique()]


def _band(axes: Axes, curves_: Sequence[pd.Series], **style: Any) -> None:
    """The mean of some curves, and their range."""
    table = pd.concat(curves_, axis=1).dropna(how="all").sort_index() if curves_ else pd.DataFrame()
    if table.empty:
        return
    if table.shape[1] > 1:
        reach = table.min(axis=1), table.max(axis=1)
        axes.fill_between(table.index, *reach, color=style["color"], alpha=0.2, linewidth=0)
    axes.plot(table.index, table.mean(axis=1), **style)


def _by_number(name: str) -> list[Any]:
    """Sort key for which site_2 comes before site_10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _by_round(figure: Figure, axes: Axes, metric: str, seeds: int) -> Figure:
    axes.set_xlabel("round" if seeds == 1 else f"round; mean and range of {seeds} seeds")
    axes.set_ylabel(f"validation {METRICS[metric].title}")
    axes.set_ylim(0, 1.0 if metric != "loss" else None)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def sounds(clips: ClipSet, numbers: Sequence[int]) -> Figure:
    """Each of these clips as a waveform, and below it its mel spectrogram (`lab.sounds.mel_spectrogram`)."""
    from librosa.display import specshow

    rate = clips.format.sample_rate
    figure = plt.figure(figsize=(2.4 * max(len(numbers), 1), 3.6), layout="constrained")
    for place, (number, waveform) in enumerate(zip(numbers, clips.read(numbers), strict=True)):
        above = figure.add_subplot(2, len(numbers), place + 1)
        above.plot(np.arange(len(waveform)) / rate, waveform, linewidth=0.5, color=AVERAGED)
        above.set(ylim=(-1, 1), xlim=(0, len(waveform) / rate), title=clips.utterances[number].label)
        below = figure.add_subplot(2, len(numbers), len(numbers) + place + 1)
        hop = round(HOP_SECONDS * rate)
        specshow(mel_spectrogram(waveform, rate), sr=rate, hop_length=hop, x_axis="s", y_axis="mel", vmin=-60, ax=below)
        below.set(xlabel="seconds", ylabel="" if place else "Hz (mel scale)")
        for axes in (above, below):
            axes.tick_params(labelsize=7, labelleft=place == 0)
    return figure


def _panels(count: int) -> tuple[Figure, list[Axes]]:
    """So many panels, at most four in a row."""
    columns = min(count, 4)
    rows = -(-count // columns)
    figure = plt.figure(figsize=(3.3 * columns + 0.4, 2.6 * rows + 0.4), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, number + 1) for number in range(count)]


def _losses(place: Axes, metrics: pd.DataFrame, sites: Sequence[str]) -> None:
    trained = history(metrics, "train", "loss").reindex(columns=sites)
    if len(sites) <= MANY:
        for site in sites:
            place.plot(trained.index, trained[site], color=OWN, linewidth=1, alpha=0.6)
    else:
        _line(place, trained, color=OWN, marker=".", linewidth=1)
    validated = history(metrics, "validate_global", "loss").reindex(columns=[GLOBAL])
    _line(place, validated, color=AVERAGED, marker="o", markersize=3, label="averaged model, validation")
    if sites and place.lines:
        place.lines[0].set_label("each site's own, training")
    place.set_title("loss", fontsize=10)
    place.set_ylabel(METRICS["loss"].title, fontsize=8)
    place.set_ylim(bottom=0)


def _line(place: Axes, table: pd.DataFrame, **style: Any) -> None:
    """A line over the rounds; of several columns the median, with their range as a band."""
    table = table.dropna(how="all")
    if table.empty:
        return
    if table.shape[1] > 1:
        place.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=style["color"], alpha=0.15)
    place.plot(table.index, table.median(axis=1), **style)


def _alike(places: Sequence[Axes], bounded: bool) -> None:
    """One scale for all: 0 to 1, or from 0 to the highest of them."""
    top = 1.0 if bounded else max((place.get_ylim()[1] for place in places), default=1.0)
    for place in places:
        place.set_ylim(0, top)


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


def comparison(compared: Comparison, test: str, metric: str = "accuracy") -> Figure:
    """One metric of the federation and its baselines, with 95 % intervals; `test` says whose utterances they are."""
    figure, axes = plt.subplots(figsize=(7.5, 1.0 + 0.5 * len(compared.scores)), layout="constrained")
    for place, (model, scores) in enumerate(reversed(list(compared.scores.items()))):
        figure_of = scores[metric]
        reach = [[max(figure_of.value - figure_of.low, 0)], [max(figure_of.high - figure_of.value, 0)]]
        axes.barh(model, figure_of.value, xerr=reach, color=AVERAGED if model == FEDERATED else "tab:gray", capsize=3)
        axes.text(0.01, place, figure_of.text(), va="center", color="white")
    axes.set_title(f"On {test}", fontsize=9, wrap=True)
    axes.set_xlabel(f"test {METRICS[metric].title}; 95 % intervals over {compared.drawn}")
    if metric != "loss":
        axes.set_xlim(0, 1)
    return figure


def speakers(predictions: Predictions, metric: str = "accuracy") -> Figure:
    """One metric of every test speaker for every model, from the speaker that is most difficult for the first on.

    The federated and the pooled model have colours; what sites would have alone is grey.
    """
    table = predictions.by_speaker(metric)
    figure, axes = plt.subplots(figsize=(7.5, 3.2), layout="constrained")
    for model in predictions.evaluations:
        style: dict[str, Any] = {"color": "silver", "markersize": 4, "zorder": 2}
        if model in COLOURS:
            style = {"color": COLOURS[model], "markersize": 6 if model == FEDERATED else 4, "zorder": 3}
        axes.plot(range(1, len(table) + 1), table[model], marker="o", linestyle="", label=model, **style)
    axes.set(xlabel=f"{len(table)} test speakers", ylabel=METRICS[metric].title)
    if metric != "loss":
        axes.set_ylim(0, 1.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def calibration(evaluation: Evaluation) -> Figure:
    """How often answers are right, by the probability that the model gives them; above, how many answers there are."""
    table = evaluation.calibration()
    figure, (top, axes) = plt.subplots(
        2, 1, figsize=(4.2, 4.4), layout="constrained", sharex=True, height_ratios=(1, 3)
    )
    top.bar(table["confidence"], table["utterances"], width=0.05, color="tab:gray")
    top.set_ylabel("answers", fontsize=8)
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle="--", label="as often as it says")
    axes.plot(table["confidence"], table["accuracy"], color=AVERAGED, marker="o", label="the model")
    error = evaluation.scalars()["calibration_error"]
    axes.set(xlabel="probability of the answer", ylabel="share of right answers", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.legend(fontsize=8, title=f"calibration error {error:.3f}", title_fontsize=8)
    axes.grid(alpha=0.3)
    return figure


class LiveCurves:
    """The curves of a run, redrawn in one place of the notebook while it goes on."""

    def __init__(self, metric: str = "accuracy") -> None:
        from IPython.display import display

        self._metric = metric
        self._handle: Any = display(display_id=True)

    def update(self, metrics: pd.DataFrame) -> None:
        """Draw again."""
        figure = curves(metrics, self._metric)
        self._handle.update(figure)
        plt.close(figure)


def save(figure: Figure, folder: Path, name: str) -> Figure:
    """Write the figure as `<name>.png` into the run and return it, closed, so that a notebook shows it once."""
    figure.savefig(folder / f"{name}.png", dpi=120)
    plt.close(figure)
    return figure
