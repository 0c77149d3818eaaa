"""How sure a comparison of models is: a paired bootstrap over the test speakers.

The clips of one speaker are right or wrong together, so 700 clips of 28 speakers are not 700 independent trials. Each
sample draws as many speakers as there are, with replacement, the same ones for every model; what nobody speaks is drawn
likewise, clip by clip. (Efron and Tibshirani 1993, chapter 8; over speakers, and paired: Bisani and Ney 2004.)
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.stats import norm, t

from kws.metrics import METRICS
from lab.predictions import FEDERATED, Predictions

RESAMPLES = 10_000
LEVEL = 0.95
_AT_ONCE = 500
"""Samples drawn at a time: a bound for memory where no speaker is known."""


@dataclass(frozen=True)
class Interval:
    """A figure with the ends of its confidence interval."""

    value: float
    low: float
    high: float

    @property
    def decimals(self) -> int:
        """How many the data supports: the interval's half width keeps one digit, or two that begin with 1."""
        margin = (self.high - self.low) / 2
        return min(max(math.ceil(-math.log10(margin / 2)), 1), 4) if margin > 0 else 3

    def text(self, sign: str = "", decimals: int | None = None) -> str:
        """As a table shows it; sign is "+" where differences are meant; decimals: other than its own.

        >>> Interval(0.8342, 0.7961, 0.8713).text()
        '0.83 [0.80, 0.87]'
        """
        value, low, high = (f"{each:{sign}.{decimals or self.decimals}f}" for each in (self.value, self.low, self.high))
        return f"{value} [{low}, {high}]"


@dataclass(frozen=True)
class Comparison:
    """Several models on the same utterances.

    scores: by model and metric. differences: the federated model minus each other one, by model and metric. drawn: what
    the samples are made of, in words.
    """

    scores: Mapping[str, Mapping[str, Interval]]
    differences: Mapping[str, Mapping[str, Interval]]
    drawn: str


def compare(predictions: Predictions, resamples: int = RESAMPLES, seed: int = 0) -> Comparison:
    """Every metric of every model, and what the federated one has more, with 95 % intervals.

    The ends are percentiles of the samples, set a little wider, as a t interval is wider than a normal one: with few
    speakers it matters (Hesterberg 2015, "expanded percentile"). Utterances are drawn where fewer than two speakers are
    known. Of a smallest or an absolute (`worst_recall`, `calibration_error`) the samples lie to one side of the value.
    """
    unit, speakers = predictions.units
    if not len(predictions):
        return Comparison({}, {}, "nothing")
    if speakers < 2:
        unit, speakers = np.arange(len(predictions)), len(predictions)
        drawn = f"{speakers} utterances"
    else:
        alone = int(unit.max()) + 1 - speakers
        drawn = f"{speakers} speakers" + (f" and {alone} clips of nobody" if alone else "")
    units = int(unit.max()) + 1
    sampled = _sampled(predictions, unit, [speakers, units - speakers], resamples, seed)
    values = {model: evaluation.scalars() for model, evaluation in predictions.evaluations.items()}
    tail = _tail(speakers)

    def interval(value: float, samples: npt.NDArray[np.float64]) -> Interval:
        low, high = np.nanquantile(samples, [tail, 1 - tail])
        return Interval(value, float(low), float(high))

    return Comparison(
        {
            model: {metric: interval(values[model][metric], sampled[model][metric]) for metric in METRICS}
            for model in sampled
        },
        {
            model: {
                metric: interval(
                    values[FEDERATED][metric] - values[model][metric],
                    sampled[FEDERATED][metric] - sampled[model][metric],
                )
                for metric in METRICS
            }
            for model in sampled
            if FEDERATED in sampled and model != FEDERATED
        },
        drawn,
    )


def difference(one: Predictions, other: Predictions, metric: str, resamples: int = RESAMPLES) -> Interval:
    """What the federated model of one run has more of a metric than that of another, with its 95 % interval.

    Raises:
        ValueError: they were not tested on the same utterances.
    """
    if (one.names, one.labels) != (other.names, other.labels):
        raise ValueError("the two runs were tested on different utterances, so their figures do not compare")
    both = replace(one, evaluations={FEDERATED: one.evaluations[FEDERATED], "other": other.evaluations[FEDERATED]})
    return compare(both, resamples).differences["other"][metric]


def _sampled(
    predictions: Predictions, unit: npt.NDArray[np.int64], strata: list[int], resamples: int, seed: int
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """By model and metric, its value in each sample; strata: units of each kind, which are drawn among themselves."""
    generator = np.random.default_rng(seed)
    by_unit = {model: each.sums_by(unit, sum(strata)) for model, each in predictions.evaluations.items()}
    sampled: dict[str, list[npt.NDArray[np.float64]]] = {model: [] for model in by_unit}
    for first in range(0, resamples, _AT_ONCE):
        count = min(_AT_ONCE, resamples - first)
        draws = [generator.multinomial(size, np.full(size, 1 / size), count) for size in strata if size]
        times = np.hstack(draws).astype(np.float64)  # how often each unit is in each sample
        for model, (_, sums) in by_unit.items():
            sampled[model].append(times @ sums)
    values = {}
    for model, (names, _) in by_unit.items():
        columns = dict(zip(names, np.vstack(sampled[model]).T, strict=True))
        values[model] = {metric: np.asarray(entry.score.of(columns)) for metric, entry in METRICS.items()}
    return values


def _tail(units: int) -> float:
    """Below which share of the samples the interval's lower end lies."""
    if units < 2:
        return (1 - LEVEL) / 2
    wider = math.sqrt(units / (units - 1)) * t.ppf((1 + LEVEL) / 2, units - 1)
    return float(norm.cdf(-wider))
