"""Utterances at random: the control, which leaks speakers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shard_descriptors.partition.contract import Assignment, Scheme
from shard_descriptors.partition.tools import blocks, shuffled
from shard_descriptors.utterances import SPLITS, Utterance


@dataclass(frozen=True)
class Iid(Scheme):
    """Utterances at random, the same number in every shard: the control. It LEAKS SPEAKERS: nearly everyone is on
    several sites, as in the row-by-stride partition of OpenFL's own tutorial.
    """

    keeps_speakers: ClassVar[bool] = False

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """Every split by itself."""
        assigned = np.empty(len(utterances), dtype=np.int64)
        splits = np.array([SPLITS.index(u.split) for u in utterances])
        order = np.array(shuffled(len(utterances), seed), dtype=np.int64)
        for split in range(len(SPLITS)):
            own = order[splits[order] == split]
            assigned[own] = blocks(len(own), num_shards)
        return assigned
