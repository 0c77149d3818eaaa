"""The official layout is read as SUPERB uses it, and refused with a reason when it is not whole."""

import itertools
import os
import shutil
import time
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import BESIDE_THE_REPO, read_all
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import fftconvolve

from shard_descriptors.clips.audio import CLIP_SAMPLES
from shard_descriptors.corpus import CorpusError
from shard_descriptors.labels import KEYWORDS, LABELS, OTHER_WORDS
from shard_descriptors.partition.contract import assign
from shard_descriptors.partition.schemes import Speakers
from shard_descriptors.sources import speech_commands
from shard_descriptors.sources.speech_commands import OFFICIAL, SILENCES, TEST_ARCHIVE, describe, load
from shard_descriptors.splits import speaker_of, which_split
from shard_descriptors.utterances import SPLITS, Utterance

LISTS = BESIDE_THE_REPO / "speech_commands_v0.01_lists"


def of(rows: tuple[Utterance, ...], split: str) -> list[Utterance]:
    return [row for row in rows if row.split == split]


def touch(path: Path, seconds: float = 0.01) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.zeros(round(seconds * 16_000)), 16_000)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """The least that is a corpus, by hand: 6 train words, 1 validation word, 1 testing word."""
    archive = tmp_path / "speech_commands_v0.01"
    for word in ("yes", "no", "bed"):
        for speaker in ("aaaaaaaa", "bbbbbbbb"):
            touch(archive / word / f"{speaker}_nohash_0.wav")
    touch(archive / "yes" / "cccccccc_nohash_0.wav")
    touch(archive / "yes" / "dddddddd_nohash_0.wav")
    touch(archive / "_background_noise_" / "hum.wav", seconds=3.5)
    touch(archive / "_background_noise_" / "tap.wav", seconds=0.5)
    (archive / "validation_list.txt").write_text("yes/cccccccc_nohash_0.wav\n")
    (archive / "testing_list.txt").write_text("yes/dddddddd_nohash_0.wav\n")
    test = tmp_path / "speech_commands_test_set_v0.01"
    for label in KEYWORDS:
        touch(test / label / "dddddddd_nohash_0.wav")
    touch(test / "_unknown_" / "bed_dddddddd_nohash_0.wav.wav")
    touch(test / "_silence_" / "17.wav")
    return tmp_path


def test_small(small: Path) -> None:
    rows = load(small).utterances
    assert Counter((u.split, u.label) for u in rows if u.split != "test") == {
        ("train", "yes"): 2,
        ("train", "no"): 2,
        ("train", "_unknown_"): 2,
        ("train", "_silence_"): 2,  # one per noise file, though 4 clips / 10 keywords is less
        ("validation", "yes"): 1,
    }
    assert Counter(u.label for u in of(rows, "test")) == dict.fromkeys(LABELS, 1)
    unknown = next(u for u in of(rows, "test") if u.label == "_unknown_")
    silence = next(u for u in of(rows, "test") if u.label == "_silence_")
    assert (unknown.column("word"), unknown.speaker) == ("bed", "dddddddd")
    assert silence.speaker is None
    assert all(Path(u.path).is_file() for u in rows)
    assert load(str(small)).utterances == rows


def test_noise_is_cut_into_seconds_spread_over_the_file(small: Path) -> None:
    for number in range(40):  # 44 keyword clips: 4 seconds wanted, of which tap.wav has 1
        touch(small / "speech_commands_v0.01" / "go" / f"aaaaaaaa_nohash_{number}.wav")
    noise = [u for u in of(load(small).utterances, "train") if u.label == "_silence_"]
    assert [(Path(u.path).name, u.start) for u in noise] == [
        ("hum.wav", 0),
        ("hum.wav", 16_000),
        ("hum.wav", 32_000),
        ("tap.wav", 0),
    ]
    assert read_all(noise).shape == (4, 16_000)


def test_other_files_are_left_alone(small: Path) -> None:
    rows = load(small).utterances
    archive = small / "speech_commands_v0.01"
    (archive / "README.md").write_text("")
    (archive / "_background_noise_" / "README.md").write_text("")
    (archive / "yes" / ".DS_Store").write_text("")
    (archive / "yes" / "._aaaaaaaa_nohash_0.wav").write_text("")
    assert load(small).utterances == rows


def test_synthetic_corpus(tiny_corpus: Path) -> None:
    rows = load(tiny_corpus).utterances
    assert Counter(u.split for u in rows) == {"train": 180 + 13, "validation": 40, "test": 48}
    assert Counter(u.label for u in of(rows, "test")) == dict.fromkeys(LABELS, 4)
    assert not any(u.label == "_silence_" for u in of(rows, "validation"))
    speakers = [{u.speaker for u in of(rows, s)} - {None} for s in ("train", "validation", "test")]
    assert [len(s) for s in speakers] == [12, 4, 4]
    assert len(set.union(*speakers)) == 20  # type: ignore[arg-type]


def test_real_counts(real_corpus: Path) -> None:
    if real_corpus.name != "speech_commands_mini":
        pytest.skip("the counts are those of speech_commands_mini")
    rows = load(real_corpus).utterances
    words = [u for u in rows if u.label != "_silence_"]
    assert Counter(u.split for u in words) == {"train": 2_220, "validation": 402, "test": 686}
    assert {s: len({u.speaker for u in of(tuple(words), s)}) for s in ("train", "test")} == {
        "train": 121,
        "test": 28,
    }
    assert Counter(u.split for u in rows if u.label == "_silence_") == {"train": 201, "test": 50}
    starts = Counter((u.path, u.start // CLIP_SAMPLES) for u in rows if u.speaker is None)
    assert max(starts.values()) == 1


def test_listing_is_fast(real_corpus: Path) -> None:
    best = min(_seconds(real_corpus) for _ in range(3))
    assert best < 0.2


def _seconds(root: Path) -> float:
    start = time.perf_counter()
    load(root)
    return time.perf_counter() - start


def test_nothing_is_decoded(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(soundfile, "read", refuse)
    monkeypatch.setattr(soundfile.SoundFile, "read", refuse)
    assert load(small).utterances


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("speech_commands_v0.01", "must hold the unpacked archives"),
        ("speech_commands_test_set_v0.01", "must hold the unpacked archives"),
        ("speech_commands_v0.01/validation_list.txt", "validation_list.txt is missing"),
        ("speech_commands_v0.01/testing_list.txt", "testing_list.txt is missing"),
        ("speech_commands_v0.01/_background_noise_", "_background_noise_ is not a folder"),
        ("speech_commands_test_set_v0.01/go", "go is not a folder"),
        ("speech_commands_test_set_v0.01/go/dddddddd_nohash_0.wav", "go has no .wav files"),
        ("speech_commands_v0.01/yes/cccccccc_nohash_0.wav", "names 1 files that are not there"),
        ("speech_commands_v0.01/yes/dddddddd_nohash_0.wav", "names 1 files that are not there"),
        ("speech_commands_v0.01/_background_noise_/hum.wav", None),
    ],
)
def test_missing_parts(small: Path, broken: str, message: str | None) -> None:
    path = small / broken
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    if message is None:
        assert load(small).utterances
        return
    with pytest.raises(CorpusError, match=message):
        load(small)


def test_missing_corpus(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="is not a folder"):
        load(tmp_path / "nowhere")


def test_no_words(small: Path) -> None:
    (small / "speech_commands_v0.01" / "cat").mkdir()
    assert load(small).utterances  # one word without recordings is no fault
    for word in ("yes", "no", "bed"):
        shutil.rmtree(small / "speech_commands_v0.01" / word)
    with pytest.raises(CorpusError, match=r"has no <word>/<speaker>_nohash_<n>\.wav"):
        load(small)


@pytest.mark.parametrize(
    "name",
    [
        "speech_commands_v0.01/yes/me.wav",
        "speech_commands_v0.01/yes/_nohash_0.wav",
        "speech_commands_test_set_v0.01/yes/me.wav",
        "speech_commands_test_set_v0.01/_unknown_/me.wav",
    ],
)
def test_nameless_speaker(small: Path, name: str) -> None:
    touch(small / name)
    with pytest.raises(CorpusError, match="does not say who speaks"):
        load(small)


def test_in_both_lists(small: Path) -> None:
    archive = small / "speech_commands_v0.01"
    (archive / "testing_list.txt").write_text("yes/cccccccc_nohash_0.wav\n")
    with pytest.raises(CorpusError, match=r"yes/cccccccc_nohash_0\.wav is in both lists"):
        load(small)


@pytest.mark.parametrize("content", [b"", b"noise"])
def test_broken_noise_file(small: Path, content: bytes) -> None:
    (small / "speech_commands_v0.01" / "_background_noise_" / "hum.wav").write_bytes(content)
    with pytest.raises(CorpusError, match=r"hum\.wav cannot be read as audio"):
        load(small)


def test_empty_noise_file(small: Path) -> None:
    touch(small / "speech_commands_v0.01" / "_background_noise_" / "hum.wav", seconds=0)
    with pytest.raises(CorpusError, match=r"hum\.wav holds no samples"):
        load(small)


def test_windows_line_ends(small: Path) -> None:
    rows = load(small).utterances
    path = small / speech_commands.ARCHIVE / "validation_list.txt"
    path.write_bytes(b"yes/cccccccc_nohash_0.wav\r\n\r\n")
    assert load(small).utterances == rows


# Silence: the three ways


def noise_of(root: Path, silence: str) -> dict[tuple[str, int], int | None]:
    rows = load(root, silence).utterances
    return {(Path(u.path).name, u.start): u.num_samples for u in of(rows, "train") if u.label == "_silence_"}


def test_three_ways_to_silence(small: Path) -> None:
    touch(small / "speech_commands_v0.01" / "_background_noise_" / "one.wav", seconds=1.9999)
    assert noise_of(small, "files") == {("hum.wav", 0): 56_000, ("tap.wav", 0): 8_000, ("one.wav", 0): 31_998}
    seconds = [("hum.wav", 0), ("hum.wav", 16_000), ("hum.wav", 32_000), ("tap.wav", 0), ("one.wav", 0)]
    assert noise_of(small, "segments") == dict.fromkeys(seconds, 16_000)
    assert noise_of(small, "balanced") == dict.fromkeys([("hum.wav", 0), ("tap.wav", 0), ("one.wav", 0)], 16_000)
    words = {tuple(u for u in load(small, silence).utterances if u.label != "_silence_") for silence in SILENCES}
    assert len(words) == 1
    assert load(small).utterances == load(small, "balanced").utterances


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_lengths_are_counted_at_16_khz(small: Path, rate: int) -> None:
    soundfile.write(small / "speech_commands_v0.01" / "_background_noise_" / "hum.wav", np.zeros(rate * 5 // 2), rate)
    assert noise_of(small, "files")["hum.wav", 0] == 40_000
    assert sorted(start for name, start in noise_of(small, "segments") if name == "hum.wav") == [0, 16_000]


def test_no_other_silence(small: Path) -> None:
    with pytest.raises(CorpusError, match="silence is 'none'; allowed: files, segments, balanced"):
        load(small, silence="none")


@given(
    frames=st.lists(st.integers(1, 100_000), min_size=1, max_size=6),
    rate=st.sampled_from([8_000, 11_025, 16_000, 44_100]),
    keywords=st.integers(0, 300),
    silence=st.sampled_from(sorted(SILENCES)),
)
@settings(max_examples=60, deadline=None)
def test_no_sample_is_in_two_rows(
    tmp_path_factory: pytest.TempPathFactory, frames: list[int], rate: int, keywords: int, silence: str
) -> None:
    """And every row begins within its file; each file gives one row at least."""
    folder = tmp_path_factory.mktemp("noise")
    for number, length in enumerate(frames):
        soundfile.write(folder / f"{number}.wav", np.zeros(length), rate)
    rows = list(speech_commands._noise(folder, silence, keywords))
    pieces = defaultdict(list)
    for row in rows:
        assert row.num_samples is not None
        assert row.num_samples >= 1
        pieces[int(Path(row.path).stem)].append((row.start, row.start + row.num_samples))
    assert pieces.keys() == set(range(len(frames)))
    for number, spans in pieces.items():
        spans.sort()
        assert all(end <= start for (_, end), (start, _) in itertools.pairwise(spans))
        whole = frames[number] * 16_000 // rate
        assert spans[0][0] == 0
        assert spans[-1][1] <= max(whole, 1 if silence == "files" else 16_000)
        if silence == "files":
            assert spans == [(0, max(1, whole))]
        elif silence == "segments":
            assert len(spans) == max(1, whole // 16_000)
    assert len(rows) <= max(len(frames), round(keywords / 10)) or silence != "balanced"


# The published data set: all its names, with one second of sound


def link(names: Iterable[tuple[str, Path]], root: Path) -> None:
    """Files of these names, all with the content of another; a folder at a time, for links to one file are limited."""
    sources: dict[str, str] = {}
    for name, source in names:
        path = os.path.join(root, name)
        folder = os.path.dirname(path)
        if folder not in sources:
            os.makedirs(folder)
            sources[folder] = shutil.copy(source, folder + ".source")
        os.link(sources[folder], path)
    for copy in sources.values():
        os.unlink(copy)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """All 64,721 clips and six noise files by name, and a test archive of the published shape."""
    if not LISTS.is_dir():
        pytest.skip("the official file lists are not beside the repository")
    root = tmp_path_factory.mktemp("published")
    clip, noise = root / "clip.wav", root / "noise.wav"
    touch(clip)
    soundfile.write(noise, np.zeros(61 * 16_000, dtype=np.int16), 16_000)
    listed = {split: (LISTS / f"{split}_list.txt").read_text().split() for split in ("train", "validation", "testing")}
    kinds = ("doing_the_dishes", "dude_miaowing", "exercise_bike", "pink_noise", "running_tap", "white_noise")
    archive = root / speech_commands.ARCHIVE
    link(((name, clip) for names in listed.values() for name in names), archive)
    link(((f"_background_noise_/{kind}.wav", noise) for kind in kinds), archive)
    for split in ("validation", "testing"):
        shutil.copy(LISTS / f"{split}_list.txt", archive)
    keywords = [name for name in listed["testing"] if name.split("/")[0] in KEYWORDS]
    others = [name for name in listed["testing"] if name.split("/")[0] in OTHER_WORDS]
    unknown = [f"_unknown_/{name.replace('/', '_')}.wav" for name in others[:: len(others) // 257][:257]]
    silence = [f"_silence_/{number}.wav" for number in range(0, 257 * 19, 19)]
    link(((name, clip) for name in (*keywords, *unknown, *silence)), root / TEST_ARCHIVE)
    yield root
    shutil.rmtree(root)  # pytest would keep 68,000 files of each of its last runs


def test_published_counts(published: Path) -> None:
    corpus = load(published, silence="files")
    labels = {split: Counter(u.label for u in of(corpus.utterances, split)) for split in SPLITS}
    assert {split: labels[split].total() for split in SPLITS} == OFFICIAL
    assert OFFICIAL == {"train": 51_094, "validation": 6_798, "test": 3_081}
    train = (1860, 1853, 1843, 1842, 1839, 1852, 1864, 1839, 1885, 1861, 6, 32_550)
    validation = (261, 270, 260, 264, 247, 256, 257, 256, 246, 260, 0, 4221)
    test = (256, 252, 272, 253, 267, 259, 246, 262, 249, 251, 257, 257)
    for split, numbers in zip(SPLITS, (train, validation, test), strict=True):
        assert [labels[split][label] for label in LABELS] == [*numbers], split
    assert labels["train"]["_unknown_"] / labels["train"].total() == pytest.approx(0.64, abs=0.005)
    assert "These are the counts of SUPERB KS." in describe(published)
    # Silence of any other kind is another number of utterances, and the same words.
    seconds = {silence: len(of(load(published, silence).utterances, "train")) - 51_088 for silence in SILENCES}
    assert seconds == {"files": 6, "segments": 6 * 61, "balanced": 6 * 61}


def test_published_splits(published: Path) -> None:
    """No speaker is in two splits, no utterance is there twice, and the speaker's hash says which split."""
    rows = load(published, silence="files").utterances
    people = {split: {u.speaker for u in of(rows, split)} - {None} for split in SPLITS}
    assert (len(people["train"]), len(people["validation"])) == (1_503, 189)
    assert people["test"] <= {speaker_of(name) for name in (LISTS / "testing_list.txt").read_text().split()}
    assert sum(len(each) for each in people.values()) == len(set.union(*people.values()))
    assert all(which_split(speaker) == split for split in SPLITS for speaker in people[split] if speaker)
    assert len({u.name for u in rows}) == len({u.path for u in rows}) == len(rows)
    homes = zip(rows, assign(rows, Speakers(), 2, 0), strict=True)
    assert Counter(int(home) for u, home in homes if u.num_samples) == {0: 3, 1: 3}  # noise files, each at one site


def test_published_lists() -> None:
    """The rule by the speaker's hash gives the three lists without an exception."""
    if not LISTS.is_dir():
        pytest.skip("the official file lists are not beside the repository")
    lists = {"train": "train", "validation": "validation", "test": "testing"}
    names = {split: (LISTS / f"{name}_list.txt").read_text().split() for split, name in lists.items()}
    assert [name for split in SPLITS for name in names[split] if which_split(name) != split] == []
    people = [{speaker_of(name) for name in names[split]} for split in SPLITS]
    assert [len(each) for each in people] == [1_503, 189, 189]
    assert len(set.union(*people)) == 1_881


# Real recordings


def mini(real_corpus: Path) -> Path:
    if real_corpus.name != "speech_commands_mini":
        pytest.skip("known of speech_commands_mini")
    return real_corpus


def test_traps_of_the_real_archives(real_corpus: Path) -> None:
    corpus = load(mini(real_corpus), silence="files")
    test = of(corpus.utterances, "test")
    unknown = [u for u in test if u.label == "_unknown_"]
    assert all(u.path.endswith(".wav.wav") for u in unknown)
    assert {u.column("word") for u in unknown} <= {*OTHER_WORDS, "backward", "follow", "forward", "learn", "visual"}
    assert all(u.speaker and u.speaker == speaker_of(Path(u.path).name.partition("_")[2]) for u in unknown)
    silence = [u for u in test if u.label == "_silence_"]
    assert all(u.speaker is None and Path(u.path).stem.isdecimal() for u in silence)
    noise = [u for u in of(corpus.utterances, "train") if u.label == "_silence_"]
    assert len(noise) == 6
    assert all(u.num_samples and 60 * 16_000 <= u.num_samples <= 96 * 16_000 for u in noise)
    assert corpus.format.label_ids == {label: number for number, label in enumerate(LABELS)}
    assert (corpus.format.label_ids["_silence_"], corpus.format.label_ids["_unknown_"]) == (10, 11)
    # By the folder's name, whatever the order in which a disk gives the folders.
    for u in corpus.utterances:
        folder = Path(u.path).parent.name
        assert u.label == {"_background_noise_": "_silence_"}.get(folder, folder if folder in LABELS else "_unknown_")
    assert "These are not the counts of SUPERB KS" in describe(real_corpus)


def test_test_silence_is_cut_from_the_training_noise(real_corpus: Path) -> None:
    """A property of the published data: test silence is heard in training, only louder or softer."""
    rows = load(mini(real_corpus), silence="files").utterances
    noises = [soundfile.read(u.path)[0] for u in of(rows, "train") if u.label == "_silence_"]
    clips = [soundfile.read(u.path)[0] for u in of(rows, "test") if u.label == "_silence_"]
    assert all(max(likeness(noise, clip) for noise in noises) > 0.99 for clip in clips[::10])


def likeness(noise: np.ndarray, clip: np.ndarray) -> float:
    """The largest absolute correlation of a clip with any part of a noise, 0..1."""
    clip, size = clip - clip.mean(), len(clip)
    sums, squares = (np.concatenate([[0], np.cumsum(noise**power)]) for power in (1, 2))
    energy = squares[size:] - squares[:-size] - (sums[size:] - sums[:-size]) ** 2 / size
    products = fftconvolve(noise, clip[::-1], mode="valid")
    return float(np.max(np.abs(products) / np.sqrt(np.maximum(energy, 1e-9) * np.sum(clip**2))))


# Names that are not as they should be


def test_a_misspelt_word_is_not_unknown_speech(small: Path) -> None:
    touch(small / "speech_commands_v0.01" / "yess" / "aaaaaaaa_nohash_0.wav")
    with pytest.raises(CorpusError, match=r"has recordings of 'yess', which is no word .* Allowed: yes, no, up"):
        load(small)


@pytest.mark.parametrize("word", ["notes", "_hidden", ".git", "visual"])
def test_folders_that_are_no_matter(small: Path, word: str) -> None:
    """Without recordings, not a word by its first letter, or one of the words that v0.02 added."""
    rows = load(small).utterances
    (small / "speech_commands_v0.01" / word).mkdir()
    if word != "notes":
        touch(small / "speech_commands_v0.01" / word / "aaaaaaaa_nohash_0.wav")
    assert len(load(small).utterances) == len(rows) + (word == "visual")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("eva_nohash_0.wav", "eva_nohash_0.WAV"),
        ("eva_nohash_0.wav", "Eva_nohash_0.wav"),
        *[tuple(unicodedata.normalize(form, "zoë_nohash_0.wav") for form in ("NFC", "NFD"))],
    ],
)
def test_two_files_that_are_one_on_another_machine(small: Path, first: str, second: str) -> None:
    touch(small / "speech_commands_v0.01" / "yes" / first)
    assert load(small).utterances
    touch(small / "speech_commands_v0.01" / "yes" / second)
    if len(list((small / "speech_commands_v0.01" / "yes").iterdir())) == 5:
        pytest.skip("they are one on this machine")
    with pytest.raises(CorpusError, match="are one name where case or the form of accents does not count"):
        load(small)


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_names_are_the_same_in_both_forms_of_accents(small: Path, form: str) -> None:
    root = small.rename(small.with_name(unicodedata.normalize(form, "Aufnahmen für Zoë 音声")))
    archive = root / "speech_commands_v0.01"
    for number in (0, 1):
        touch(archive / "yes" / unicodedata.normalize(form, f"zoë_nohash_{number}.wav"))
    (archive / "validation_list.txt").write_text("yes/cccccccc_nohash_0.wav\nyes/zoë_nohash_1.wav\n")
    rows = [u for u in load(root).utterances if u.name.startswith("yes/zoë")]
    assert [(u.name, u.speaker, u.split) for u in rows] == [
        ("yes/zoë_nohash_0.wav", "zoë", "train"),
        ("yes/zoë_nohash_1.wav", "zoë", "validation"),
    ]
    assert read_all(rows).shape == (2, 16_000)


@pytest.mark.parametrize("name", [b"ev\xff_nohash_0.wav", b"ev\n_nohash_0.wav"])
def test_names_that_are_no_text(small: Path, name: bytes) -> None:
    folder = os.fsencode(small / "speech_commands_v0.01" / "yes")
    try:
        os.link(os.path.join(folder, b"aaaaaaaa_nohash_0.wav"), os.path.join(folder, name))
    except OSError:
        pytest.skip("this file system takes no such name")
    with pytest.raises(CorpusError, match=r"yes has a file of the name 'ev.*', which is not plain UTF-8; rename it"):
        load(small)


def test_a_list_that_is_no_text(small: Path) -> None:
    (small / speech_commands.ARCHIVE / "testing_list.txt").write_bytes(b"yes/\xff\n")
    with pytest.raises(CorpusError, match=r"testing_list\.txt is not UTF-8 text"):
        load(small)
