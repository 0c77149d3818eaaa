from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
import small_network  # noqa: F401 (no window opens)

from kws.metrics import Evaluation
from lab import plots
from lab.records import Run


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    yield
    plt.close("all")


def test_curves_show_every_site_and_the_average(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    for number in (1, 2):
        for site, value in (("north", 0.1), ("south", 0.2)):
            run.add_metric(number, site, "train", "loss", value * number)
            run.add_metric(number, site, "validate_local", "accuracy", value + number / 10)
        run.add_metric(number, "aggregator", "validate_global", "accuracy", 0.5 + number / 10)
    left, right = plots.curves(run.metrics()).axes
    losses = {line.get_label(): list(line.get_xydata()[:, 1]) for line in left.lines}
    assert losses == {"north": pytest.approx([0.1, 0.2]), "south": pytest.approx([0.2, 0.4])}
    scores = {line.get_label(): list(line.get_xydata()[:, 1]) for line in right.lines}
    assert scores == {
        "north, before averaging": pytest.approx([0.2, 0.3]),
        "south, before averaging": pytest.approx([0.3, 0.4]),
        "averaged model": pytest.approx([0.6, 0.7]),
    }
    assert all(list(line.get_xydata()[:, 0]) == [1, 2] for line in (*left.lines, *right.lines))
    assert "loss" in left.get_ylabel()
    assert "accuracy" in right.get_ylabel()


def test_curves_before_anything_is_measured(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.metrics_path.touch()
    assert all(not axes.lines for axes in plots.curves(run.metrics()).axes)


def test_confusion_colours_shares_and_writes_counts() -> None:
    evaluation = Evaluation(np.array([0, 0, 0, 0, 1]), np.array([0, 0, 0, 1, 1]), 0.1)
    axes = plots.confusion(evaluation, ("yes", "no", "up")).axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[0.75, 0.25, 0], [0, 1, 0], [0, 0, 0]])
    written = {(round(text.get_position()[1]), round(text.get_position()[0])): text.get_text() for text in axes.texts}
    assert written == {(0, 0): "3", (0, 1): "1", (1, 1): "1"}
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["yes", "no", "up"]
    assert "0.800" in axes.get_title()


def test_comparison_shows_accuracies_with_their_intervals() -> None:
    labels = np.zeros(100, np.int64)
    half, most = (Evaluation(labels, (np.arange(100) >= right).astype(np.int64), 1.0) for right in (50, 90))
    axes = plots.comparison({"federated": half, "pooled": most}).axes[0]
    widths = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in axes.patches}
    names = dict(zip(axes.get_yticks(), [tick.get_text() for tick in axes.get_yticklabels()], strict=True))
    assert {names[round(place)]: width for place, width in widths.items()} == {"federated": 0.5, "pooled": 0.9}
    segments = [path for group in axes.collections for path in group.get_segments()]
    assert sorted((end[0] - start[0]) / 2 for start, end in segments) == pytest.approx(
        [1.96 * 0.3 / 10, 1.96 * 0.5 / 10]
    )


def test_save_writes_a_picture(tmp_path: Path) -> None:
    figure = plt.figure()
    assert plots.save(figure, tmp_path, "curves") is figure
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")
