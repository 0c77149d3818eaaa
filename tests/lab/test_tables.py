from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from answers import LABELS, answered, predictions

from kws.metrics import METRICS, Metric
from lab.records import Run, finished
from lab.session import figures
from lab.tables import (
    best_validation,
    budget,
    by_site,
    compared,
    history,
    rehearsed,
    results,
    rounds,
    shown_each_round,
    sites_of,
    validation_by_label,
    work,
    work_by_site,
)
from rules.scores import Score

SCORES = ("loss", "accuracy", "macro_f1")


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


def test_the_best_round_is_told_by_a_metric_and_its_direction(run: Run) -> None:
    for number, (loss, accuracy) in enumerate([(3.0, 0.5), (1.0, 0.4), (2.0, 0.5)], start=1):
        run.add_metrics(
            number, "aggregator", "validate_global", {"loss": loss, "accuracy": accuracy, "sum/true/0": 7.0}
        )
    metrics = run.metrics()
    assert best_validation(metrics, "loss") == {"round": 2, "loss": 1.0, "accuracy": 0.4, "macro_f1": 202.0}
    assert best_validation(metrics, "accuracy") == {"round": 3, "loss": 2.0, "accuracy": 0.5}, "of equals the last"
    assert best_validation(metrics[:0], "loss") == {}


def test_sites_are_who_has_validated(run: Run) -> None:
    run.add_metric(1, "pooled", "train", "loss", 1.0)
    assert sites_of(run.metrics()) == ["north", "south"]


def test_the_sites_validation_by_label(run: Run) -> None:
    parts = [answered(np.array([0, 0, 1]), np.array([1, 0, 1], bool)), answered(np.array([2]), np.array([1], bool))]
    whole = parts[0].merge(parts[1])
    run.add_metrics(2, "aggregator", "validate_global", whole.sums())
    table = validation_by_label(run.metrics(), 2, LABELS)
    assert table.equals(whole.per_label(LABELS))
    assert table.loc["no"].to_dict() == pytest.approx(
        {"precision": 0.5, "recall": 1.0, "f1": 2 / 3, "iou": 0.5, "utterances": 1}
    )


def test_results_have_intervals_and_the_difference_to_each() -> None:
    some = predictions(np.random.default_rng(0), models=("federated", "pooled", "envoy alone"))
    summary = figures(some, "macro_f1", ["envoy"])
    table = results(summary)
    assert list(table.index) == ["federated", "pooled", "envoy alone"]
    assert [name for name in table.columns if name in METRICS] == list(METRICS)
    low, high = summary["intervals"]["pooled"]["accuracy"]
    value = some.evaluations["pooled"].accuracy
    assert table.loc["pooled", "accuracy"] == f"{value:.2f} [{low:.2f}, {high:.2f}]"
    assert low < value < high
    differences = table["federated minus it (macro_f1)"]
    assert differences["federated"] == ""
    value, low, high = summary["differences"]["pooled"]["macro_f1"]
    assert value == pytest.approx(some.evaluations["federated"].macro_f1 - some.evaluations["pooled"].macro_f1)
    assert differences["pooled"] == f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"
    assert table.loc["federated", "worst speaker"] == f"{some.by_speaker()['federated'].min():.2f}"
    assert [name for name in results(summary, every=False).columns if name in METRICS] == list(SCORES)


def cost(run: Run, number: int, site: str, steps: float, samples: float) -> None:
    run.add_metrics(number, site, "train", {"steps": steps, "samples": samples})


def test_the_budget_is_counted_in_what_was_recorded(run: Run) -> None:
    for number in (1, 2):
        cost(run, number, "north", steps=10, samples=80)
        cost(run, number, "pooled", steps=13, samples=100)
    cost(run, 1, "south", steps=3, samples=20)  # in the second round it was not there
    cost(run, 1, "north alone", steps=5, samples=40)
    cost(run, 1, "aggregator", steps=99, samples=999)  # the director's mean of the sites' counts is nobody's
    spent = budget(run.metrics(), {"north": 80, "south": 20})
    assert spent == {
        "federated": {"rounds": 2, "steps": 20.0, "epochs": pytest.approx(1.8)},
        "pooled": {"rounds": 2, "steps": 26.0, "epochs": pytest.approx(2.0)},
        "north alone": {"rounds": 1, "steps": 5.0, "epochs": pytest.approx(0.5)},
    }


def test_results_say_how_much_each_was_trained_and_how_much_the_seed_decides() -> None:
    some = predictions(np.random.default_rng(0))
    seeds = {
        str(seed): {"federated": {"accuracy": 0.8 + seed / 100}, "pooled": {"accuracy": 0.9}} for seed in (0, 1, 2)
    }
    spent = {"federated": {"rounds": 30, "steps": 2280.0, "epochs": 30.0}}
    table = results(figures(some, "accuracy", []) | {"budget": spent, "seeds": seeds}, every=False)
    assert table.loc["federated", "steps"] == "2,280"
    assert table.loc["federated", "epochs"] == "30.0"
    assert table.loc["pooled", "steps"] == ""
    assert table["accuracy over 3 seeds"].to_dict() == {"federated": "0.810 ± 0.010", "pooled": "0.900 ± 0.000"}


def test_what_a_round_cost_each_site(run: Run) -> None:
    for number in (1, 2):
        for site, seconds in (("north", 2.0), ("south", 4.0)):
            values = {"seconds": seconds, "samples_per_second": 10 * number, "bytes_down": 3e6, "bytes_up": 2e6}
            run.add_metrics(number, site, "train", values | {"update_norm": 1 / number})
        run.add_metrics(number, "aggregator", "train", {"seconds": 3.0})
    table = work(run.metrics())
    assert list(table.columns) == ["seconds", "samples_per_second", "MB_down", "MB_up", "update_norm"]
    assert table.loc[(2, "south")].tolist() == [4.0, 20.0, 3.0, 2.0, 0.5]
    by_site = work_by_site(run.metrics())
    assert list(by_site.index) == ["north", "south"]
    assert by_site.loc["north"].to_dict() == {
        "rounds": 2, "seconds": 4.0, "samples_per_second": 15.0, "MB_down": 6.0, "MB_up": 4.0,
        "first_update_norm": 1.0, "last_update_norm": 0.5,
    }  # fmt: skip
    assert work_by_site(run.metrics()[:0]).empty


def test_the_worst_site_comes_first(run: Run) -> None:
    for site, loss, accuracy in (("north", 0.5, 0.9), ("south", 0.7, 0.8)):
        run.add_metrics(2, site, "validate_global", {"loss": loss, "accuracy": accuracy})
        run.add_metrics(2, site, "validate_local", {"loss": 1.0, "accuracy": 0.7})
    table = by_site(run.metrics(), 2, "accuracy")
    assert list(table.index) == ["south", "north"]
    assert table.loc["south"].to_dict() == pytest.approx({"own": 0.7, "averaged": 0.8, "gain": 0.1})
    losses = by_site(run.metrics(), 2, "loss")
    assert list(losses.index) == ["south", "north"], "of a loss the largest is the worst"
    assert losses.loc["north", "gain"] == pytest.approx(0.5)
    assert by_site(run.metrics(), 9, "accuracy").isna().all(axis=None), "of a round that nobody has validated"


def test_a_rehearsal_by_round(run: Run) -> None:
    table = rehearsed(run.metrics())
    assert list(table["north", "training loss"]) == [1.2, 2.2]
    assert list(table["average", "accuracy"]) == [101, 201]
    assert rehearsed(run.metrics()[:0]).empty


def test_runs_side_by_side_show_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    some = predictions(np.random.default_rng(0))
    for name, rate in (("one", 0.1), ("two", 0.2)):
        each = Run.create(tmp_path, name)
        config = {"best_metric": "accuracy", "training": {"learning_rate": rate, "rounds": 3}}
        each.write_config(asked={}, config=config)
        more = {"rounds": 3, "seconds": 12.4, "sites": ["north"], "corpus": "made"}
        each.write_summary(**figures(some, "accuracy", []) | more)
    Run.create(tmp_path, "unfinished").write_config(asked={}, config={})
    runs = finished(tmp_path)
    assert [each.name for each in runs] == ["two", "one"]
    table = compared(runs)
    assert list(table.columns) == ["test accuracy", "sites", "corpus", "rounds", "seconds", "training.learning_rate"]
    assert table["training.learning_rate"].to_dict() == {"two": 0.2, "one": 0.1}
    assert table.loc["one", "test accuracy"].startswith(f"{some.evaluations['federated'].accuracy:.2f} [")
    assert "training.learning_rate" not in compared(runs[:1]).columns


def test_results_where_there_was_nothing_to_test_on() -> None:
    summary = figures(None, "accuracy", ["envoy"]) | {"validation": {"round": 3, "loss": 0.5}}
    assert results(summary).loc["federated, in validation"].to_dict() == {"round": 3, "loss": 0.5}


def test_a_metric_of_one_entry_is_in_every_table(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    recall = Metric("balanced accuracy", Score("mean", {"right": 1}, {"true": 1}))
    monkeypatch.setitem(METRICS, "balanced_accuracy", recall)
    run.add_metric(2, "north", "validate_local", "balanced_accuracy", 0.25)
    run.add_metric(2, "aggregator", "validate_global", "balanced_accuracy", 0.75)
    assert rounds(run.metrics()).loc[2, ("north", "balanced_accuracy")] == 0.25
    assert rounds(run.metrics()).loc[2, ("average", "balanced_accuracy")] == 0.75
    assert best_validation(run.metrics(), "balanced_accuracy")["balanced_accuracy"] == 0.75
    summary = figures(predictions(np.random.default_rng(0)), "balanced_accuracy", [])
    table = results(summary, every=False)
    assert "[" in table.loc["federated", "balanced_accuracy"]
    assert table.loc["pooled", "federated minus it (balanced_accuracy)"][0] in "+-"
    assert shown_each_round() == [*SCORES, "balanced_accuracy"]
