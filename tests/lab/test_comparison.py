"""Intervals over speakers: what they are by hand, that they are paired, and how often they hold."""

import time

import numpy as np
import pytest
from answers import LABELS, answered, predictions
from scipy.stats import bootstrap

from kws.metrics import METRICS
from lab.comparison import Interval, compare
from lab.predictions import Predictions


def of(right: dict[str, list[list[int]]]) -> Predictions:
    """Predictions of models by the speakers' right and wrong answers, all to "yes"."""
    some = next(iter(right.values()))
    speakers = [f"s{number}" for number, clips in enumerate(some) for _ in clips]
    labels = np.zeros(len(speakers), np.int64)
    evaluations = {model: answered(labels, np.concatenate(clips).astype(bool)) for model, clips in right.items()}
    return Predictions(
        evaluations, tuple(speakers), LABELS, tuple((str(n), 0) for n in range(len(labels))), ("test",) * len(labels)
    )


def test_clips_of_one_speaker_are_drawn_together() -> None:
    """With two speakers, one always right and one always wrong, a sample is all right, all wrong, or half."""
    compared = compare(of({"federated": [[1] * 50, [0] * 50]}))
    assert compared.scores["federated"]["accuracy"] == Interval(0.5, 0.0, 1.0)
    assert compared.drawn == "2 speakers"
    assert compared.differences == {}


def test_models_are_compared_on_the_same_samples() -> None:
    """One model is always 10 points better on each speaker: the scores are uncertain, the difference is not."""
    generator = np.random.default_rng(0)
    right = generator.integers(2, 18, 30)
    worse, better = ([[1] * n + [0] * (20 - n) for n in right + more] for more in (0, 2))
    compared = compare(of({"federated": better, "pooled": worse}))
    difference = compared.differences["pooled"]["accuracy"]
    assert (difference.value, difference.low, difference.high) == pytest.approx((0.1, 0.1, 0.1))
    interval = compared.scores["federated"]["accuracy"]
    assert interval.high - interval.low > 0.1


def test_the_ends_are_those_of_scipy_a_little_wider() -> None:
    some = predictions(np.random.default_rng(1), silence=0)
    units, speakers = some.units
    right = np.bincount(units, some.evaluations["federated"].right, speakers)
    clips = np.bincount(units, minlength=speakers)
    expected = bootstrap(
        (right, clips), lambda right, clips, axis: right.sum(axis) / clips.sum(axis), paired=True, vectorized=True,
        method="percentile", n_resamples=10_000, rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    ours = compare(some).scores["federated"]["accuracy"]
    width = expected.high - expected.low
    assert 1.02 < (ours.high - ours.low) / width < 1.15
    assert (ours.low, ours.high) == pytest.approx(expected, abs=0.1 * width)


def test_the_same_seed_gives_the_same_ends() -> None:
    some = predictions(np.random.default_rng(2))
    assert compare(some, 500) == compare(some, 500)
    assert compare(some, 500, seed=1) != compare(some, 500)


def test_what_nobody_speaks_is_drawn_clip_by_clip() -> None:
    some = predictions(np.random.default_rng(3), speakers=5, silence=40)
    assert compare(some, 100).drawn == "5 speakers and 40 clips of nobody"
    nobody = Predictions(some.evaluations, (None,) * len(some), LABELS, some.names, some.splits)
    compared = compare(nobody, 2000)
    assert compared.drawn == f"{len(some)} utterances"
    figure = compared.scores["federated"]["accuracy"]
    normal = 1.96 * np.sqrt(figure.value * (1 - figure.value) / len(some))
    assert (figure.high - figure.low) / 2 == pytest.approx(normal, rel=0.15)


def test_the_intervals_hold_as_often_as_they_say() -> None:
    """120 test sets of 28 speakers: the truth lies in 95 % of the intervals; in two thirds of those over clips."""
    generator = np.random.default_rng(4)
    everyone = predictions(generator, 20_000, 36_000).evaluations
    truth = {model: evaluation.scalars() for model, evaluation in everyone.items()}
    held = {"accuracy": 0, "macro_f1": 0, "difference": 0, "over clips": 0}
    for _ in range(120):
        some = predictions(generator)
        compared = compare(some, 300)
        for metric in ("accuracy", "macro_f1"):
            figure = compared.scores["federated"][metric]
            held[metric] += figure.low <= truth["federated"][metric] <= figure.high
        difference = compared.differences["pooled"]["accuracy"]
        held["difference"] += (
            difference.low <= truth["federated"]["accuracy"] - truth["pooled"]["accuracy"] <= difference.high
        )
        figure = compared.scores["federated"]["accuracy"]
        normal = 1.96 * np.sqrt(figure.value * (1 - figure.value) / len(some))
        held["over clips"] += abs(figure.value - truth["federated"]["accuracy"]) <= normal
    shares = {name: count / 120 for name, count in held.items()}
    assert shares["over clips"] < 0.75
    assert all(0.90 <= shares[name] <= 0.985 for name in ("accuracy", "macro_f1", "difference")), shares


def test_ten_thousand_samples_are_quick() -> None:
    some = predictions(np.random.default_rng(5), models=("federated", "pooled", "envoy alone", "envoy_two alone"))
    started = time.process_time()
    compared = compare(some)
    assert time.process_time() - started < 5  # 0.6 s on a quiet machine
    assert compared.scores.keys() == some.evaluations.keys()
    assert all(found.keys() == METRICS.keys() for found in compared.scores.values())


@pytest.mark.parametrize(
    ("interval", "text", "signed"),
    [
        (Interval(0.83421, 0.79609, 0.87131), "0.83 [0.80, 0.87]", "+0.83 [+0.80, +0.87]"),
        (Interval(0.83421, 0.8149, 0.8533), "0.834 [0.815, 0.853]", "+0.834 [+0.815, +0.853]"),
        (Interval(0.5, 0.0, 1.0), "0.5 [0.0, 1.0]", "+0.5 [+0.0, +1.0]"),
        (Interval(-0.012, -0.04, 0.02), "-0.01 [-0.04, 0.02]", "-0.01 [-0.04, +0.02]"),
        (Interval(1.0, 1.0, 1.0), "1.000 [1.000, 1.000]", "+1.000 [+1.000, +1.000]"),
        (Interval(0.1234567, 0.1234566, 0.1234568), "0.1235 [0.1235, 0.1235]", "+0.1235 [+0.1235, +0.1235]"),
    ],
)
def test_figures_have_the_digits_that_the_data_supports(interval: Interval, text: str, signed: str) -> None:
    assert interval.text() == text
    assert interval.text("+") == signed


def test_nothing_to_compare() -> None:
    compared = compare(Predictions({}, (), LABELS, (), ()))
    assert (compared.scores, compared.differences) == ({}, {})
