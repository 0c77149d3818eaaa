"""What schemes that keep groups of utterances together share: a group is a speaker, or a value of another column."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from shard_descriptors.partition.contract import Assignment, PartitionError
from shard_descriptors.utterances import SPLITS, Utterance

Counts = dict[str, Counter[str]]
"""By split, the number of utterances of each group: a speaker, or a value of another column."""


def count_groups(utterances: Sequence[Utterance], group: Callable[[Utterance], str | None]) -> Counts:
    """Utterances of each group in each split; those of which `group` says None are left out."""
    counts: Counts = {split: Counter() for split in SPLITS}
    for utterance in utterances:
        if (name := group(utterance)) is not None:
            counts[utterance.split][name] += 1
    return counts


def need_groups(counts: Counts, num_shards: int, what: str) -> None:
    """PartitionError when there are fewer train groups than shards; `what` is what a group is called."""
    if len(counts["train"]) < num_shards:
        raise PartitionError(
            f"{len(counts['train'])} train {what} cannot fill {num_shards} shards; ask for fewer shards, or add "
            f"recordings"
        )


def by_first_split(counts: Counts, seed: int) -> dict[str, list[str]]:
    """Groups in the order of their lots, each in the first split that has it."""
    seen: set[str] = set()
    groups = {}
    for split in SPLITS:
        groups[split] = sorted(counts[split].keys() - seen, key=lambda group: (_lot(seed, group), group))
        seen |= counts[split].keys()
    return groups


def _lot(seed: int, group: str) -> bytes:
    """The group's draw: any order that is the same everywhere, another one for another seed."""
    return hashlib.sha256(f"{seed} {group}".encode()).digest()


def keep_whole(
    utterances: Sequence[Utterance],
    group: Callable[[Utterance], str | None],
    home: Mapping[str, int],
    num_shards: int,
) -> Assignment:
    """Groups to their homes, and files in which nobody speaks cut up."""
    files = _cut_files(utterances, num_shards)
    return np.array(
        [
            files[u.split, u.name, u.start] if (name := group(u)) is None else home[name]
            for u in utterances
        ],
        dtype=np.int64,
    )  # fmt: skip


def _cut_files(utterances: Sequence[Utterance], num_shards: int) -> dict[tuple[str, str, int], int]:
    """Shard of each (split, name, start) without a speaker."""
    starts: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for utterance in utterances:
        if utterance.speaker is None:
            starts[utterance.split, utterance.name].append(utterance.start)
    shards: dict[tuple[str, str, int], int] = {}
    turns: Counter[str] = Counter()
    for split, name in sorted(starts):
        clips = sorted(starts[split, name])
        for position, start in enumerate(clips):
            # Each file begins with the next shard, so that odd clips even out over the files.
            block = position * num_shards // len(clips)
            shards[split, name, start] = (block + turns[split]) % num_shards
        turns[split] += 1
    return shards
