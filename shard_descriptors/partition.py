"""Utterances to shards: a natural-ID partition by whole speakers.

The result depends on the utterances, the number of shards and the seed; not on the order of the
rows, the machine or the process. Sites that hold the same corpus therefore agree on the shards
without talking to each other.
"""

import hashlib
import heapq
import itertools
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shard_descriptors.utterances import SPLITS, Utterance, canonical_order


class PartitionError(ValueError):
    """The shards asked for cannot be made."""


def partition_speakers(utterances: Sequence[Utterance], num_shards: int, seed: int) -> npt.NDArray[np.int64]:
    """Shard of each utterance: int64 (len(utterances),), values 0 .. num_shards - 1.

    Speakers: dealt whole, in each split by itself, the one with most utterances first, to the
    shard that has fewest; the seed decides among speakers with equally many. Shards of a split
    then differ by at most its largest speaker. A speaker in two splits keeps one shard.
    Noise files: the clips of each are cut into `num_shards` consecutive blocks.
    Single clips without a speaker (test silence): dealt in turn, by name.

    PartitionError when there are fewer train speakers than shards, since a shard would be empty.
    """
    if num_shards < 1:
        raise PartitionError(f"num_shards is {num_shards}; it must be at least 1")
    speakers = _deal_speakers(utterances, num_shards, seed)
    files = _cut_files(utterances, num_shards)
    return np.array(
        [files[u.split, u.name, u.start] if u.speaker is None else speakers[u.speaker] for u in utterances],
        dtype=np.int64,
    )


def shard(utterances: Sequence[Utterance], index: int, num_shards: int, seed: int) -> tuple[Utterance, ...]:
    """Utterances of shard `index` of `num_shards`, counted from 1, in canonical order.

    PartitionError for an index out of 1 .. num_shards, and where a shard would be empty.
    """
    if not 1 <= index <= num_shards:
        raise PartitionError(f"shard {index} of {num_shards} does not exist; the first is 1, the last {num_shards}")
    assigned = partition_speakers(utterances, num_shards, seed)
    own = (u for u, number in zip(utterances, assigned, strict=True) if number == index - 1)
    return tuple(sorted(own, key=canonical_order))


def digest(utterances: Sequence[Utterance], num_shards: int, seed: int) -> str:
    """Twelve hex digits that name the whole assignment; equal on every site that agrees."""
    assigned = partition_speakers(utterances, num_shards, seed)
    lines = sorted(f"{u.split} {u.name} {u.start} {number}\n" for u, number in zip(utterances, assigned, strict=True))
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:12]


def _deal_speakers(utterances: Sequence[Utterance], num_shards: int, seed: int) -> dict[str, int]:
    counts: dict[str, Counter[str]] = {split: Counter() for split in SPLITS}
    for utterance in utterances:
        if utterance.speaker is not None:
            counts[utterance.split][utterance.speaker] += 1
    if len(counts["train"]) < num_shards:
        raise PartitionError(
            f"{len(counts['train'])} train speakers cannot fill {num_shards} shards; ask for "
            "fewer shards or add recordings of more speakers"
        )
    shards: dict[str, int] = {}
    for split in SPLITS:
        loads = [0] * num_shards
        for speaker in counts[split].keys() & shards.keys():
            loads[shards[speaker]] += counts[split][speaker]
        lightest = [(load, number) for number, load in enumerate(loads)]
        heapq.heapify(lightest)
        for speaker in sorted(
            counts[split].keys() - shards.keys(),
            key=lambda speaker: (-counts[split][speaker], _lot(seed, speaker), speaker),
        ):
            load, number = lightest[0]
            heapq.heapreplace(lightest, (load + counts[split][speaker], number))
            shards[speaker] = number
    return shards


def _lot(seed: int, speaker: str) -> bytes:
    """The speaker's draw: any order that is the same everywhere, another one for another seed."""
    return hashlib.sha256(f"{seed} {speaker}".encode()).digest()


def _cut_files(utterances: Sequence[Utterance], num_shards: int) -> dict[tuple[str, str, int], int]:
    """Shard of each (split, name, start) without a speaker."""
    starts: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    lengths = {(u.split, u.name, u.start): u.num_samples or 1 for u in utterances if u.speaker is None}
    for utterance in utterances:
        if utterance.speaker is None:
            starts[utterance.split, utterance.name].append(utterance.start)
    shards: dict[tuple[str, str, int], int] = {}
    turns: Counter[str] = Counter()
    for split, name in sorted(starts):
        clips = sorted(starts[split, name])
        for clip, following in itertools.pairwise(clips):
            if following - clip < lengths[split, name, clip]:
                raise PartitionError(
                    f"{name}: the clips at samples {clip} and {following} overlap, so two shards "
                    f"could share audio; they last {lengths[split, name, clip]} samples"
                )
        for position, start in enumerate(clips):
            # Each file begins with the next shard, so that odd clips even out over the files.
            block = position * num_shards // len(clips)
            shards[split, name, start] = (block + turns[split]) % num_shards
        turns[split] += 1
    return shards
