"""The official layout is read as SUPERB uses it, and refused with a reason when it is not whole."""

import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from shard_descriptors import speech_commands
from shard_descriptors.audio import CLIP_SAMPLES, read_clips
from shard_descriptors.corpus import CorpusError
from shard_descriptors.labels import KEYWORDS, LABELS
from shard_descriptors.speech_commands import load
from shard_descriptors.utterances import Utterance


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
    assert read_clips(noise).shape == (4, 16_000)


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
