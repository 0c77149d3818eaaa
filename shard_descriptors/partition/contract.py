"""Who holds what: utterances to shards, by a scheme (`schemes`).

An assignment depends on the utterances, the scheme, the number of shards and the seed; not on the order of the rows,
the machine or the process. Sites that hold the same corpus therefore agree on the shards without talking to each other.
"""

import hashlib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from shard_descriptors.utterances import Utterance, canonical_order

Assignment: TypeAlias = npt.NDArray[np.int64]
"""Shard of each utterance: int64 (len(utterances),), values 0 .. num_shards - 1."""


class PartitionError(ValueError):
    """The shards asked for cannot be made."""


class Scheme(ABC):
    """A way to share utterances out; a frozen dataclass whose fields are its settings."""

    keeps_speakers: ClassVar[bool]
    """Whether it promises that no speaker is in two shards."""

    @abstractmethod
    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """The shard of each utterance. They come in canonical order; `assign` below checks what comes out.

        PartitionError where the utterances do not allow it.
        """

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """The number of shards that the data itself suggests, if it does."""
        return None


def assign(utterances: Sequence[Utterance], scheme: Scheme, num_shards: int, seed: int) -> Assignment:
    """Shard of each utterance, in the order given: int64 (len(utterances),), values 0 .. num_shards - 1.

    Every utterance is in exactly one shard, and every shard has something to train on.
    PartitionError where that cannot be, and where shards could share audio of a file in which nobody speaks.
    """
    if num_shards < 1:
        raise PartitionError(f"the number of shards is {num_shards}; it must be at least 1")
    order = sorted(range(len(utterances)), key=lambda row: canonical_order(utterances[row]))
    rows = [utterances[row] for row in order]
    _refuse_shared_audio(rows)
    assigned = np.empty(len(rows), dtype=np.int64)
    assigned[order] = numbers = scheme.assign(rows, num_shards, seed)
    trained_on = {int(number) for number, row in zip(numbers, rows, strict=True) if row.split == "train"}
    if empty := sorted(set(range(num_shards)) - trained_on):
        raise PartitionError(
            f"shard {empty[0] + 1} of {num_shards} would have nothing to train on"
            f"{f' (and {len(empty) - 1} others)' if empty[1:] else ''}; ask for fewer shards, or for less skew"
        )
    return assigned


def shard_of(utterances: Sequence[Utterance], assigned: Assignment, index: int) -> tuple[Utterance, ...]:
    """Utterances of shard `index`, counted from 1, in canonical order."""
    own = (u for u, number in zip(utterances, assigned, strict=True) if number == index - 1)
    return tuple(sorted(own, key=canonical_order))


def digest(utterances: Sequence[Utterance], assigned: Assignment) -> str:
    """Twelve hex digits that name a whole assignment; equal on every site that agrees."""
    lines = sorted(f"{u.split} {u.name} {u.start} {number}\n" for u, number in zip(utterances, assigned, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def homes(utterances: Sequence[Utterance], assigned: Assignment) -> dict[str, set[int]]:
    """The shards in which each speaker is."""
    found: dict[str, set[int]] = {}
    for row, number in zip(utterances, assigned.tolist(), strict=True):
        if row.speaker is not None:
            found.setdefault(row.speaker, set()).add(number)
    return found


def _refuse_shared_audio(rows: Sequence[Utterance]) -> None:
    for row, following in itertools.pairwise(rows):
        if row.speaker is None and (row.split, row.name) == (following.split, following.name):
            end = row.start + (row.num_samples or 1)
            if following.start < end:
                raise PartitionError(
                    f"{row.name}: the clips at samples {row.start} and {following.start} overlap (the first ends at "
                    f"{end}), so two shards could share audio; let them start later"
                )
