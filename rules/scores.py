"""How the sites' metrics become one: sums are added, means are weighed, and scores are made of the sums.

The mean of the sites' macro F1s is nobody's macro F1: it moves with the partition alone, and may choose the worse of
two models. So a site sends counts, under names that begin with "sum/", and the score is computed once, of the added
counts. The formula is data, because a director has to choose the best model by it and runs no code of an experiment's.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

SUM = "sum/"
"""Begins the name of what is added up: "sum/loss", or "sum/right/3" for one of several groups."""
KINDS = ("ratio", "mean", "least", "gaps")
MOST_METRICS = 2_000
"""Of one task of one site: three counts for each of 600 labels, and some more."""
MOST_SCORES = 50
MOST_CHARACTERS = 100
MOST_TERMS = 20
LARGEST = 1e100
"""No measured number is larger, and a thousand of them can be added."""

Value = float | npt.NDArray[np.float64]
"""A number, or many of it: the same sum in several samples."""


@dataclass(frozen=True)
class Score:
    """A score that is made of sums, by group where they have groups; a sum that is not there is 0.

    top, bottom: names of sums, without "sum/", and what each is multiplied by. kind, with top and bottom of a group:

    - "ratio": the tops of all groups, added up, over their bottoms (an accuracy, a mean loss);
    - "mean": the mean over the groups of top / bottom (a macro F1);
    - "least": the smallest top / bottom of any group;
    - "gaps": the absolute tops of all groups, added up, over their bottoms (an expected calibration error).

    among: "mean" and "least" look at the groups where this sum is above 0; None: at those where the bottom is.

    >>> f1 = Score("mean", {"right": 2}, {"true": 1, "answered": 1})
    >>> f1.of({"sum/right/yes": 3, "sum/true/yes": 4, "sum/answered/yes": 4, "sum/true/no": 1, "sum/answered/no": 1})
    0.375

    Raises:
        ValueError: with every problem, one a line.
    """

    kind: str
    top: Mapping[str, float]
    bottom: Mapping[str, float]
    among: str | None = None

    def __post_init__(self) -> None:
        if found := list(_score_problems("", vars(self))):
            raise ValueError("\n".join(found))

    def of(self, sums: Mapping[str, Value]) -> Value:
        """The score of these sums (by their full names; others are ignored); NaN where there is nothing to divide by.

        Arrays of one shape give an array of that shape: each place is computed by itself.
        """
        groups = list(self.by_group(sums).values())
        top, bottom, there = (np.array(each) for each in zip(*groups, strict=True)) if groups else np.zeros((3, 1))
        if self.kind == "ratio":
            return _plain(_divided(top.sum(0), bottom.sum(0)))
        if self.kind == "gaps":
            return _plain(_divided(np.abs(top).sum(0), bottom.sum(0)))
        there = (there > 0) & (bottom != 0)
        ratios = _divided(top, bottom)
        if self.kind == "mean":
            return _plain(_divided(np.where(there, ratios, 0.0).sum(0), there.sum(0)))
        least = np.where(there, ratios, np.inf).min(0)
        return _plain(np.where(there.any(0), least, np.nan))

    def by_group(self, sums: Mapping[str, Value]) -> dict[str, tuple[Value, Value, Value]]:
        """Top, bottom and what `among` counts, of every group of these sums."""
        names = {*self.top, *self.bottom, *([self.among] if self.among else ())}
        groups = sorted({group for name, group in map(_parts, filter(is_sum, sums)) if name in names})

        def weighed(terms: Mapping[str, float], group: str) -> Value:
            return sum((factor * sums.get(_full(name, group), 0.0) for name, factor in terms.items()), _zero(sums))

        return {
            group: (
                weighed(self.top, group),
                weighed(self.bottom, group),
                weighed({self.among: 1.0} if self.among else self.bottom, group),
            )
            for group in groups
        }


def is_sum(name: str) -> bool:
    """Whether a metric of this name is added up."""
    return name.startswith(SUM)


def merge(
    sent: Mapping[str, Mapping[str, float]], sizes: Mapping[str, int], scores: Mapping[str, Score] | None = None
) -> dict[str, float]:
    """What the sites have measured together: means, sums, and the scores of those sums.

    The scores are those of one evaluation of all the sites' examples, in whatever order the sites come and however they
    share them out.

    Args:
        sent: metrics by name, by site. Of a mean that some sites have not sent, the others make one.
        sizes: by site, the number of examples behind its metrics, at least 1.
        scores: what to compute of the sums; left out where there is nothing to divide by.

    >>> two = {"north": {"sum/right": 3, "sum/true": 4, "loss": 1.0}, "south": {"sum/true": 1, "loss": 2.0}}
    >>> merge(two, {"north": 4, "south": 1}, {"accuracy": Score("ratio", {"right": 1}, {"true": 1})})
    {'loss': 1.2, 'sum/right': 3.0, 'sum/true': 5.0, 'accuracy': 0.6}
    """
    merged = {}
    for name in sorted({name for metrics in sent.values() for name in metrics}):
        values = {site: metrics[name] for site, metrics in sent.items() if name in metrics}
        if is_sum(name):
            merged[name] = math.fsum(values.values())
        else:
            weighed = math.fsum(sizes[site] * value for site, value in values.items())
            merged[name] = weighed / sum(sizes[site] for site in values)
    sums = {name: value for name, value in merged.items() if is_sum(name)}
    computed = {name: float(score.of(sums)) for name, score in (scores or {}).items()} if sums else {}
    return merged | {name: value for name, value in computed.items() if math.isfinite(value)}


def refusal(site: str, task: str, sent: Mapping[str, float]) -> str | None:
    """Why these metrics of a site's task cannot be taken, or None; names the site and the metric."""
    if len(sent) > MOST_METRICS:
        return f"site {site}, task {task}: {len(sent)} metrics; allowed: {MOST_METRICS}"
    for name, value in sent.items():
        if not _is_name(name):
            return (
                f"site {site}, task {task}: a metric has the name {name[:60]!r}; allowed: up to {MOST_CHARACTERS} "
                f"characters that can be printed"
            )
        if not math.isfinite(value):
            return (
                f"site {site}, task {task}: the metric {name} is {value}, which is no number; the model has probably "
                f"diverged: try a smaller learning rate"
            )
        if abs(value) > LARGEST:
            return f"site {site}, task {task}: the metric {name} is {value}; allowed: up to {LARGEST:g} either way"
    return None


def problems(scores: Any) -> Iterator[str]:
    """Everything that is wrong with scores by name, as JSON has them (a `Score`'s fields)."""
    if not isinstance(scores, Mapping):
        yield f"scores are {scores!r:.60}; allowed: an object of scores by name"
        return
    if len(scores) > MOST_SCORES:
        yield f"there are {len(scores)} scores; allowed: {MOST_SCORES}"
    for name, fields in scores.items():
        if not _is_name(name) or is_sum(name):
            yield f"a score has the name {name!r:.60}; allowed: up to {MOST_CHARACTERS} characters, not {SUM!r} first"
        elif not isinstance(fields, Mapping):
            yield f"scores.{name} is {fields!r:.60}; allowed: an object"
        else:
            yield from _score_problems(f"scores.{name}.", fields)


def read(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, Score]:
    """Scores by name, of what JSON has of them (`dataclasses.asdict` of each).

    Raises:
        ValueError: with every problem, one a line.
    """
    if found := list(problems(scores)):
        raise ValueError("\n".join(found))
    return {name: Score(**fields) for name, fields in scores.items()}


def _score_problems(where: str, fields: Mapping[str, Any]) -> Iterator[str]:
    for name in fields.keys() - {"kind", "top", "bottom", "among"}:
        yield f"{where}{name!r:.60} is not known here; allowed: kind, top, bottom, among"
    if fields.get("kind") not in KINDS:
        yield f"{where}kind is {fields.get('kind')!r:.60}; allowed: {', '.join(KINDS)}"
    for part in ("top", "bottom"):
        terms = fields.get(part)
        if not isinstance(terms, Mapping) or not 1 <= len(terms) <= MOST_TERMS:
            yield f"{where}{part} is {terms!r:.60}; allowed: 1 to {MOST_TERMS} names of sums, each with a number"
            continue
        for name, factor in terms.items():
            if not _is_name(name) or "/" in name:
                yield f"{where}{part}: {name!r:.60} names no sum; allowed: up to {MOST_CHARACTERS} characters, no '/'"
            elif isinstance(factor, bool) or not isinstance(factor, int | float) or not abs(factor) <= 1e9:
                yield f"{where}{part}.{name} is {factor!r:.60}; allowed: numbers from -1e9 to 1e9"
    among = fields.get("among")
    if among is not None and (not _is_name(among) or "/" in among):
        yield f"{where}among is {among!r:.60}; allowed: the name of a sum, or null"


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and 0 < len(name) <= MOST_CHARACTERS and name.isprintable()


def _parts(full: str) -> tuple[str, str]:
    """Name and group of a sum."""
    name, _, group = full.removeprefix(SUM).partition("/")
    return name, group


def _full(name: str, group: str) -> str:
    return f"{SUM}{name}/{group}" if group else f"{SUM}{name}"


def _zero(sums: Mapping[str, Value]) -> Value:
    """Nothing, in the shape of these sums."""
    return np.zeros(np.shape(next(iter(sums.values()), 0.0)))


def _divided(top: Value, bottom: Value) -> npt.NDArray[np.float64]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(top, bottom))


def _plain(value: npt.NDArray[np.float64]) -> Value:
    return value if value.ndim else float(value)
