import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, log_loss, precision_recall_fscore_support
from small_network import quick

from kws.metrics import BINS, METRICS, Evaluation, Metric, per_label
from rules.scores import Score, merge, refusal

NAMES = ("yes", "no", "up")
SCORES = {name: metric.score for name, metric in METRICS.items()}


def evaluation(labels: list[int], seed: int = 0, scale: float = 3.0) -> Evaluation:
    """Random logits for these labels, of which some are right."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, scale, (len(labels), len(NAMES))).astype(np.float32)
    return Evaluation(np.array(labels, np.int64), logits)


def part(whole: Evaluation, numbers: npt.NDArray[np.int64]) -> Evaluation:
    return Evaluation(whole.labels[numbers], whole.logits[numbers])


some = st.builds(
    evaluation,
    st.lists(st.integers(0, 2), min_size=1, max_size=60),
    st.integers(0, 2**32),
    st.sampled_from([0.1, 3, 50]),
)


def test_by_hand() -> None:
    logits = np.log(np.array([[0.7, 0.2, 0.1], [0.5, 0.25, 0.25], [0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    scored = Evaluation(np.array([0, 0, 0, 1]), logits + 7)  # logits are what they are up to a constant
    assert list(scored.predictions) == [0, 0, 1, 1]
    # yes: precision 1, recall 2/3, F1 0.8, IoU 2/3. no: precision 1/2, recall 1, F1 2/3, IoU 1/2. up does not occur.
    # confidences 0.7, 0.5, 0.5, 0.8 lie in bins 10, 7, 7 and 12 of 15; right are the first, one of the two, the last.
    assert scored.scalars() == pytest.approx(
        {
            "loss": -math.log(0.7 * 0.5 * 0.25 * 0.8) / 4,
            "accuracy": 0.75,
            "macro_f1": (0.8 + 2 / 3) / 2,
            "mean_iou": (2 / 3 + 1 / 2) / 2,
            "worst_recall": 2 / 3,
            "calibration_error": (0.3 + 0 + 0.2) / 4,
        },
        rel=1e-6,
    )
    assert scored.accuracy == 0.75
    assert scored.confusion(NAMES).loc["yes", "no"] == 1
    assert scored.confusion(NAMES).loc["no", "yes"] == 0
    assert scored.per_label(NAMES).loc["yes"].to_dict() == pytest.approx(
        {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "iou": 2 / 3, "utterances": 3}
    )
    assert scored.per_label(NAMES).loc["up"].to_dict() == dict.fromkeys(("precision", "recall", "f1", "iou"), 0) | {
        "utterances": 0
    }
    table = scored.calibration()
    assert list(table.index) == [7, 10, 12]
    assert list(table["utterances"]) == [2, 1, 1]
    assert list(table["accuracy"]) == [0.5, 1, 1]
    assert list(table["confidence"]) == pytest.approx([0.5, 0.7, 0.8])


@quick
@given(some)
def test_scores_are_those_of_scikit_learn(scored: Evaluation) -> None:
    values, present = scored.scalars(), np.unique(scored.labels)
    settings = {"labels": present, "average": "macro", "zero_division": 0.0}
    assert values["accuracy"] == pytest.approx(accuracy_score(scored.labels, scored.predictions))
    assert values["macro_f1"] == pytest.approx(f1_score(scored.labels, scored.predictions, **settings))
    assert values["mean_iou"] == pytest.approx(jaccard_score(scored.labels, scored.predictions, **settings))
    exact = np.exp(log_softmax(scored.logits.astype(np.float64), axis=1))
    if exact.min() > 1e-15:  # below, scikit-learn clips
        assert values["loss"] == pytest.approx(log_loss(scored.labels, exact, labels=range(3)), abs=1e-9)
    everyone = {"labels": range(3), "zero_division": 0.0, "average": None}
    expected = precision_recall_fscore_support(scored.labels, scored.predictions, **everyone)
    table = scored.per_label(NAMES)
    for name, column in zip(("precision", "recall", "f1", "utterances"), expected, strict=True):
        np.testing.assert_allclose(table[name], column)
    np.testing.assert_allclose(table["iou"], jaccard_score(scored.labels, scored.predictions, **everyone))
    assert values["worst_recall"] == pytest.approx(table["recall"][table["utterances"] > 0].min())
    counts = scored.confusion(NAMES)
    assert list(counts.sum(axis=1)) == list(table["utterances"])
    assert np.trace(counts.to_numpy()) == scored.right.sum()


@quick
@given(some)
def test_the_calibration_error_is_the_mean_gap_of_the_bins(scored: Evaluation) -> None:
    edges = np.linspace(0, 1, BINS + 1)
    number = np.clip(np.searchsorted(edges, scored.confidences, side="right") - 1, 0, BINS - 1)
    gaps = [abs(scored.confidences[number == n].sum() - scored.right[number == n].sum()) for n in range(BINS)]
    assert scored.scalars()["calibration_error"] == pytest.approx(sum(gaps) / len(scored))


@quick
@given(some, st.data())
def test_what_sites_send_scores_as_one_evaluation_of_all(whole: Evaluation, data: st.DataObject) -> None:
    home = np.array(data.draw(st.lists(st.integers(0, 4), min_size=len(whole), max_size=len(whole))))
    sites = {f"site{site}": part(whole, np.flatnonzero(home == site)) for site in np.unique(home)}
    sent = {site: own.sums() for site, own in sites.items()}
    assert [refusal(site, "validate", sums) for site, sums in sent.items()] == [None] * len(sites)
    merged = merge(sent, {site: len(own) for site, own in sites.items()}, SCORES)
    expected = whole.scalars()
    for name in ("accuracy", "macro_f1", "mean_iou", "worst_recall"):
        assert merged[name] == expected[name]  # to the last bit
    assert {name: merged[name] for name in METRICS} == pytest.approx(expected, rel=1e-12)
    assert per_label(merged, NAMES).equals(whole.per_label(NAMES))
    # The messages' numbers have single precision.
    single = {site: {name: float(np.float32(value)) for name, value in sums.items()} for site, sums in sent.items()}
    rounded = merge(single, {site: len(own) for site, own in sites.items()}, SCORES)
    assert rounded["macro_f1"] == expected["macro_f1"]
    assert rounded["loss"] == pytest.approx(expected["loss"], rel=1e-6)


@quick
@given(some, st.data())
def test_evaluations_merge(whole: Evaluation, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(whole)))
    numbers = np.random.default_rng(cut).permutation(len(whole))
    merged = part(whole, numbers[:cut]).merge(part(whole, numbers[cut:]))
    assert merged.scalars() == pytest.approx(whole.scalars())
    assert (merged.confusion(NAMES) == whole.confusion(NAMES)).all(axis=None)


@quick
@given(some)
def test_sums_of_units_add_up(scored: Evaluation) -> None:
    unit = np.arange(len(scored)) % 3
    names, values = scored.sums_by(unit, 3)
    total = {name: value for name, value in zip(names, values.sum(axis=0), strict=True) if value}
    assert total == pytest.approx(scored.sums())
    for number in range(min(3, len(scored))):
        own = part(scored, np.flatnonzero(unit == number)).sums()
        row = {name: value for name, value in zip(names, values[number], strict=True) if value}
        assert row == pytest.approx(own)


def test_a_metric_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    recall = Metric("balanced accuracy", Score("mean", {"right": 1}, {"true": 1}))
    monkeypatch.setitem(METRICS, "balanced_accuracy", recall)
    assert evaluation([0, 0, 1]).scalars().keys() == METRICS.keys()
    assert recall.better(0.5, 0.4)
    assert not METRICS["loss"].better(0.5, 0.4)
    assert all(metric.better(0.5, 0.5) for metric in METRICS.values())


def test_a_model_that_has_diverged_is_told_by_its_loss() -> None:
    for value in (np.nan, np.inf):
        scored = Evaluation(np.array([0, 1]), np.array([[0, 1, 2], [value, 0, 0]], np.float32))
        with np.errstate(invalid="ignore"):
            assert "sum/loss is nan" in (refusal("north", "validate_global", scored.sums()) or "")


def test_nothing_to_evaluate() -> None:
    empty = Evaluation(np.empty(0, np.int64), np.empty((0, 3), np.float32))
    assert empty.sums() == {}
    assert all(math.isnan(value) for value in empty.scalars().values())


@pytest.mark.parametrize(
    ("labels", "shape", "words"),
    [
        ([0, 1], (2,), r"labels \(2,\) and logits \(2,\)"),
        ([0, 1], (3, 3), r"needed are \(n,\) and \(n, num_labels\)"),
        ([0, 3], (2, 3), "labels from 0 to 3, and 3 logits"),
        ([-1, 0], (2, 3), "labels from -1 to 0"),
    ],
)
def test_what_is_no_evaluation(labels: list[int], shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Evaluation(np.array(labels), np.zeros(shape, np.float32))
