"""Speakers as clients: the same number of speakers in every shard."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme
from shard_descriptors.partition.groups import by_first_split, count_groups, keep_whole, need_groups
from shard_descriptors.partition.tools import check
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Clients(Scheme):
    """Speakers as clients: every shard has the same number of train speakers, however much each has said.

    speakers_per_client: so many in each shard (fewer in the last); None: the speakers divided by the shards.
    Speakers of the other splits are dealt in turn, so that a shard may have none of them.
    """

    speakers_per_client: int | None = None

    keeps_speakers: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the setting."""
        check(self, speakers_per_client=lambda n: n is None or (isinstance(n, int) and n >= 1))

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when the number of shards is not the one that the speakers make."""
        counts = count_groups(utterances, lambda u: u.speaker)
        need_groups(counts, num_shards, "speakers")
        natural = self.natural_shards(utterances)
        if self.speakers_per_client and natural != num_shards:
            raise PartitionError(
                f"{len(counts['train'])} train speakers, {self.speakers_per_client} to a client, make {natural} "
                f"shards, not {num_shards}; ask for {natural} shards, or leave speakers_per_client out"
            )
        dealt: dict[str, int] = {}
        for split, groups in by_first_split(counts, seed).items():
            for position, speaker in enumerate(groups):
                if split == "train" and self.speakers_per_client:
                    dealt[speaker] = position // self.speakers_per_client
                else:
                    dealt[speaker] = position * num_shards // len(groups)
        return keep_whole(utterances, lambda u: u.speaker, dealt, num_shards)

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """As many as the train speakers make, where it is said how many make one."""
        speakers = len(count_groups(utterances, lambda u: u.speaker)["train"])
        return math.ceil(speakers / self.speakers_per_client) if self.speakers_per_client else speakers or None
