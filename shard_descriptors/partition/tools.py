"""What schemes share: checks of their settings, equal blocks, an order drawn with a seed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme


def check(scheme: Scheme, **allowed: Callable[[Any], bool]) -> None:
    """PartitionError for a setting of the scheme that its check does not allow."""
    for name, right in allowed.items():
        value = getattr(scheme, name)
        if not right(value):
            raise PartitionError(
                f"{name} is {value!r}; it must be {'a number' if right is positive else 'a whole number'} above 0"
            )


def positive(value: Any) -> bool:
    """Whether a value is a finite number above 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def blocks(number: int, num_blocks: int) -> Assignment:
    """The block of each of `number` places: 0 .. num_blocks - 1, all of one size within one."""
    return np.arange(number, dtype=np.int64) * num_blocks // max(number, 1)


def shuffled(number: int, seed: int) -> list[int]:
    """The numbers 0 .. number - 1 in an order drawn with the seed."""
    order: list[int] = np.random.default_rng(seed).permutation(number).tolist()
    return order
