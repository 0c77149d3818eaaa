"""No partition: a site's own recordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Own(Scheme):
    """No partition: all recordings here are this site's own. The deployment case."""

    keeps_speakers: ClassVar[bool] = True

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError for more than one shard."""
        if num_shards != 1:
            raise PartitionError(
                f"a site's own recordings are not shared out, and `of` is {num_shards}; leave `shard` and `of` out"
            )
        return np.zeros(len(utterances), dtype=np.int64)

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """One."""
        return 1
