"""Properties of the partition, and its digest on the true speaker structure."""

import os
import random
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import BESIDE_THE_REPO
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_descriptors.labels import LABELS
from shard_descriptors.partition import PartitionError, digest, partition_speakers, shard
from shard_descriptors.speech_commands import load
from shard_descriptors.splits import speaker_of, which_split
from shard_descriptors.utterances import SPLITS, Utterance

settings.register_profile("fast", max_examples=60, deadline=None)
settings.load_profile("fast")

LISTS = BESIDE_THE_REPO / "speech_commands_v0.01_lists"


def rows_of(clips: dict[str, list[int]], noise: list[int], silence: int, folder: str = "/data") -> list[Utterance]:
    """Speakers with these numbers of clips per split, noise files of these lengths, test silence.

    >>> len(rows_of({"train": [3, 1]}, noise=[2], silence=1))
    7
    """
    rows = [
        Utterance(f"yes/{split}{s}_{n}", f"{folder}/{split}{s}_{n}.wav", "yes", f"{split}{s}", split)
        for split, counts in clips.items()
        for s, count in enumerate(counts)
        for n in range(count)
    ]
    word = "_background_noise_"
    rows += [
        Utterance(f"{word}/{f}", f"{folder}/{word}/{f}.wav", "_silence_", None, "train", 16_000 * n, 16_000)
        for f, seconds in enumerate(noise)
        for n in range(seconds)
    ]
    word = "_silence_"
    rows += [Utterance(f"{word}/{n}", f"{folder}/{word}/{n}.wav", word, None, "test") for n in range(silence)]
    return rows


counts = st.lists(st.integers(1, 30), max_size=12)
corpora = st.builds(
    rows_of,
    st.fixed_dictionaries(
        {"train": st.lists(st.integers(1, 30), min_size=1, max_size=20)},
        optional={"validation": counts, "test": counts},
    ),
    noise=st.lists(st.integers(1, 12), max_size=4),
    silence=st.integers(0, 12),
)
seeds = st.integers(0, 2**32)


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Utterance], int, int]:
    """A corpus, a number of shards that it can fill, and a seed."""
    rows = draw(corpora)
    speakers = {u.speaker for u in rows if u.split == "train"} - {None}
    return rows, draw(st.integers(1, len(speakers))), draw(seeds)


@given(cases())
def test_every_utterance_in_exactly_one_shard(case: tuple[list[Utterance], int, int]) -> None:
    rows, num_shards, seed = case
    shards = [shard(rows, index, num_shards, seed) for index in range(1, num_shards + 1)]
    assert Counter(u for part in shards for u in part) == Counter(rows)
    assert all(any(u.split == "train" for u in part) for part in shards)


@given(cases())
def test_no_speaker_in_two_shards(case: tuple[list[Utterance], int, int]) -> None:
    rows, num_shards, seed = case
    homes = defaultdict(set)
    for row, number in zip(rows, partition_speakers(rows, num_shards, seed), strict=True):
        if row.speaker is not None:
            homes[row.speaker].add(number)
    assert all(len(numbers) == 1 for numbers in homes.values())


@given(cases())
def test_no_noise_sample_in_two_shards(case: tuple[list[Utterance], int, int]) -> None:
    """And a shard's part of a noise file is one piece."""
    rows, num_shards, seed = case
    files = defaultdict(list)
    for row, number in zip(rows, partition_speakers(rows, num_shards, seed), strict=True):
        if row.speaker is None:
            files[row.path].append((row.start, number))
    for clips in files.values():
        starts, numbers = zip(*sorted(clips), strict=True)
        assert np.all(np.diff(starts) >= 16_000)
        changes = 1 + np.count_nonzero(np.diff(numbers))
        assert changes == len(set(numbers))
        sizes = [numbers.count(n) for n in range(num_shards)]
        assert max(sizes) - min(sizes) <= 1


@given(cases(), st.randoms(use_true_random=False))
def test_row_order_is_irrelevant(case: tuple[list[Utterance], int, int], shuffle: random.Random) -> None:
    rows, num_shards, seed = case
    mixed = rows.copy()
    shuffle.shuffle(mixed)
    assert digest(mixed, num_shards, seed) == digest(rows, num_shards, seed)
    for index in range(1, num_shards + 1):
        assert shard(mixed, index, num_shards, seed) == shard(rows, index, num_shards, seed)


@given(cases())
def test_balanced(case: tuple[list[Utterance], int, int]) -> None:
    """In each split shards differ by at most its largest speaker."""
    rows, num_shards, seed = case
    assigned = partition_speakers(rows, num_shards, seed)
    for split in SPLITS:
        loads, people = [0] * num_shards, Counter[str]()
        for row, number in zip(rows, assigned, strict=True):
            if row.split == split and row.speaker is not None:
                loads[number] += 1
                people[row.speaker] += 1
        if people:
            assert max(loads) - min(loads) <= max(people.values())


@given(cases())
def test_splits_are_kept_apart(case: tuple[list[Utterance], int, int]) -> None:
    """What lies in one split has no say in where another split goes."""
    rows, num_shards, seed = case
    whole = dict(zip(rows, partition_speakers(rows, num_shards, seed), strict=True))
    for split in SPLITS:
        fewer = [u for u in rows if u.split in ("train", split)]
        alone = dict(zip(fewer, partition_speakers(fewer, num_shards, seed), strict=True))
        assert all(whole[u] == number for u, number in alone.items())


@given(corpora, seeds)
def test_more_shards_than_speakers(rows: list[Utterance], seed: int) -> None:
    speakers = len({u.speaker for u in rows if u.split == "train"} - {None})
    with pytest.raises(PartitionError, match=f"{speakers} train speakers cannot fill"):
        partition_speakers(rows, speakers + 1, seed)


def test_by_hand() -> None:
    """5 | 4, 3 joins 4, 2 joins 5, and 1 joins the first of two that are equal (7 and 7)."""
    rows = rows_of({"train": [1, 2, 3, 4, 5]}, noise=[4], silence=3)
    numbers = partition_speakers(rows, 2, seed=0)
    homes = {u.speaker: int(n) for u, n in zip(rows, numbers, strict=True) if u.speaker}
    assert homes == {"train4": 0, "train3": 1, "train2": 1, "train1": 0, "train0": 0}
    assert numbers.dtype == np.int64
    assert [len(shard(rows, index, 2, 0)) for index in (1, 2)] == [8 + 2 + 2, 7 + 2 + 1]


def test_seed_decides_among_equals() -> None:
    rows = rows_of({"train": [5] * 20}, noise=[], silence=0)
    assert len({digest(rows, 2, seed) for seed in range(10)}) > 1
    assert digest(rows, 2, 3) == digest(list(rows), 2, 3)


def test_same_in_any_folder() -> None:
    clips = {"train": [5, 5, 5, 2], "test": [3, 1]}
    here, there = (rows_of(clips, [5, 3], 4, folder) for folder in ("/here", "/far/away"))
    assert digest(here, 2, 0) == digest(there, 2, 0)
    names = [[u.name for u in shard(rows, 1, 2, 0)] for rows in (here, there)]
    assert names[0] == names[1]


def test_speaker_of_two_splits_keeps_one_shard() -> None:
    rows = rows_of({"train": [4, 3, 2, 1]}, [], 0)
    rows += [Utterance(f"t/{n}", f"/t/{n}.wav", "yes", u.speaker, "test") for n, u in enumerate(rows[:8])]
    homes = defaultdict(set)
    for row, number in zip(rows, partition_speakers(rows, 2, 0), strict=True):
        homes[row.speaker].add(number)
    assert all(len(numbers) == 1 for numbers in homes.values())


@pytest.mark.parametrize("index", [0, -1, 3])
def test_index_out_of_range(index: int) -> None:
    rows = rows_of({"train": [1, 1]}, [], 0)
    with pytest.raises(PartitionError, match="the first is 1, the last 2"):
        shard(rows, index, 2, 0)


def test_no_shards() -> None:
    with pytest.raises(PartitionError, match="must be at least 1"):
        partition_speakers(rows_of({"train": [1]}, [], 0), 0, 0)


def test_nothing_to_train_on() -> None:
    with pytest.raises(PartitionError, match="0 train speakers cannot fill 1 shards"):
        shard(rows_of({"test": [4]}, noise=[3], silence=2), 1, 1, 0)


def test_overlapping_noise() -> None:
    rows = rows_of({"train": [1, 1]}, noise=[2], silence=0)
    rows.append(replace(rows[-1], start=8_000))
    with pytest.raises(PartitionError, match="overlap"):
        partition_speakers(rows, 2, 0)


PROGRAM = """
import sys
from shard_descriptors.partition import digest
from shard_descriptors.speech_commands import load
print(digest(load(sys.argv[1]).utterances, 3, 7))
"""


@pytest.mark.parametrize("hash_seed", ["0", "1234"])
def test_same_in_another_process(tiny_corpus: Path, hash_seed: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, os.fspath(tiny_corpus)],
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.fspath(Path(__file__).parents[2]),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    assert found == digest(load(tiny_corpus).utterances, 3, 7)


def true_scale_rows() -> list[Utterance]:
    """The full archive's words, from its lists: no audio is needed to partition it."""
    if not LISTS.is_dir():
        pytest.skip("the official file lists are not beside the repository")
    names = [name for path in sorted(LISTS.glob("*_list.txt")) for name in path.read_text().split()]
    return [Utterance(name, name, "yes", speaker_of(name), which_split(name)) for name in names]


def test_true_scale() -> None:
    rows = true_scale_rows()
    assert Counter(u.split for u in rows) == {"train": 51_088, "validation": 6_798, "test": 6_835}
    assert len({u.speaker for u in rows}) == 1_881
    assert digest(rows, 2, 0) == "18599eab5224"
    assert digest(rows, 10, 42) == "635ceba10daf"
    sizes = Counter(partition_speakers([u for u in rows if u.split == "train"], 10, 0).tolist())
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_label_shares_on_real_recordings(real_corpus: Path) -> None:
    rows = load(real_corpus).utterances
    for index in (1, 2):
        part = shard(rows, index, 2, 0)
        assert {u.label for u in part if u.split == "train"} == set(LABELS)
