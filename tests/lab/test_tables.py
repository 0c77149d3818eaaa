from pathlib import Path

import pandas as pd
import pytest

from lab.records import Run
from lab.tables import SCORES, history, results, rounds


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Two rounds of two sites; the value of a metric tells where it belongs."""
    run = Run.create(tmp_path)
    for number in (1, 2):
        for place, site in enumerate(("south", "north"), start=1):
            run.add_metrics(number, site, "train", {"loss": number + place / 10, "accuracy": 0.0})
            run.add_metrics(number, site, "validate_local", scores(100 * number + 10 * place))
        run.add_metrics(number, "aggregator", "validate_local", scores(-1))
        run.add_metrics(number, "aggregator", "validate_global", scores(100 * number))
    return run


def scores(value: float) -> dict[str, float]:
    return {score: value + place for place, score in enumerate(SCORES)}


def test_history_is_rounds_by_sites(run: Run) -> None:
    table = history(run.metrics(), "train", "loss")
    expected = pd.DataFrame({"north": [1.2, 2.2], "south": [1.1, 2.1]}, index=[1, 2])
    pd.testing.assert_frame_equal(table, expected, check_names=False)
    run.add_metric(2, "north", "train", "loss", 9.0)  # a round that was repeated: the later line holds
    assert history(run.metrics(), "train", "loss").loc[2, "north"] == 9.0


def test_rounds_by_site_and_for_the_average(run: Run) -> None:
    table = rounds(run.metrics())
    assert list(table.columns) == [(site, score) for site in ("north", "south", "average") for score in SCORES]
    assert list(table.index) == [1, 2]
    assert list(table["north", "loss"]) == [120, 220]
    assert list(table["south", "accuracy"]) == [111, 211]
    assert list(table["average", "macro_f1"]) == [102, 202]


def test_rounds_of_a_run_that_was_stopped(run: Run) -> None:
    metrics = run.metrics()
    first_site_only = metrics[(metrics["site"] == "north") & (metrics["round"] == 1)]
    table = rounds(first_site_only)
    assert list(table["north", "loss"]) == [120]
    assert table["average", "loss"].isna().all()
    assert rounds(metrics[:0]).empty


def test_results_and_the_share_of_the_pooled() -> None:
    test = {
        "federated": {"loss": 0.5, "accuracy": 0.6, "macro_f1": 0.5},
        "pooled": {"loss": 0.4, "accuracy": 0.8, "macro_f1": 0.7},
    }
    table = results({"test": test})
    assert list(table.index) == ["federated", "pooled"]
    assert table.loc["federated", "of pooled"] == pytest.approx(0.75)
    assert table.loc["pooled", "of pooled"] == 1
    alone = results({"test": {"federated": test["federated"]}})
    assert list(alone.columns) == list(SCORES)
    assert alone.loc["federated", "accuracy"] == 0.6
