from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import small_network  # noqa: F401 (no window opens)
from answers import answered, predictions
from matplotlib.axes import Axes

from kws.metrics import METRICS, Evaluation, Metric
from lab import plots
from lab.comparison import compare
from lab.records import Run
from lab.sounds import mel_spectrogram, one_of_each
from lab.tables import GLOBAL
from rules.scores import Score
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.sources.speech_commands import load


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def recorded(folder: Path, sites: list[str], rounds: int = 3) -> Run:
    """A run in which site number i of round n has an own accuracy of (n + i / 100) / 10, averaged 0.1 more."""
    run = Run.create(folder)
    run.add_metric(0, GLOBAL, "validate_global", "loss", 2.5)
    for number in range(1, rounds + 1):
        for place, site in enumerate(sites):
            value = (number + place / 100) / 10
            run.add_metric(number, site, "train", "loss", 2 / number)
            for metric in ("accuracy", "macro_f1"):
                run.add_metric(number, site, "validate_local", metric, value)
                run.add_metric(number, site, "validate_global", metric, value + 0.1)
        run.add_metric(number, GLOBAL, "validate_global", "loss", 2.5 / number)
        run.add_metric(number, GLOBAL, "validate_local", "accuracy", 0.0)
        run.add_metric(number, "pooled", "train", "loss", 9.0)  # a baseline is no site
    return run


def lines(axes: Axes) -> dict[str, dict[float, float]]:
    """By label, height by place."""
    return {line.get_label(): dict(line.get_xydata().tolist()) for line in axes.lines}


def test_curves_show_each_sites_own_model_and_the_average_on_the_same_speakers(tmp_path: Path) -> None:
    losses, north, south = plots.curves(recorded(tmp_path, ["south", "north"]).metrics(), "macro_f1").axes
    assert (north.get_title(), south.get_title()) == ("north", "south")
    assert lines(south) == {
        "its own model": pytest.approx({1: 0.1, 2: 0.2, 3: 0.3}),
        "averaged model": pytest.approx({1: 0.2, 2: 0.3, 3: 0.4}),
    }
    assert lines(north)["its own model"] == pytest.approx({1: 0.101, 2: 0.201, 3: 0.301})
    assert north.get_ylabel() == "validation macro F1"
    assert north.get_ylim() == south.get_ylim() == (0, 1)
    assert lines(losses)["averaged model, validation"] == pytest.approx({0: 2.5, 1: 2.5, 2: 1.25, 3: 2.5 / 3})
    assert [list(line.get_xydata()[:, 1]) for line in losses.lines[:2]] == [pytest.approx([2, 1, 2 / 3])] * 2
    assert len(losses.lines) == 3
    assert losses.get_ylabel() == "cross-entropy (nats)"


def test_curves_of_ten_sites_and_of_a_hundred_can_be_read(tmp_path: Path) -> None:
    ten = plots.curves(recorded(tmp_path / "a", [f"site{number}" for number in range(1, 11)]).metrics())
    assert len(ten.axes) == 11
    assert [axes.get_title() for axes in ten.axes[1:]] == [f"site{number}" for number in range(1, 11)]
    assert len({tuple(axes.get_subplotspec().get_position(ten).bounds) for axes in ten.axes}) == 11
    hundred = plots.curves(recorded(tmp_path / "b", [f"site{number}" for number in range(100)]).metrics())
    losses, everyone = hundred.axes
    assert everyone.get_title() == "100 sites"
    assert lines(everyone)["its own model"] == pytest.approx({1: 0.1495, 2: 0.2495, 3: 0.3495})  # their median
    bands = [path.vertices for band in everyone.collections for path in band.get_paths()]
    assert [band[:, 1].min() for band in bands] == pytest.approx([0.1, 0.2])
    assert [band[:, 1].max() for band in bands] == pytest.approx([0.399, 0.499])
    assert len(losses.lines) == 2


def test_curves_of_a_loss_have_one_scale(tmp_path: Path) -> None:
    run = recorded(tmp_path, ["north", "south"])
    for site, value in (("north", 1.0), ("south", 3.0)):
        run.add_metric(1, site, "validate_global", "loss", value)
    _, north, south = plots.curves(run.metrics(), "loss").axes
    assert north.get_ylim() == south.get_ylim()
    assert north.get_ylim()[0] == 0
    assert north.get_ylim()[1] > 3


def test_a_metric_of_one_entry_is_plotted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recall = Metric("balanced accuracy", Score("mean", {"right": 1}, {"true": 1}))
    monkeypatch.setitem(METRICS, "balanced_accuracy", recall)
    run = Run.create(tmp_path)
    evaluation = answered(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1], bool))
    run.add_metrics(1, "north", "validate_global", evaluation.scalars())
    _, north = plots.curves(run.metrics(), "balanced_accuracy").axes
    assert lines(north) == {"averaged model": pytest.approx({1: (2 / 3 + 1) / 2})}
    some = predictions(np.random.default_rng(0))
    axes = plots.comparison(compare(some, 100), "somebody", "balanced_accuracy").axes[0]
    assert "test balanced accuracy" in axes.get_xlabel()
    assert plots.speakers(some, "balanced_accuracy").axes[0].get_ylabel() == "balanced accuracy"


def test_curves_before_anything_is_measured(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.metrics_path.touch()
    assert all(not axes.lines for axes in plots.curves(run.metrics()).axes)
    run.add_metric(1, "north", "train", "loss", 1.0)
    plots.curves(run.metrics())


def test_several_seeds_are_a_mean_with_its_range(tmp_path: Path) -> None:
    trials = []
    for seed, more in enumerate((0.0, 0.1, 0.2)):
        run = Run.create(tmp_path / str(seed))
        for number in (0, 1):
            run.add_metric(number, GLOBAL, "validate_global", "accuracy", 0.2 * number + more)
            run.add_metric(number, "pooled", "validate", "accuracy", 0.5 + 0.1 * number)
            run.add_metric(number, "north alone", "validate", "accuracy", 0.4)
        trials.append(run.metrics())
    axes = plots.learning(trials).axes[0]
    shown = lines(axes)
    assert set(shown) == {"federated", "pooled", "north alone"}
    assert shown["federated"] == pytest.approx({0: 0.1, 1: 0.3})
    assert shown["pooled"] == pytest.approx({0: 0.5, 1: 0.6})
    band = axes.collections[-1].get_paths()[0].vertices  # the federated one lies above the others
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.0, 0.4))
    assert axes.get_xlabel() == "round; mean and range of 3 seeds"
    alone = plots.learning(trials[:1]).axes[0]
    assert (alone.get_xlabel(), len(alone.collections)) == ("round", 0)


def test_many_sites_alone_are_one_entry_of_the_legend(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    for number in range(10):
        run.add_metric(1, f"site_{number} alone", "validate", "accuracy", number / 10)
    axes = plots.learning([run.metrics()]).axes[0]
    assert len(axes.lines) == 10
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["each site alone"]


def test_runs_beside_each_other(tmp_path: Path) -> None:
    runs = {name: recorded(tmp_path / name, ["north"]) for name in ("one", "two")}
    for run in runs.values():
        run.add_metric(1, GLOBAL, "validate_global", "accuracy", 0.5)
    shown = lines(plots.runs({name: run.metrics() for name, run in runs.items()}).axes[0])
    assert shown == {"one": {1: 0.5}, "two": {1: 0.5}}
    assert not plots.runs({}).axes[0].lines


def test_a_clip_is_a_waveform_over_its_spectrogram(tiny_corpus: Path) -> None:
    corpus = load(tiny_corpus)
    clips = ClipSet(one_of_each(corpus, ("yes", "no", "_silence_")), corpus.format)
    figure = plots.sounds(clips, range(len(clips)))
    assert len(figure.axes) == 6
    above, below = figure.axes[2:4]
    assert above.get_title() == "no"
    assert above.lines[0].get_ydata() == pytest.approx(clips.read([1])[0])
    assert below.collections[0].get_array().shape[-2:] == mel_spectrogram(clips.read([1])[0], 16_000).shape
    figure.canvas.draw()


def test_confusion_colours_shares_and_writes_counts() -> None:
    answers = np.eye(3, dtype=np.float32)[[0, 0, 0, 1, 1]]
    evaluation = Evaluation(np.array([0, 0, 0, 0, 1]), answers)
    axes = plots.confusion(evaluation, ("yes", "no", "up")).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "3", (0, 1): "1", (1, 1): "1"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["yes", "no", "up"]
    assert "0.800" in axes.get_title()


def test_comparison_shows_figures_with_their_intervals() -> None:
    some = predictions(np.random.default_rng(0))
    compared = compare(some, 200)
    axes = plots.comparison(compared, "28 speakers that no site trained on").axes[0]
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    names = dict(zip(axes.get_yticks(), [tick.get_text() for tick in axes.get_yticklabels()], strict=True))
    accuracies = {model: evaluation.accuracy for model, evaluation in some.evaluations.items()}
    assert {names[round(place)]: width for place, width in widths.items()} == pytest.approx(accuracies)
    segments = [path for group in axes.collections for path in group.get_segments()]
    ends = np.array(sorted((start[0], end[0]) for start, end in segments))
    intervals = [found["accuracy"] for found in compared.scores.values()]
    assert ends == pytest.approx(np.array(sorted((each.low, each.high) for each in intervals)))
    assert {text.get_text() for text in axes.texts} == {each.text() for each in intervals}
    assert axes.get_title() == "On 28 speakers that no site trained on"
    assert "intervals over 28 speakers and 50 clips of nobody" in axes.get_xlabel()


def test_speakers_are_shown_from_the_most_difficult_on() -> None:
    some = predictions(np.random.default_rng(0))
    shown = lines(plots.speakers(some).axes[0])
    assert shown.keys() == {"federated", "pooled"}
    heights = list(shown["federated"].values())
    assert heights == sorted(heights)
    assert len(heights) == 28
    assert heights == pytest.approx(list(some.by_speaker()["federated"]))


def test_calibration_shows_what_the_error_is_made_of() -> None:
    evaluation = predictions(np.random.default_rng(0)).evaluations["federated"]
    top, axes = plots.calibration(evaluation).axes
    table = evaluation.calibration()
    assert lines(axes)["the model"] == pytest.approx(dict(zip(table["confidence"], table["accuracy"], strict=True)))
    assert [bar.get_height() for bar in top.patches] == list(table["utterances"])
    error = evaluation.scalars()["calibration_error"]
    assert axes.get_legend().get_title().get_text() == f"calibration error {error:.3f}"


def test_save_writes_a_picture(tmp_path: Path) -> None:
    figure = plt.figure()
    assert plots.save(figure, tmp_path, "curves") is figure
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
