"""Whole speakers, as many utterances in every shard as they allow: the default."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from shard_descriptors.partition.contract import Assignment, Scheme
from shard_descriptors.partition.groups import Counts, by_first_split, count_groups, keep_whole, need_groups
from shard_descriptors.utterances import SPLITS, Utterance


@dataclass(frozen=True)
class Speakers(Scheme):
    """Whole speakers, with as many utterances in every shard as they allow: a natural-ID partition.

    In each split shards differ by at most its largest speaker. Shard n + 1 takes from the n before it what makes it
    their equal, and nothing else moves: one more site costs the others 1 in n + 1 of their utterances, the least there
    is. The seed decides who moves.
    Where nobody speaks: each file's clips are cut into consecutive blocks, one for each shard; files of one clip are
    dealt in turn.
    """

    keeps_speakers: ClassVar[bool] = True

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when there are fewer train speakers than shards."""
        counts = count_groups(utterances, lambda u: u.speaker)
        need_groups(counts, num_shards, "speakers")
        return keep_whole(utterances, lambda u: u.speaker, grow(counts, num_shards, seed), num_shards)


def grow(counts: Counts, num_shards: int, seed: int) -> dict[str, int]:
    """Shard of each group, in as many steps as there are shards: each new one is filled from those before it."""
    groups = by_first_split(counts, seed)
    home = {group: 0 for own in groups.values() for group in own}
    for newest in range(1, num_shards):
        for split in SPLITS:
            _fill(newest, groups[split], counts[split], home)
    return home


def _fill(newest: int, groups: Sequence[str], size: Counter[str], home: dict[str, int]) -> None:
    """Move groups to the newest shard, in place, until no move makes it and the group's old shard more alike."""
    loads = [0] * (newest + 1)
    for group, number in size.items():
        loads[home[group]] += number
    members: list[list[str]] = [[] for _ in range(newest)]
    for group in groups:
        if home[group] < newest:
            members[home[group]].append(group)

    def move(group: str) -> None:
        loads[home[group]] -= size[group]
        loads[newest] += size[group]
        home[group] = newest

    # Every old shard gives, in the order of their lots, whoever it can spare before it is as small as all should be.
    fair = sum(loads) / len(loads)
    for donor, own in enumerate(members):
        for group in own:
            if loads[donor] - size[group] >= fair:
                move(group)
    # Then those who said least, from the fullest shard on, as long as that makes two shards more alike.
    stayed = [sorted((g for g in own if home[g] < newest), key=lambda g: -size[g]) for own in members]
    while (giver := _fullest_giver(loads, stayed, size)) is not None:
        move(stayed[giver].pop())


def _fullest_giver(loads: Sequence[int], groups: Sequence[Sequence[str]], size: Counter[str]) -> int | None:
    """The fullest shard whose smallest group, its last, would bring it and the last shard closer together."""
    givers = [n for n, own in enumerate(groups) if own and size[own[-1]] < loads[n] - loads[-1]]
    return max(givers, key=loads.__getitem__, default=None)
