"""Arrays that are sorted against each other, element by element: what median and trimmed mean begin with.

A sorting network compares whole arrays, so that a few sites cost a few passes of minimum and maximum; numpy's sort and
partition along the first axis copy every column by itself, which takes five to ten times as long.
"""

from collections.abc import Iterator, Sequence
from functools import cache

import numpy as np

from rules.contract import Floats

PIECE = 2**13
"""Elements that are sorted at a time: small enough that those of ten sites stay in a core's cache."""


def ordered(values: Sequence[Floats]) -> Iterator[tuple[slice, list[Floats]]]:
    """The arrays' pieces, in order: of each piece, where it is, then its least elements, the next ones, the largest."""
    spare = np.empty(PIECE, np.float32)
    for start in range(0, len(values[0]), PIECE):
        place = slice(start, min(start + PIECE, len(values[0])))
        rows = [each[place] + np.float32(0) for each in values]  # copies; -0, which equals 0, depends on the order
        for low, high in network(len(rows)):
            least = spare[: len(rows[low])]
            np.minimum(rows[low], rows[high], out=least)
            np.maximum(rows[low], rows[high], out=rows[high])
            rows[low][:] = least
        yield place, rows


@cache
def network(size: int) -> tuple[tuple[int, int], ...]:
    """The pairs to compare, in turn, that sort so many: Batcher 1968, odd-even merging (Knuth, volume 3, 5.2.2 M).

    >>> network(3)
    ((0, 2), (0, 1), (1, 2))
    """
    pairs = []
    highest = 1 << max(0, (size - 1).bit_length() - 1)
    part = highest
    while part > 0:
        step, rest, distance = highest, 0, part
        while True:
            pairs += [(low, low + distance) for low in range(size - distance) if low & part == rest]
            if step == part:
                break
            distance, step, rest = step - part, step // 2, part
        part //= 2
    return tuple(pairs)
