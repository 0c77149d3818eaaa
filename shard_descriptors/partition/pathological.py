"""Label skew at its extreme: k labels in each shard."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme
from shard_descriptors.partition.tools import blocks, check, shuffled
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Pathological(Scheme):
    """Every shard has exactly `labels_per_shard` labels: the extreme of label skew, after McMahan et al. 2017.

    Labels are dealt in turn, in an order drawn with the seed, and each label's utterances evenly among its shards.
    Speakers are torn apart.
    """

    labels_per_shard: int = 2

    keeps_speakers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the setting."""
        check(self, labels_per_shard=lambda n: isinstance(n, int) and n >= 1)

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when there are too few labels for one shard, or too few places for all labels."""
        labels = sorted({u.label for u in utterances if u.split == "train"})
        if self.labels_per_shard > len(labels) or self.labels_per_shard * num_shards < len(labels):
            raise PartitionError(
                f"{num_shards} shards with {self.labels_per_shard} labels each cannot hold {len(labels)} labels, each "
                f"at least once and none twice in a shard; allowed labels_per_shard here: "
                f"{math.ceil(len(labels) / num_shards)} to {len(labels)}"
            )
        turn = [labels[number] for number in shuffled(len(labels), seed)]
        holders: defaultdict[str, list[int]] = defaultdict(list)
        for place in range(num_shards * self.labels_per_shard):
            holders[turn[place % len(labels)]].append(place // self.labels_per_shard)
        rows: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
        for row in shuffled(len(utterances), seed):
            rows[utterances[row].split, utterances[row].label].append(row)
        assigned = np.empty(len(utterances), dtype=np.int64)
        for (split, label), own in rows.items():
            if label not in holders:
                raise PartitionError(f"the label {label!r} is in {split} and not in train; remove it or add to train")
            assigned[own] = np.array(holders[label])[blocks(len(own), len(holders[label]))]
        return assigned
