"""Speech Commands v0.01 as the SUPERB keyword-spotting task uses it.

`root` holds the two unpacked archives:

    speech_commands_v0.01/            <word>/<speaker>_nohash_<n>.wav, _background_noise_/*.wav,
                                      validation_list.txt, testing_list.txt
    speech_commands_test_set_v0.01/   the twelve labels; unknown clips are named
                                      <word>_<speaker>_nohash_<n>.wav.wav, silence <number>.wav

train:       words in neither list, and silence cut from the noise files.
validation:  validation_list.txt; it has no silence, as published.
test:        the test archive. testing_list.txt is left out: the archive is drawn from it.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import soundfile

from shard_descriptors.audio import CLIP_SAMPLES, SAMPLE_RATE
from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.labels import (
    BACKGROUND_NOISE,
    KEYWORDS,
    LABELS,
    SILENCE,
    UNKNOWN,
    label_of,
)
from shard_descriptors.splits import speaker_of
from shard_descriptors.utterances import Utterance

ARCHIVE = "speech_commands_v0.01"
TEST_ARCHIVE = "speech_commands_test_set_v0.01"


SETTINGS_FILE = "synthetic.json"  # marks a corpus as synthetic
SYNTHETIC = "synthetic"
"""The name of every corpus that was made by espeak-ng."""


def load(root: Path | str) -> Corpus:
    """The corpus in `root`. No audio is decoded.

    CorpusError for a missing folder or list, a list that names a missing file, a file without a
    speaker in its name, a folder without recordings.
    """
    root = Path(root)
    archive, test_archive = root / ARCHIVE, root / TEST_ARCHIVE
    for folder in (archive, test_archive):
        if not folder.is_dir():
            raise CorpusError(
                f"{folder} is not a folder; {root} must hold the unpacked archives {ARCHIVE} and {TEST_ARCHIVE}"
            )
    words = list(_words(archive))
    num_keyword_clips = sum(u.split == "train" and u.label in KEYWORDS for u in words)
    silence = _silence(archive / BACKGROUND_NOISE, num_keyword_clips)
    name = SYNTHETIC if (root / SETTINGS_FILE).is_file() else root.resolve().name
    return Corpus.of(name, [*words, *silence, *_test(test_archive)])


def _words(archive: Path) -> Iterator[Utterance]:
    """Train and validation words of the archive."""
    names = {
        f"{word}/{filename}": word
        for word in _folders(archive)
        if not word.startswith("_")
        for filename in _wav_files(archive / word, may_be_empty=True)
    }
    if not names:
        raise CorpusError(f"{archive} has no <word>/<speaker>_nohash_<n>.wav; unpack it again")
    validation = _read_list(archive / "validation_list.txt", names)
    testing = _read_list(archive / "testing_list.txt", names)
    if both := sorted(validation & testing):
        raise CorpusError(f"{archive}: {both[0]} is in both lists; unpack the archive again")
    folder = os.fspath(archive)
    for name, word in names.items():
        if name not in testing:
            split = "validation" if name in validation else "train"
            path = os.path.join(folder, *name.split("/"))
            yield _utterance(path, label_of(word), word, _speaker(path), split)


def _test(archive: Path) -> Iterator[Utterance]:
    """The test archive: its folders are the labels."""
    for label in LABELS:
        for filename in _wav_files(archive / label):
            path = os.path.join(archive, label, filename)
            if label == SILENCE:
                yield _utterance(path, label, label, None, "test")
            elif label == UNKNOWN:
                word, _, rest = filename.partition("_")
                yield _utterance(path, label, word, _speaker(path, rest), "test")
            else:
                yield _utterance(path, label, label, _speaker(path), "test")


def _utterance(
    path: str,
    label: str,
    word: str,
    speaker: str | None,
    split: str,
    start: int = 0,
    num_samples: int | None = None,
) -> Utterance:
    name = f"{word}/{os.path.basename(path)}"
    return Utterance(name, path, label, speaker, split, start, num_samples, columns=(("word", word),))


def _silence(folder: Path, num_keyword_clips: int) -> Iterator[Utterance]:
    """Train silence: whole seconds of the noise files that do not overlap.

    As many as the mean keyword has train clips, at least one per file, and no more than the files
    hold; spread evenly over the files and over each file.
    """
    paths = [os.path.join(folder, filename) for filename in sorted(_wav_files(folder))]
    seconds = {path: _whole_seconds(path) for path in paths}
    wanted = max(len(paths), round(num_keyword_clips / len(KEYWORDS)))
    # Shortest file first: what it cannot give falls to the longer ones.
    for done, path in enumerate(sorted(paths, key=lambda path: (seconds[path], path))):
        number = min(seconds[path], wanted // (len(paths) - done))
        wanted -= number
        for i in range(number):
            start = i * seconds[path] // number * CLIP_SAMPLES
            yield _utterance(path, SILENCE, BACKGROUND_NOISE, None, "train", start, CLIP_SAMPLES)


def _whole_seconds(path: str) -> int:
    """Number of whole seconds in a noise file; 1 for a shorter one, which will be padded."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise CorpusError(f"{path} cannot be read as audio ({error}); replace the file or remove it") from error
    if info.frames == 0:
        raise CorpusError(f"{path} holds no samples; replace the file or remove it")
    frames, rate = int(info.frames), int(info.samplerate)
    return max(1, frames * SAMPLE_RATE // rate // CLIP_SAMPLES)


def _speaker(path: str, filename: str | None = None) -> str:
    filename = os.path.basename(path) if filename is None else filename
    speaker = speaker_of(filename)
    if "_nohash_" not in filename or not speaker:
        raise CorpusError(
            f"{path} does not say who speaks; name it <speaker>_nohash_<n>.wav "
            f"(<word>_<speaker>_nohash_<n>.wav.wav in {TEST_ARCHIVE}/{UNKNOWN}) or remove it"
        )
    return speaker


def _read_list(path: Path, names: dict[str, str]) -> set[str]:
    """Names in a split list; each must be among `names`."""
    try:
        listed = {line.strip() for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing; unpack the archive again") from error
    if missing := sorted(listed - names.keys()):
        raise CorpusError(
            f"{path} names {len(missing)} files that are not there, such as {missing[0]}; unpack the archive again"
        )
    return listed


def _folders(folder: Path) -> Sequence[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


def _wav_files(folder: Path, may_be_empty: bool = False) -> Sequence[str]:
    """Names of the recordings in a folder, without the `._*` files that macOS leaves behind."""
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.lower().endswith(".wav")]
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CorpusError(f"{folder} is not a folder; unpack the archive again") from error
    names = [name for name in names if not name.startswith(".")]
    if not names and not may_be_empty:
        raise CorpusError(f"{folder} has no .wav files; unpack the archive again")
    return names
