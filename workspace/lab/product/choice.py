"""What was measured of each variant of a model, and which one to take."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lab.product.spotter import SpotterError

EAGER, NONE = "pytorch", "none"
"""The saved model as it is, which the others are compared with, and the exported graph before any change."""
METRICS = {"accuracy": "accuracy", "f1": "macro_f1", "iou": "mean_iou"}
FIRST = "f1 within 0.5 points, then fastest"


@dataclass(frozen=True)
class Row:
    """A variant and what was measured of it, or why it was not.

    scores: accuracy, macro_f1 and mean_iou, 0 to 1. size: of the file, bytes. latency: by batch size, the median and
    the 95th percentile of seconds for clips of one second. peak: of memory, bytes. failed: why there is nothing else.
    """

    variant: str
    scores: Mapping[str, float] = field(default_factory=dict)
    size: int = 0
    latency: Mapping[int, tuple[float, float]] = field(default_factory=dict)
    peak: int = 0
    failed: str | None = None


THEN: Mapping[str, Callable[[Row], float]] = {
    "fastest": lambda row: row.latency[1][0],
    "smallest": lambda row: row.size,
    "leanest": lambda row: row.peak,
}
"""One clip at a time, file, memory: the least of it."""


@dataclass(frozen=True)
class Choice:
    """Of the variants that lose no more than so many points (hundredths), the first by `then`.

    metric: of `METRICS`' values. then: of `THEN`.

    >>> Choice.of("f1 within 0.5 points, then fastest")
    Choice(metric='macro_f1', points=0.5, then='fastest')
    """

    metric: str
    points: float
    then: str

    @classmethod
    def of(cls, text: str) -> "Choice":
        """From words.

        Raises:
            SpotterError: it says something else.
        """
        pattern = rf"({'|'.join(METRICS)}) within (\d+(?:\.\d+)?) points?,? then ({'|'.join(THEN)})"
        found = re.fullmatch(pattern, " ".join(text.lower().split()))
        if not found:
            raise SpotterError(
                f"{text!r} does not say what to choose; write {FIRST!r}, with {' or '.join(METRICS)} in the place of "
                f"f1 and {' or '.join(THEN)} in that of fastest"
            )
        return cls(METRICS[found[1]], float(found[2]), found[3])

    def among(self, rows: Sequence[Row]) -> Row:
        """The row that is chosen; the graph as it was exported where no other is good enough, since it answers alike.

        Raises:
            SpotterError: none has worked.
        """
        reference = next(row for row in rows if row.variant == EAGER).scores[self.metric]
        worked = [row for row in rows if row.failed is None and row.variant != EAGER]
        good = [row for row in worked if 100 * (reference - row.scores[self.metric]) <= self.points + 1e-9]
        good = good or [row for row in worked if row.variant == NONE]
        if not good:
            raise SpotterError("no variant could be made and measured, so none can be chosen: see why in the table")
        return min(good, key=THEN[self.then])
