"""Properties of every scheme on random corpora, and golden figures on the true speaker structure."""

import itertools
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from corpora import BESIDE_THE_REPO
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from shard_descriptors.corpus import Corpus
from shard_descriptors.labels import LABELS, label_of
from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme, assign, digest, homes, shard_of
from shard_descriptors.partition.report import preview
from shard_descriptors.partition.schemes import (
    SCHEMES,
    Clients,
    Column,
    Dirichlet,
    Iid,
    Own,
    Pathological,
    Quantity,
    Speakers,
    described,
    scheme_of,
)
from shard_descriptors.sources.speech_commands import load
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
        Utterance(
            f"{split}{s}/{n}",
            f"{folder}/{split}{s}_{n}.wav",
            ("yes", "no", "up")[n % 3],
            f"{split}{s}",
            split,
            columns=(("accent", f"accent {s}"),),
        )
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


Case = tuple[list[Utterance], Scheme, int, int]


@st.composite
def cases(draw: st.DrawFn, *kinds: type[Scheme]) -> Case:
    """A corpus, a scheme of one of these kinds, a number of shards that its speakers can fill, and a seed."""
    rows = draw(corpora)
    speakers = len({u.speaker for u in rows if u.split == "train"} - {None})
    kind = draw(st.sampled_from(kinds))
    num_shards = 1 if kind is Own else draw(st.integers(1, speakers))
    scheme: Scheme
    if kind is Clients and draw(st.booleans()):
        scheme = Clients(draw(st.integers(1, speakers)))
        num_shards = scheme.natural_shards(rows) or 0
    elif kind is Column:
        scheme = Column("accent")
    elif kind in (Quantity, Dirichlet):
        scheme = kind(alpha=draw(st.floats(0.3, 30)), **({"min_utterances": 1} if kind is Dirichlet else {}))
    elif kind is Pathological:
        labels = len({u.label for u in rows if u.split == "train"})
        scheme = Pathological(draw(st.integers(math.ceil(labels / num_shards), labels)))
    else:
        scheme = kind()
    return rows, scheme, num_shards, draw(seeds)


def assigned_or_reject(rows: list[Utterance], scheme: Scheme, num_shards: int, seed: int) -> Assignment:
    """An assignment; a case that the scheme refuses with a reason is none."""
    try:
        return assign(rows, scheme, num_shards, seed)
    except PartitionError:
        assert isinstance(scheme, Dirichlet | Pathological), "whole speakers always fill as many shards"
        reject()


every_kind = cases(*SCHEMES.values())
whole_speakers = cases(*(kind for kind in SCHEMES.values() if kind.keeps_speakers))


@given(every_kind)
def test_every_utterance_in_exactly_one_shard_and_none_empty(case: Case) -> None:
    rows, _, num_shards, _ = case
    assigned = assigned_or_reject(*case)
    assert assigned.shape == (len(rows),)
    assert assigned.dtype == np.int64
    shards = [shard_of(rows, assigned, index) for index in range(1, num_shards + 1)]
    assert Counter(u for part in shards for u in part) == Counter(rows)
    assert all(any(u.split == "train" for u in part) for part in shards)


@given(whole_speakers)
def test_no_speaker_in_two_shards(case: Case) -> None:
    rows = case[0]
    assert all(len(numbers) == 1 for numbers in homes(rows, assign(*case)).values())


@given(cases(Column))
def test_no_value_of_a_column_in_two_shards(case: Case) -> None:
    rows = case[0]
    found = defaultdict(set)
    for row, number in zip(rows, assign(*case).tolist(), strict=True):
        found[row.column("accent")].add(number)
    assert all(len(numbers) == 1 for accent, numbers in found.items() if accent)


@given(every_kind)
def test_no_noise_sample_in_two_shards(case: Case) -> None:
    rows = case[0]
    heard = defaultdict(list)
    for row, number in zip(rows, assigned_or_reject(*case).tolist(), strict=True):
        if row.speaker is None:
            heard[row.path].append((row.start, row.start + (row.num_samples or 1), number))
    for clips in heard.values():
        for (_, end, _), (start, _, _) in itertools.pairwise(sorted(clips)):
            assert end <= start


@given(cases(Speakers, Clients, Quantity, Column))
def test_a_noise_file_is_cut_into_consecutive_blocks(case: Case) -> None:
    rows, _, num_shards, _ = case
    files = defaultdict(list)
    for row, number in zip(rows, assign(*case).tolist(), strict=True):
        if row.speaker is None:
            files[row.path].append((row.start, number))
    for clips in files.values():
        numbers = [number for _, number in sorted(clips)]
        assert 1 + np.count_nonzero(np.diff(numbers)) == len(set(numbers))
        sizes = [numbers.count(n) for n in range(num_shards)]
        assert max(sizes) - min(sizes) <= 1


@given(every_kind, st.randoms(use_true_random=False))
def test_row_order_is_irrelevant(case: Case, shuffle: random.Random) -> None:
    rows, scheme, num_shards, seed = case
    assigned = assigned_or_reject(*case)
    mixed = rows.copy()
    shuffle.shuffle(mixed)
    again = assign(mixed, scheme, num_shards, seed)
    assert digest(mixed, again) == digest(rows, assigned)
    assert dict(zip(mixed, again.tolist(), strict=True)) == dict(zip(rows, assigned.tolist(), strict=True))


@given(cases(Speakers))
def test_balanced(case: Case) -> None:
    """In each split shards differ by at most its largest speaker."""
    rows, _, num_shards, _ = case
    assigned = assign(*case)
    for split in SPLITS:
        loads, people = [0] * num_shards, Counter[str]()
        for row, number in zip(rows, assigned.tolist(), strict=True):
            if row.split == split and row.speaker is not None:
                loads[number] += 1
                people[row.speaker] += 1
        if people:
            assert max(loads) - min(loads) <= max(people.values())


@given(cases(Speakers, Column))
def test_one_more_shard_only_takes(case: Case) -> None:
    """Nobody moves between the shards that were there before."""
    rows, scheme, num_shards, seed = case
    speakers = {u.speaker for u in rows if u.split == "train"} - {None}
    if num_shards == len(speakers):
        return
    before, after = homes(rows, assign(*case)), homes(rows, assign(rows, scheme, num_shards + 1, seed))
    assert all(after[speaker] in (before[speaker], {num_shards}) for speaker in before)


@given(cases(Clients))
def test_clients_have_as_many_speakers_each(case: Case) -> None:
    rows, scheme, num_shards, _ = case
    assert isinstance(scheme, Clients)
    sizes = Counter(
        number
        for speaker, (number,) in homes(rows, assign(*case)).items()
        if any(u.speaker == speaker and u.split == "train" for u in rows)
    )
    if scheme.speakers_per_client:
        assert sorted(sizes.values())[1:] == [scheme.speakers_per_client] * (num_shards - 1)
        assert min(sizes.values()) <= scheme.speakers_per_client
    else:
        assert max(sizes.values()) - min(sizes.values()) <= 1


@given(cases(Pathological))
def test_pathological_shards_have_no_more_labels_than_asked_for(case: Case) -> None:
    rows, scheme, num_shards, _ = case
    assert isinstance(scheme, Pathological)
    assigned = assigned_or_reject(*case)
    for index in range(1, num_shards + 1):
        assert len({u.label for u in shard_of(rows, assigned, index)}) <= scheme.labels_per_shard


@given(cases(Iid))
def test_iid_shards_are_of_one_size_in_every_split(case: Case) -> None:
    rows, _, num_shards, _ = case
    assigned = assign(*case)
    for split in SPLITS:
        sizes = Counter(int(n) for row, n in zip(rows, assigned, strict=True) if row.split == split)
        if sizes:
            assert max(sizes.values()) - min(sizes[n] for n in range(num_shards)) <= 1


@given(cases(Speakers, Clients))
def test_splits_are_kept_apart(case: Case) -> None:
    """What lies in one split has no say in where another split goes."""
    rows, scheme, num_shards, seed = case
    whole = dict(zip(rows, assign(*case).tolist(), strict=True))
    for split in SPLITS:
        fewer = [u for u in rows if u.split in ("train", split)]
        alone = dict(zip(fewer, assign(fewer, scheme, num_shards, seed).tolist(), strict=True))
        assert all(whole[u] == number for u, number in alone.items())


@given(corpora, seeds, st.sampled_from([Speakers(), Clients(), Quantity()]))
def test_more_shards_than_speakers(rows: list[Utterance], seed: int, scheme: Scheme) -> None:
    speakers = len({u.speaker for u in rows if u.split == "train"} - {None})
    with pytest.raises(PartitionError, match=f"{speakers} train speakers cannot fill"):
        assign(rows, scheme, speakers + 1, seed)


def test_by_hand() -> None:
    """Of 12 utterances the new shard gets 6, whoever the lot names first: 6, or 3 + 2 + 1. The noise is cut in two."""
    rows = rows_of({"train": [1, 2, 3, 6]}, noise=[4], silence=3)
    for seed in range(20):
        numbers = assign(rows, Speakers(), 2, seed)
        found = homes(rows, numbers)
        assert found["train0"] == found["train1"] == found["train2"] != found["train3"]
        assert [len(shard_of(rows, numbers, index)) for index in (1, 2)] == [6 + 2 + 2, 6 + 2 + 1]


def test_seed_decides_who_moves() -> None:
    rows = rows_of({"train": [5] * 20}, noise=[], silence=0)
    digests = [digest(rows, assign(rows, Speakers(), 2, seed)) for seed in range(10)]
    assert len(set(digests)) > 1
    assert digests[3] == digest(rows, assign(list(rows), Speakers(), 2, 3))


def test_same_in_any_folder() -> None:
    clips = {"train": [5, 5, 5, 2], "test": [3, 1]}
    here, there = (rows_of(clips, [5, 3], 4, folder) for folder in ("/here", "/far/away"))
    first, second = assign(here, Speakers(), 2, 0), assign(there, Speakers(), 2, 0)
    assert digest(here, first) == digest(there, second)
    assert [u.name for u in shard_of(here, first, 1)] == [u.name for u in shard_of(there, second, 1)]


def test_a_column_counts_also_where_nobody_knows_who_speaks() -> None:
    rows = [
        Utterance(f"{n}", f"{n}.wav", "yes", None, "train", columns=(("accent", "north" if n % 3 else "south"),))
        for n in range(12)
    ]
    assigned = assign(rows, Column("accent"), 2, 0)
    assert {u.column("accent") for u in shard_of(rows, assigned, 1)} == {"north"}
    assert {u.column("accent") for u in shard_of(rows, assigned, 2)} == {"south"}


@pytest.mark.parametrize("scheme", [Speakers(), Clients(), Quantity(), Column("accent")])
def test_a_speaker_of_two_splits_keeps_one_shard(scheme: Scheme) -> None:
    rows = rows_of({"train": [4, 3, 2, 1]}, [], 0)
    rows += [replace(u, name=f"t/{n}", split="test") for n, u in enumerate(rows[:8])]
    assert all(len(numbers) == 1 for numbers in homes(rows, assign(rows, scheme, 2, 0)).values())


def test_quantity_skew_grows_as_alpha_falls() -> None:
    rows = rows_of({"train": [3] * 400}, [], 0)
    spreads = []
    for alpha in (0.2, 2.0, 200.0):
        sizes = np.bincount(assign(rows, Quantity(alpha), 8, 1), minlength=8)
        spreads.append(int(sizes.max() - sizes.min()))
    assert spreads[0] > spreads[1] > spreads[2]
    assert spreads[2] < 60


def test_dirichlet_is_the_librarys() -> None:
    """The same proportions as `flwr-datasets` draws when it is asked directly."""
    from datasets import Dataset
    from flwr_datasets.partitioner import DirichletPartitioner

    rows = rows_of({"train": [30] * 40, "validation": [9] * 10}, [20], 0)
    assigned = assign(rows, Dirichlet(0.4), 5, 7)
    theirs = DirichletPartitioner(5, "label", 0.4, seed=7, shuffle=False)
    theirs.dataset = Dataset.from_dict({"label": [u.label for u in rows]})
    for number in range(5):
        ours = Counter(u.label for u in shard_of(rows, assigned, number + 1))
        assert ours == Counter(theirs.load_partition(number)["label"])


def test_dirichlet_gives_the_splits_the_same_mixture() -> None:
    rows = rows_of({"train": [30] * 100, "validation": [30] * 40}, [], 0)
    assigned = assign(rows, Dirichlet(0.5), 3, 0)
    for index in (1, 2, 3):
        part = shard_of(rows, assigned, index)
        shares = []
        for split in ("train", "validation"):
            labels = [u.label for u in part if u.split == split]
            shares.append([labels.count(label) / len(labels) for label in ("yes", "no", "up")])
        np.testing.assert_allclose(*shares, atol=0.1)


@pytest.mark.parametrize(
    ("scheme", "num_shards", "message"),
    [
        (Speakers(), 0, "must be at least 1"),
        (Clients(2), 3, r"4 train speakers, 2 to a client, make 2 shards, not 3"),
        (Column("age"), 2, r"such as .*, have no 'age'; columns here: label, speaker, accent"),
        (Column("accent"), 5, "4 train values of 'accent' cannot fill 5 shards"),
        (Dirichlet(0.01, min_utterances=10), 4, r"alpha 0\.01 leaves some of 4 shards with fewer than 10"),
        (Pathological(1), 2, "2 shards with 1 labels each cannot hold 3 labels.*: 2 to 3"),
        (Pathological(4), 2, "2 shards with 4 labels each cannot hold 3 labels"),
        (Iid(), 41, "would have nothing to train on"),
        (Own(), 2, "own recordings are not shared out, and `of` is 2; leave"),
    ],
)
def test_what_cannot_be_is_said(scheme: Scheme, num_shards: int, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        assign(rows_of({"train": [10, 10, 10, 10]}, [], 0), scheme, num_shards, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("stride", "scheme is 'stride'; allowed: speakers, clients"),
        ({"alpha": 1}, "scheme is None; allowed: speakers"),
        ({"scheme": "dirichlet", "beta": 1}, "dirichlet has no setting 'beta'; allowed: alpha, min_utterances"),
        ({"scheme": "iid", "alpha": 1}, "iid has no setting 'alpha'; allowed: none"),
        ({"scheme": "column"}, "column needs column"),
        ({"scheme": "dirichlet", "alpha": 0}, "alpha is 0; it must be a number above 0"),
        ({"scheme": "quantity", "alpha": "much"}, "alpha is 'much'"),
        ({"scheme": "quantity", "alpha": float("nan")}, "alpha is nan"),
        (
            {"scheme": "clients", "speakers_per_client": 0},
            "speakers_per_client is 0; it must be a whole number",
        ),
        ({"scheme": "pathological", "labels_per_shard": 1.5}, "labels_per_shard is 1.5"),
    ],
)
def test_settings_that_are_not_allowed(given: str | dict[str, object], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        scheme_of(given)


@pytest.mark.parametrize("name", SCHEMES)
def test_a_scheme_is_described_so_that_it_can_be_made_again(name: str) -> None:
    scheme = scheme_of({"scheme": name, **({"column": "accent"} if name == "column" else {})})
    assert scheme_of(json.loads(json.dumps(described(scheme)))) == scheme
    assert described(scheme)["scheme"] == name


def test_nothing_to_train_on() -> None:
    with pytest.raises(PartitionError, match="0 train speakers cannot fill 1 shards"):
        assign(rows_of({"test": [4]}, noise=[3], silence=2), Speakers(), 1, 0)


def test_overlapping_noise() -> None:
    rows = rows_of({"train": [1, 1]}, noise=[2], silence=0)
    rows.append(replace(rows[-1], start=8_000))
    with pytest.raises(PartitionError, match="overlap"):
        assign(rows, Iid(), 2, 0)


PROGRAM = """
import sys
from shard_descriptors.partition.contract import assign, digest
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.speech_commands import load
rows = load(sys.argv[1]).utterances
for name in sys.argv[2:]:
    print(digest(rows, assign(rows, scheme_of(name), 3, 7)))
"""
NAMES = ["speakers", "clients", "quantity", "dirichlet", "iid"]


@pytest.mark.parametrize("hash_seed", ["0", "1234"])
def test_same_in_another_process(tiny_corpus: Path, hash_seed: str) -> None:
    found = subprocess.run(
        [sys.executable, "-c", PROGRAM, os.fspath(tiny_corpus), *NAMES],
        env={
            **os.environ,
            "PYTHONHASHSEED": hash_seed,
            "PYTHONPATH": os.fspath(Path(__file__).parents[3]),
        },
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    rows = load(tiny_corpus).utterances
    assert found == [digest(rows, assign(rows, scheme_of(name), 3, 7)) for name in NAMES]


@pytest.fixture(scope="module")
def true_scale() -> list[Utterance]:
    """The full archive's words, from its lists: no audio is needed to partition it."""
    if not LISTS.is_dir():
        pytest.skip("the official file lists are not beside the repository")
    names = [name for path in sorted(LISTS.glob("*_list.txt")) for name in path.read_text().split()]
    words = [name.split("/")[0] for name in names]
    return [
        Utterance(name, name, label_of(word), speaker_of(name), which_split(name), columns=(("word", word),))
        for name, word in zip(names, words, strict=True)
    ]


@pytest.mark.parametrize(
    ("scheme", "num_shards", "seed", "expected"),
    [
        (Speakers(), 2, 0, "3ae2d858a012"),
        (Speakers(), 10, 42, "b79890d5722d"),
        (Clients(1), 1503, 0, "fc438a8e05ef"),
        (Clients(3), 501, 0, "28910d624856"),
        (Quantity(0.5), 10, 0, "6e75884f3f7c"),
        (Column("word"), 5, 0, "540f763d2c97"),
        (Dirichlet(0.3), 10, 0, "67698902f3fb"),
        (Pathological(3), 10, 0, "0008d27d6c2b"),
        (Iid(), 10, 0, "ab031d31b30f"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Scheme) else "",
)
def test_true_scale(true_scale: list[Utterance], scheme: Scheme, num_shards: int, seed: int, expected: str) -> None:
    assigned = assign(true_scale, scheme, num_shards, seed)
    assert digest(true_scale, assigned) == expected
    torn = sum(len(numbers) > 1 for numbers in homes(true_scale, assigned).values())
    if scheme.keeps_speakers:
        assert torn == 0
    elif not isinstance(scheme, Column):
        assert torn > 0.9 * 1881


def test_true_scale_counts(true_scale: list[Utterance]) -> None:
    assert Counter(u.split for u in true_scale) == {"train": 51_088, "validation": 6_798, "test": 6_835}
    assert len({u.speaker for u in true_scale}) == 1_881


@pytest.mark.parametrize("seed", range(5))
def test_ten_sites_are_within_two_percent(true_scale: list[Utterance], seed: int) -> None:
    train = [u for u in true_scale if u.split == "train"]
    sizes = np.bincount(assign(train, Speakers(), 10, seed))
    assert sizes.max() / sizes.min() < 1.02


def test_one_more_site_moves_one_utterance_in_eleven(true_scale: list[Utterance]) -> None:
    ten, eleven = (assign(true_scale, Speakers(), number, 0) for number in (10, 11))
    assert np.mean(ten != eleven) == pytest.approx(1 / 11, rel=0.02)


def test_label_shares_on_real_recordings(real_corpus: Path) -> None:
    rows = load(real_corpus).utterances
    assigned = assign(rows, Speakers(), 2, 0)
    for index in (1, 2):
        assert {u.label for u in shard_of(rows, assigned, index) if u.split == "train"} == set(LABELS)


def test_the_figures_of_the_docs(true_scale: list[Utterance]) -> None:
    page = (Path(__file__).parents[3] / "docs" / "partitions.md").read_text(encoding="utf-8")
    corpus = Corpus.of("full", true_scale)
    rows = re.findall(
        r"^\| `(\w+)` \| ([\d,]+) and ([\d,]+) \| (.*) \| (.*) \| (\d+) \| (.*) % \|$", page, re.MULTILINE
    )
    assert {row[0] for row in rows} == SCHEMES.keys() - {"own"}
    for name, *shown in rows:
        made = preview(corpus, scheme_of({"scheme": name, **({"column": "word"} if name == "column" else {})}), 10, 0)
        assert made["one_more_shard"] is not None
        sizes = [summary["utterances"]["train"] for summary in made["shards"].values()]
        assert shown == [
            f"{min(sizes):,}",
            f"{max(sizes):,}",
            f"{made['skew']['label_kl_mean']:.3f}",
            f"{made['skew']['quantity_gini']:.3f}",
            str(made["torn_speakers"]),
            f"{100 * made['one_more_shard']['utterances']:.1f}",
        ], name


def test_the_figures_of_the_data_sheet(true_scale: list[Utterance]) -> None:
    page = " ".join((Path(__file__).parents[3] / "docs" / "data_sheet.md").read_text(encoding="utf-8").split())
    train = [u for u in true_scale if u.split == "train"]
    clips = sorted(Counter(u.speaker for u in train).values())
    tenth = sum(clips[-(len(clips) // 10) :]) / len(train)
    assert (
        f"A train speaker has {clips[0]} to {clips[-1]} clips, {np.median(clips):.0f} in the median, "
        f"{np.mean(clips):.0f} on average; a tenth of them hold {tenth:.0%}".replace("%", " %")
    ) in page
    rows = {
        "train": f"| train | {len(train) + 6:,}† | {len(train):,} words, 6 noise files | {len(clips):,}† |",
        "validation": "| validation | 6,798† | words only: no silence | 189† |",
    }
    for split, row in rows.items():
        labels = [u.label for u in true_scale if u.split == split]
        assert f"{row} {labels.count('_unknown_') / len(labels):.0%} |".replace("% |", " % |") in page
