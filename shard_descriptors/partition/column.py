"""Whole values of a metadata column, such as an accent or a microphone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme
from shard_descriptors.partition.groups import count_groups, keep_whole, need_groups
from shard_descriptors.partition.speakers import grow
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Column(Scheme):
    """Whole values of a column, such as an accent or a microphone, dealt as `Speakers` deals speakers.

    column: its name; every utterance in which somebody speaks must have a value. Those without one, in which nobody
        speaks, are cut up as in `Speakers`.
    """

    column: str

    keeps_speakers: ClassVar[bool] = False

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError for a column that does not exist, and when it has fewer train values than shards."""
        if missing := [u for u in utterances if u.speaker is not None and u.column(self.column) is None]:
            known = sorted({name for u in utterances for name, _ in u.columns})
            raise PartitionError(
                f"{len(missing)} utterances, such as {missing[0].name}, have no {self.column!r}; "
                f"columns here: {', '.join(['label', 'speaker', *known])}"
            )
        counts = count_groups(utterances, self._value)
        need_groups(counts, num_shards, f"values of {self.column!r}")
        return keep_whole(utterances, self._value, grow(counts, num_shards, seed), num_shards)

    def natural_shards(self, utterances: Sequence[Utterance]) -> int | None:
        """One for each value in train."""
        return len(count_groups(utterances, self._value)["train"]) or None

    def _value(self, utterance: Utterance) -> str | None:
        return utterance.column(self.column)
