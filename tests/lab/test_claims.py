"""What is said of the test utterances is counted."""

from pathlib import Path

import numpy as np
import pytest
from corpora import BESIDE_THE_REPO
from recordings import sound, write

from lab.claims import Overlap, count_overlap
from shard_descriptors.corpus import ClipFormat, Corpus
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.utterances import Utterance

FORM = ClipFormat(("yes", "no", "_silence_"))


def corpus(folder: Path, *rows: tuple[str, str, str | None, int]) -> Corpus:
    """Of (split, label, speaker, number of the sound); sound 0 is digital silence."""
    utterances = []
    for place, (split, label, speaker, number) in enumerate(rows):
        samples = sound(number) if number else np.zeros(16_000, np.int16)
        path = write(folder / f"{place}.wav", samples)
        utterances.append(Utterance(path.name, str(path), label, speaker, split))
    return Corpus.of("made", utterances, FORM)


def test_new_speakers(tmp_path: Path) -> None:
    counted = count_overlap(
        corpus(
            tmp_path, ("train", "yes", "a", 1), ("train", "_silence_", None, 2), ("validation", "no", "b", 3),
            ("test", "yes", "c", 4), ("test", "no", "d", 5), ("test", "_silence_", None, 0),
        )
    )  # fmt: skip
    assert counted == Overlap(speakers=2, trained=0, validated=0, nameless=0, recordings=3, equal=0)
    assert counted.new
    assert counted.sentence() == "2 speakers that no site trained on"


def test_speakers_in_two_splits_and_recordings_that_are_there_twice(tmp_path: Path) -> None:
    counted = count_overlap(
        corpus(
            tmp_path, ("train", "yes", "a", 1), ("train", "_silence_", None, 0), ("validation", "no", "b", 3),
            ("test", "yes", "a", 4), ("test", "no", "b", 3), ("test", "no", "c", 1), ("test", "_silence_", None, 0),
        )
    )  # fmt: skip
    assert counted == Overlap(speakers=3, trained=1, validated=1, nameless=0, recordings=4, equal=2)
    assert not counted.new
    assert counted.sentence() == (
        "3 speakers; 1 of them also in the training data; 2 of 4 recordings also in train or validation; "
        "the best model was chosen on 1 of them"
    )


def test_speakers_whom_nobody_knows(tmp_path: Path) -> None:
    counted = count_overlap(corpus(tmp_path, ("train", "yes", None, 1), ("test", "yes", None, 2)))
    assert not counted.new
    assert counted.sentence() == "nobody knows whom; the speakers of 2 utterances (train and test) are not known"


def test_a_recording_is_the_same_whatever_file_it_is_in(tmp_path: Path) -> None:
    made = corpus(tmp_path, ("train", "yes", "a", 1), ("test", "yes", "b", 2))
    write(tmp_path / "1.wav", np.repeat(sound(1)[:, None], 2, axis=1))  # in stereo
    assert count_overlap(made).equal == 1
    (tmp_path / "1.wav").write_bytes(b"no sound")
    assert count_overlap(made).equal == 0, "what cannot be read is told where it is used"


def test_the_real_test_archive_is_of_new_speakers() -> None:
    root = BESIDE_THE_REPO / "speech_commands_mini"
    if not root.exists():
        pytest.skip(f"needs the recordings in {root}")
    rows = load(root).utterances
    counted = count_overlap(Corpus.of("some", [row for n, row in enumerate(rows) if row.split == "test" or n % 5 == 0]))
    assert counted.sentence() == "28 speakers that no site trained on"
    assert (counted.recordings, counted.equal) == (736, 0)
