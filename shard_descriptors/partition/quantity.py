"""Whole speakers, in shards of unequal size."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shard_descriptors.partition.contract import Assignment, Scheme
from shard_descriptors.partition.groups import by_first_split, count_groups, keep_whole, need_groups
from shard_descriptors.partition.tools import check, positive
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Quantity(Scheme):
    """Whole speakers, and shards of unequal size: shares of the utterances drawn from Dir(alpha), as in Li et al. 2022
    (Federated Learning on Non-IID Data Silos, quantity skew), the same in every split.

    alpha: concentration; small: few large shards and many small ones, large: all alike.
    """

    alpha: float = 1.0

    keeps_speakers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the setting."""
        check(self, alpha=positive)

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when there are fewer train speakers than shards."""
        counts = count_groups(utterances, lambda u: u.speaker)
        need_groups(counts, num_shards, "speakers")
        shares = np.random.default_rng(seed).dirichlet(np.full(num_shards, self.alpha))
        dealt: dict[str, int] = {}
        for split, groups in by_first_split(counts, seed).items():
            size = counts[split]
            wanting = [-share * size.total() for share in shares]
            for speaker in size.keys() & dealt.keys():
                wanting[dealt[speaker]] += size[speaker]
            groups.sort(key=lambda speaker: size[speaker])  # a stable sort: the lot decides among equals
            # One of those who said least for every shard, since none may be empty; the others, from the one who said
            # most, to the shard that lacks most.
            for number, speaker in enumerate(groups[:num_shards]):
                dealt[speaker] = number
                wanting[number] += size[speaker]
            for speaker in reversed(groups[num_shards:]):
                number = min(range(num_shards), key=wanting.__getitem__)
                dealt[speaker] = number
                wanting[number] += size[speaker]
        return keep_whole(utterances, lambda u: u.speaker, dealt, num_shards)
