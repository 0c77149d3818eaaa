"""Speech Commands v0.01 as the SUPERB keyword-spotting task uses it.

`root` holds the two unpacked archives:

    speech_commands_v0.01/            <word>/<speaker>_nohash_<n>.wav, _background_noise_/*.wav,
                                      validation_list.txt, testing_list.txt
    speech_commands_test_set_v0.01/   the twelve labels; unknown clips are named
                                      <word>_<speaker>_nohash_<n>.wav.wav, silence <number>.wav

train:       words in neither list, and silence from the noise files, by the setting `silence`.
validation:  validation_list.txt; it has no silence, as published.
test:        the test archive. testing_list.txt is left out: the archive is drawn from it.
"""

import os
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import soundfile

from shard_descriptors.clips.audio import CLIP_SAMPLES, SAMPLE_RATE
from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.labels import (
    BACKGROUND_NOISE,
    KEYWORDS,
    LABELS,
    SILENCE,
    UNKNOWN,
    WORDS,
    label_of,
)
from shard_descriptors.splits import speaker_of
from shard_descriptors.utterances import SPLITS, Utterance

ARCHIVE = "speech_commands_v0.01"
TEST_ARCHIVE = "speech_commands_test_set_v0.01"

OFFICIAL: Mapping[str, int] = {"train": 51_094, "validation": 6_798, "test": 3_081}
"""Utterances of SUPERB KS, with silence="files". Source: dataset_infos.json of "superb" on Hugging Face, "ks"."""

SILENCES: Mapping[str, str] = {
    "files": "each noise file is one utterance, as SUPERB publishes it: clips are cut from it in training",
    "segments": "all whole seconds of the noise files",
    "balanced": "as many whole seconds as the mean keyword has train clips, spread evenly over the noise files",
}
"""What train silence can be."""

SETTINGS_FILE = "synthetic.json"  # marks a corpus as synthetic
SYNTHETIC = "synthetic"
"""The name of every corpus that was made by espeak-ng."""


def load(root: Path | str, silence: str = "balanced") -> Corpus:
    """The corpus in `root`. No audio is decoded.

    silence: one of `SILENCES`; the others than "files" give utterances of one second, and a noise file that is
             shorter gives one. No two utterances share a sample.

    CorpusError for another `silence`, a missing folder or list, a list that names a missing file, a word that is
    none of Speech Commands, a file without a speaker in its name, names that some file systems take for one, and a
    folder without recordings.
    """
    if silence not in SILENCES:
        raise CorpusError(f"silence is {silence!r}; allowed: {', '.join(SILENCES)}")
    root = Path(root)
    archive, test_archive = root / ARCHIVE, root / TEST_ARCHIVE
    for folder in (archive, test_archive):
        if not folder.is_dir():
            raise CorpusError(
                f"{folder} is not a folder; {root} must hold the unpacked archives {ARCHIVE} and {TEST_ARCHIVE}"
            )
    words = list(_words(archive))
    num_keyword_clips = sum(u.split == "train" and u.label in KEYWORDS for u in words)
    noise = _noise(archive / BACKGROUND_NOISE, silence, num_keyword_clips)
    name = SYNTHETIC if (root / SETTINGS_FILE).is_file() else root.resolve().name
    return Corpus.of(name, [*words, *noise, *_test(test_archive)])


def describe(root: Path | str) -> str:
    """Utterances and speakers of each split, counted as SUPERB does (silence="files"), and whether it is SUPERB KS.

    CorpusError as for `load`.
    """
    corpus = load(root, silence="files")
    counts = {split: sum(u.split == split for u in corpus.utterances) for split in SPLITS}
    speakers = {split: len({u.speaker for u in corpus.utterances if u.split == split} - {None}) for split in SPLITS}
    lines = [f"{split:10}  {counts[split]:6,} utterances, {speakers[split]:5,} speakers" for split in SPLITS]
    published = ", ".join(f"{number:,}" for number in OFFICIAL.values())
    if corpus.name == SYNTHETIC:
        lines.append(f"This is synthetic speech, not SUPERB KS ({published}): no figure on it says anything of people.")
    elif counts == OFFICIAL:
        lines.append("These are the counts of SUPERB KS.")
    else:
        lines.append(f"These are not the counts of SUPERB KS ({published}): no figure on it is that benchmark's.")
    return "\n".join(lines)


def _words(archive: Path) -> Iterator[Utterance]:
    """Train and validation words of the archive."""
    names = {
        f"{word}/{_composed(filename)}": (word, filename)
        for word in _folders(archive)
        if not word.startswith(("_", "."))
        for filename in _recordings(archive / word)
    }
    if not names:
        raise CorpusError(f"{archive} has no <word>/<speaker>_nohash_<n>.wav; unpack it again")
    validation = _read_list(archive / "validation_list.txt", names)
    testing = _read_list(archive / "testing_list.txt", names)
    if both := sorted(validation & testing):
        raise CorpusError(f"{archive}: {both[0]} is in both lists; unpack the archive again")
    folder = os.fspath(archive)
    for name, (word, filename) in names.items():
        if name not in testing:
            split = "validation" if name in validation else "train"
            path = os.path.join(folder, word, filename)
            yield _utterance(path, label_of(word), word, _speaker(path), split)


def _recordings(folder: Path) -> Sequence[str]:
    """File names in the folder of a word."""
    filenames = _wav_files(folder, may_be_empty=True)
    if filenames and folder.name not in WORDS:
        # Taken for unknown speech, a misspelt keyword would be learned as its opposite.
        raise CorpusError(
            f"{folder} has recordings of {folder.name!r}, which is no word of Speech Commands; rename the folder "
            f"or move it away. Allowed: {', '.join(WORDS)}"
        )
    return filenames


def _test(archive: Path) -> Iterator[Utterance]:
    """The test archive: its folders are the labels."""
    for label in LABELS:
        for filename in _wav_files(archive / label):
            path = os.path.join(archive, label, filename)
            if label == SILENCE:
                yield _utterance(path, label, label, None, "test")
            elif label == UNKNOWN:
                word, _, rest = _composed(filename).partition("_")
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
    name = f"{word}/{_composed(os.path.basename(path))}"
    return Utterance(name, path, label, speaker, split, start, num_samples, columns=(("word", word),))


def _noise(folder: Path, silence: str, num_keyword_clips: int) -> Iterator[Utterance]:
    """Train silence: the noise files, or whole seconds of them, spread evenly over each file."""
    lengths = {path: _length(path) for path in (os.path.join(folder, name) for name in sorted(_wav_files(folder)))}
    if silence == "files":
        for path, length in lengths.items():
            yield _utterance(path, SILENCE, BACKGROUND_NOISE, None, "train", 0, length)
        return
    # A file that is shorter than a second will be padded.
    seconds = {path: max(1, length // CLIP_SAMPLES) for path, length in lengths.items()}
    numbers = seconds if silence == "segments" else _balanced(seconds, num_keyword_clips)
    for path, number in numbers.items():
        for i in range(number):
            start = i * seconds[path] // number * CLIP_SAMPLES
            yield _utterance(path, SILENCE, BACKGROUND_NOISE, None, "train", start, CLIP_SAMPLES)


def _balanced(seconds: Mapping[str, int], num_keyword_clips: int) -> dict[str, int]:
    """Seconds to take of each noise file.

    In all as many as the mean keyword has train clips, at least one per file, and no more than the files hold.
    """
    wanted = max(len(seconds), round(num_keyword_clips / len(KEYWORDS)))
    numbers = {}
    # Shortest file first: what it cannot give falls to the longer ones.
    for done, path in enumerate(sorted(seconds, key=lambda path: (seconds[path], path))):
        numbers[path] = min(seconds[path], wanted // (len(seconds) - done))
        wanted -= numbers[path]
    return numbers


def _length(path: str) -> int:
    """Samples of a noise file, counted at 16 kHz: one at least."""
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError) as error:
        raise CorpusError(f"{path} cannot be read as audio ({error}); replace the file or remove it") from error
    if info.frames == 0:
        raise CorpusError(f"{path} holds no samples; replace the file or remove it")
    return max(1, int(info.frames) * SAMPLE_RATE // int(info.samplerate))


def _speaker(path: str, filename: str | None = None) -> str:
    filename = os.path.basename(path) if filename is None else filename
    speaker = speaker_of(_composed(filename))
    if "_nohash_" not in filename or not speaker:
        raise CorpusError(
            f"{path} does not say who speaks; name it <speaker>_nohash_<n>.wav "
            f"(<word>_<speaker>_nohash_<n>.wav.wav in {TEST_ARCHIVE}/{UNKNOWN}) or remove it"
        )
    return speaker


def _read_list(path: Path, names: Mapping[str, object]) -> set[str]:
    """Names in a split list; each must be among `names`."""
    try:
        listed = {_composed(line.strip()) for line in path.read_text(encoding="utf-8").splitlines()} - {""}
    except FileNotFoundError as error:
        raise CorpusError(f"{path} is missing; unpack the archive again") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{path} is not UTF-8 text ({error}); unpack the archive again") from error
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
    seen: dict[str, str] = {}
    for name in names:
        if not name.isprintable():
            raise CorpusError(f"{folder} has a file of the name {name!r}, which is not plain UTF-8; rename it")
        if (other := seen.setdefault(_composed(name).casefold(), name)) is not name:
            raise CorpusError(
                f"{folder} has {other!r} and {name!r}, which are one name where case or the form of accents does "
                f"not count, so that another machine would have only one of them; rename or remove one"
            )
    return names


def _composed(name: str) -> str:
    """A name in the one form (NFC) that is the same on every machine: macOS may take accents apart."""
    return unicodedata.normalize("NFC", name)
