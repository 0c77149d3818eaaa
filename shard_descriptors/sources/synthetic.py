"""A stand-in for Speech Commands: synthetic words spoken by espeak-ng, made on the spot.

It lies on disk as the official archives do (see `speech_commands`), so that everything runs
without a download: ten keywords and twenty other words, hundreds of made-up speakers, each with a
voice, accent, pitch, rate, microphone and background of their own. It is NOT human speech: a
figure measured on it says that the machinery works, and nothing about real recordings.

The same settings give the same bytes, in any process.
"""

import ctypes
import hashlib
import json
import struct
from _ctypes import dlclose
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import espeakng_loader
import numpy as np
import numpy.typing as npt
import soxr
from tqdm import tqdm

from shard_descriptors.clips.audio import CLIP_SAMPLES, SAMPLE_RATE
from shard_descriptors.clips.cache import cache_folder, made_once
from shard_descriptors.corpus import CorpusError
from shard_descriptors.labels import (
    BACKGROUND_NOISE,
    KEYWORDS,
    LABELS,
    OTHER_WORDS,
    SILENCE,
    UNKNOWN,
    label_of,
)
from shard_descriptors.sources.speech_commands import ARCHIVE, SETTINGS_FILE, TEST_ARCHIVE
from shard_descriptors.splits import which_split
from shard_descriptors.utterances import SPLITS

GENERATOR_VERSION = 1  # raise it with any change to what is heard: it names the cache folder

Floats = npt.NDArray[np.floating[Any]]

# espeak-ng's names of the accents; American and British English are the common ones.
ACCENTS = (
    *("en-us",) * 4, *("en",) * 2, "en-gb-x-rp", "en-gb-scotland", "en-029", "en-gb-x-gbclan",
    "en-gb-x-gbcwmd", "en-us-nyc",
)  # fmt: skip
# espeak-ng's voice variants, but for robots, demons, whispers and near copies.
VARIANTS = (
    "Alex", "Alicia", "Andrea", "Andy", "Annie", "Denis", "Diogo", "Gene", "Henrique", "Hugo",
    "Jacky", "Lee", "Mario", "Michael", "Mike", "Nguyen", "Reed", "adam", "anika", "antonio",
    "aunty", "belinda", "benjamin", "boris", "caleb", "david", "ed", "edward", "f1", "f2", "f3",
    "f4", "f5", "grandma", "grandpa", "gustave", "ian", "iven", "iven4", "john", "kaukovalta",
    "klatt", "klatt3", "klatt4", "linda", "m1", "m2", "m3", "m4", "m5", "m6", "m7", "m8",
    "marcelo", "max", "michel", "miguel", "norbert", "pablo", "paul", "pedro", "quincy", "rob",
    "sandro", "shelby", "steph", "travis", "victor", "zac",
)  # fmt: skip
ENDINGS = ("", ".", "!", "?", ",")  # each gives the word another melody


@dataclass(frozen=True, slots=True)
class SyntheticSettings:
    """Sizes and seed of a synthetic corpus; ValueError names every field that is out of range.

    The defaults suit a demonstration on a laptop. Some 1,500, 190 and 190 speakers with 51,000
    train clips, 6,800 validation clips and 620 test clips per label give the size of the original.

    seed:                 any integer >= 0.
    train_speakers, validation_speakers, test_speakers: made-up people; no one is in two splits.
    train_clips, validation_clips: words spoken in these splits, dealt unevenly to the speakers.
    test_clips_per_label: clips of each of the twelve labels in the test archive.
    unknown_share:        share of the twenty other words among train and validation clips.
    noise_seconds:        length of each of the six noise files.
    """

    seed: int = 0
    train_speakers: int = 160
    validation_speakers: int = 24
    test_speakers: int = 36
    train_clips: int = 3000
    validation_clips: int = 400
    test_clips_per_label: int = 50
    unknown_share: float = 0.3
    noise_seconds: int = 60

    def __post_init__(self) -> None:
        """Check every field and report all problems together."""
        least = {
            "seed": 0,
            "train_speakers": 1,
            "validation_speakers": 1,
            "test_speakers": 1,
            "train_clips": self.train_speakers,
            "validation_clips": self.validation_speakers,
            "test_clips_per_label": -(-self.test_speakers // (len(LABELS) - 1)),
            "noise_seconds": 2,
        }
        problems = [
            f"{name} is {getattr(self, name)}, it must be an integer >= {low}"
            for name, low in least.items()
            if not isinstance(getattr(self, name), int) or getattr(self, name) < low
        ]
        if not 0 <= self.unknown_share <= 1:
            problems.append(f"unknown_share is {self.unknown_share}, it must be between 0 and 1")
        if problems:
            raise ValueError("; ".join(problems) + " (every speaker says at least one word)")

    @property
    def digest(self) -> str:
        """Twelve hex digits that name these settings and the generator's version."""
        content = json.dumps([GENERATOR_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:12]


@dataclass(frozen=True, slots=True)
class Speaker:
    """A made-up person: what stays the same from word to word.

    pitch and melody (pitch range) are espeak-ng's 0..99, rate is in words per minute; tract
    scales all frequencies (a shorter vocal tract is > 1); brightness is the microphone's tilt,
    -1..1; level is the speech's mean level in dB of full scale; snr is speech over noise in dB.
    """

    name: str
    split: str
    voice: str
    pitch: float
    melody: float
    rate: float
    tract: float
    brightness: float
    level: float
    snr: float


def default_corpus(progress: bool = True, settings: SyntheticSettings | None = None) -> Path:
    """Folder of the synthetic corpus in the user's cache; made on first use, then kept.

    The cache is the folder KWS_CACHE names, else the user's own. Processes that ask at once wait
    for the one that makes it. One that is killed half-way leaves nothing that counts as a corpus.
    CorpusError when the cache cannot be written.
    """
    settings = settings or SyntheticSettings()
    cache = cache_folder()
    try:
        return made_once(
            cache / f"synthetic-{settings.digest}", lambda partial: make_corpus(partial, settings, progress)
        )
    except OSError as error:
        raise CorpusError(
            f"the synthetic corpus cannot be written to {cache}: {error.strerror or error}. Set "
            "KWS_CACHE to a folder that can be written and has 200 MB free, or DATA to recordings"
        ) from error


def make_corpus(root: Path | str, settings: SyntheticSettings | None = None, progress: bool = False) -> None:
    """Write a synthetic corpus into `root`, which must not exist yet or be empty.

    OSError when it cannot be written, CorpusError when espeak-ng cannot be loaded.
    """
    settings = settings or SyntheticSettings()
    root = Path(root)
    root.mkdir(parents=True, exist_ok=True)
    if any(root.iterdir()):
        raise CorpusError(f"{root} is not empty; name a new folder for the synthetic corpus")
    rng = np.random.default_rng([settings.seed, GENERATOR_VERSION])
    plan = _plan(settings, rng)
    noises = _record_noises(settings.noise_seconds, rng)
    # The same six kinds, recorded again: no noise heard in train is heard in another split.
    held_out = _record_noises(max(2, settings.noise_seconds // 3), rng)
    archive, test_archive = root / ARCHIVE, root / TEST_ARCHIVE
    for folder in (*KEYWORDS, *OTHER_WORDS, BACKGROUND_NOISE):
        (archive / folder).mkdir(parents=True)
    for label in LABELS:
        (test_archive / label).mkdir(parents=True)
    for kind, noise in noises.items():
        _write_wav(archive / BACKGROUND_NOISE / f"{kind}.wav", noise)
    _write_silence(test_archive / SILENCE, held_out, settings.test_clips_per_label, rng)

    lists: dict[str, list[str]] = {split: [] for split in SPLITS}
    total = sum(len(words) for _, words in plan)
    with tqdm(total=total, unit="clip", desc="synthetic speech", disable=not progress) as bar:
        for number, (speaker, words) in enumerate(plan):
            own = np.random.default_rng([settings.seed, GENERATOR_VERSION, number])
            heard = noises if speaker.split == "train" else held_out
            clips = record(speaker, words, list(heard.values()), own)
            filenames = _number(speaker, words)
            lists[speaker.split] += [f"{w}/{f}\n" for w, f in zip(words, filenames, strict=True)]
            for word, filename, clip in zip(words, filenames, clips, strict=True):
                _write_wav(archive / word / filename, clip)
                if speaker.split == "test":
                    label = label_of(word)
                    tested = f"{word}_{filename}.wav" if label == UNKNOWN else filename
                    _write_wav(test_archive / label / tested, clip)
            bar.update(len(words))
    (archive / "validation_list.txt").write_text("".join(sorted(lists["validation"])))
    (archive / "testing_list.txt").write_text("".join(sorted(lists["test"])))
    (root / "README.txt").write_text(_README)
    (root / SETTINGS_FILE).write_text(
        json.dumps({"generator_version": GENERATOR_VERSION, **asdict(settings)}, indent=2) + "\n"
    )


def _number(speaker: Speaker, words: list[str]) -> list[str]:
    """File names of a speaker's clips: how often a word was said before is the last number."""
    times: Counter[str] = Counter()
    filenames = []
    for word in words:
        filenames.append(f"{speaker.name}_nohash_{times[word]}.wav")
        times[word] += 1
    return filenames


_README = """\
SYNTHETIC SPEECH. Nobody speaks here: every clip was made by the speech synthesizer espeak-ng, and
every speaker, noise and recording condition is made up. The folders and file names follow Google's
Speech Commands v0.01, whose recordings are NOT included.

Use it to see that things run. Never report a figure measured on it as a result on Speech Commands.
The settings it was made with are in synthetic.json.
"""


def _plan(settings: SyntheticSettings, rng: np.random.Generator) -> list[tuple[Speaker, list[str]]]:
    """All speakers and the words that each says."""
    plan = []
    names: set[str] = set()
    for split, num_speakers, words in (
        ("train", settings.train_speakers, _words(settings.train_clips, settings.unknown_share)),
        (
            "validation",
            settings.validation_speakers,
            _words(settings.validation_clips, settings.unknown_share),
        ),
        (
            "test",
            settings.test_speakers,
            _words(settings.test_clips_per_label * (len(LABELS) - 1), 1 / (len(LABELS) - 1)),
        ),
    ):
        spoken = [words[i] for i in rng.permutation(len(words))]
        # Some speakers give many clips and some give few, as people do; each gives one at least.
        shares = rng.dirichlet(np.full(num_speakers, 4.0))
        counts = 1 + rng.multinomial(len(spoken) - num_speakers, shares)
        ends = np.cumsum(counts)
        for end, count in zip(ends, counts, strict=True):
            speaker = _make_speaker(split, names, rng)
            names.add(speaker.name)
            plan.append((speaker, spoken[end - count : end]))
    return plan


def _words(number: int, unknown_share: float) -> list[str]:
    """`number` words: the keywords equally often, and the other words equally often."""
    others = round(number * unknown_share)
    return [OTHER_WORDS[i % len(OTHER_WORDS)] for i in range(others)] + [
        KEYWORDS[i % len(KEYWORDS)] for i in range(number - others)
    ]


def _make_speaker(split: str, taken: set[str], rng: np.random.Generator) -> Speaker:
    """A speaker whose id falls into `split` by the official rule."""
    while True:
        name = f"{rng.integers(2**32):08x}"
        if name not in taken and which_split(name) == split:
            break
    return Speaker(
        name=name,
        split=split,
        voice=f"{rng.choice(ACCENTS)}+{rng.choice(VARIANTS)}",
        pitch=rng.uniform(30, 70),
        melody=rng.uniform(20, 80),
        rate=rng.uniform(110, 180),
        tract=rng.uniform(0.92, 1.08),
        brightness=rng.uniform(-0.5, 0.5),
        level=rng.uniform(-29, -15),
        snr=rng.uniform(8, 35),
    )


def record(speaker: Speaker, words: list[str], noises: list[Floats], rng: np.random.Generator) -> Iterator[Floats]:
    """One clip per word: float32 (CLIP_SAMPLES,), in [-1, 1], with noise cut from `noises`.

    Pitch, rate, melody, level, noise and the place within the second vary from word to word.
    """
    for voice in _say(speaker, words, rng):
        loudness = 10 ** ((speaker.level + rng.normal(0, 2)) / 20)
        clip = _excerpt(noises[rng.integers(len(noises))], rng)
        clip *= loudness * 10 ** (-(speaker.snr + rng.normal(0, 3)) / 20) / _rms(clip)
        start = int(rng.beta(4, 4) * (CLIP_SAMPLES - len(voice)))
        clip[start : start + len(voice)] += voice * (loudness / _rms(voice))
        yield clip / max(1.0, float(np.abs(clip).max()) / 0.95)


def _say(speaker: Speaker, words: list[str], rng: np.random.Generator) -> list[Floats]:
    """The words as the speaker says them: float32, at most CLIP_SAMPLES each, without noise."""
    with _Espeak(speaker.voice) as espeak:
        spoken = [
            _trim(
                espeak.say(
                    word + ENDINGS[rng.integers(len(ENDINGS))],
                    rate=speaker.rate * rng.uniform(0.9, 1.1),
                    pitch=speaker.pitch + rng.normal(0, 4),
                    melody=speaker.melody + rng.normal(0, 8),
                )
            )
            for word in words
        ]
        # To call the rate another one shifts pitch and formants together: another throat.
        rate = espeak.sample_rate * speaker.tract
    # All words in one go, with pauses between them: four times as fast as one by one.
    pause = np.zeros(CLIP_SAMPLES // 16, dtype=np.float32)
    voice = soxr.resample(np.concatenate([part for w in spoken for part in (w, pause)]), rate, SAMPLE_RATE)
    voice[1:] += speaker.brightness * voice[:-1]
    lengths = np.array([len(w) for w in spoken])
    starts = np.cumsum(lengths + len(pause)) - lengths - len(pause)
    first = np.round(starts * (SAMPLE_RATE / rate)).astype(int)
    size = np.minimum(np.ceil(lengths * (SAMPLE_RATE / rate)).astype(int), CLIP_SAMPLES)
    return [voice[i : i + n] for i, n in zip(first, size, strict=True)]


class _Espeak:
    """espeak-ng with one voice, through its C interface (speak_lib.h).

    The library keeps state between words that its interface cannot reset (where it is in the
    pitch flutter, its gain control), so it is loaded afresh for every speaker: what a speaker
    says does not depend on who spoke before.
    """

    _RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # espeak_PARAMETER
    _SYNCHRONOUS, _UTF8 = 2, 1  # AUDIO_OUTPUT_SYNCHRONOUS, espeakCHARS_UTF8

    def __init__(self, voice: str) -> None:
        try:
            self._library = ctypes.CDLL(espeakng_loader.get_library_path())
            self._libc = ctypes.CDLL(None)
        except OSError as error:
            raise CorpusError(
                f"espeak-ng cannot be loaded ({error}); install espeakng-loader again, or set "
                "DATA to a folder of recordings"
            ) from error
        self._parts: list[bytes] = []
        # Kept as an attribute: the library calls it as long as it is loaded.
        self._callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)(
            self._collect
        )
        data = espeakng_loader.get_data_path().encode()
        self.sample_rate = self._library.espeak_Initialize(self._SYNCHRONOUS, 2000, data, 0)
        self._library.espeak_SetSynthCallback(self._callback)
        if self.sample_rate <= 0 or self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            self.close()
            raise CorpusError(f"espeak-ng has no voice {voice}; install espeakng-loader again")
        self._set(self._VOLUME, 70)  # leaves room, so that its gain control stays at rest

    def say(self, text: str, rate: float, pitch: float, melody: float) -> npt.NDArray[np.int16]:
        """What the voice says: int16 (n,), at `sample_rate` Hz."""
        self._set(self._RATE, rate)
        self._set(self._PITCH, min(max(pitch, 0), 99))
        self._set(self._RANGE, min(max(melody, 0), 99))
        # Breath and fricatives are noise, drawn from a generator of its own or the C library's.
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(1))
        self._libc.srand(1)
        self._parts.clear()
        encoded = text.encode() + b"\0"
        size = ctypes.c_size_t(len(encoded))
        self._library.espeak_Synth(encoded, size, 0, 0, 0, self._UTF8, None, None)
        self._library.espeak_Synchronize()
        return np.frombuffer(b"".join(self._parts), dtype=np.int16)

    def _set(self, parameter: int, value: float) -> None:
        self._library.espeak_SetParameter(parameter, round(value), 0)

    def _collect(self, samples: object, number: int, _events: object) -> int:
        if samples and number > 0:
            self._parts.append(ctypes.string_at(samples, 2 * number))  # type: ignore[arg-type]
        return 0

    def close(self) -> None:
        """Unload the library."""
        self._library.espeak_Terminate()
        dlclose(self._library._handle)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _trim(spoken: npt.NDArray[np.int16]) -> Floats:
    """The speech without the silence around it: float32 (n,), in [-1, 1]."""
    samples = spoken.astype(np.float32) / 32768
    heard = np.flatnonzero(np.abs(samples) > 0.01 * np.abs(samples).max())
    return samples[heard[0] : heard[-1] + 1]


def _rms(samples: Floats) -> float:
    return float(np.sqrt(np.mean(np.square(samples))))


def _excerpt(noise: Floats, rng: np.random.Generator) -> Floats:
    start = rng.integers(len(noise) - CLIP_SAMPLES + 1)
    return noise[start : start + CLIP_SAMPLES].copy()


def _write_silence(folder: Path, noises: dict[str, Floats], number: int, rng: np.random.Generator) -> None:
    """The test archive's silence: excerpts of noise at many levels, named by numbers."""
    kinds = list(noises.values())
    for i, name in enumerate(rng.choice(10 * number, size=number, replace=False)):
        clip = _excerpt(kinds[i % len(kinds)], rng) * rng.uniform(0.05, 1.0)
        _write_wav(folder / f"{name}.wav", clip)


def _write_wav(path: Path, samples: Floats) -> None:
    """A WAV file, 16 kHz mono 16-bit. Written by hand: twice as fast as by a library."""
    data = np.round(samples * 32767).astype("<i2").tobytes()
    header = struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        *(b"RIFF", 36 + len(data), b"WAVE", b"fmt ", 16, 1, 1, SAMPLE_RATE, 2 * SAMPLE_RATE),
        *(2, 16, b"data", len(data)),
    )
    path.write_bytes(header + data)


def _record_noises(seconds: int, rng: np.random.Generator) -> dict[str, Floats]:
    """Six kinds of background noise: float32 (seconds * SAMPLE_RATE,) each, in [-1, 1]."""
    number = seconds * SAMPLE_RATE
    hertz = np.maximum(np.fft.rfftfreq(number, 1 / SAMPLE_RATE), 20.0)  # below is not heard
    turns = np.arange(number) / SAMPLE_RATE * 50  # of the mains
    hum = np.zeros(number)
    for k in range(1, 12):
        hum += np.sin(2 * np.pi * (k * turns + rng.uniform())) / k
    babble = np.zeros(number)
    for _ in range(4):  # people: the spectrum of speech, coming and going as syllables do
        voice = _shaped(1 / (1 + (hertz / rng.uniform(350, 800)) ** 2), rng)
        babble += voice * np.square(_wander(seconds, 8.0, rng))
    tap = _shaped(np.exp(-np.square(np.log(hertz / 2500))), rng)
    noises = {
        "white_noise": _shaped(np.ones_like(hertz), rng),
        "pink_noise": _shaped(hertz**-0.5, rng),
        "rumble": _shaped(hertz**-1.0, rng),
        "running_tap": tap * (1 + 0.3 * _wander(seconds, 1.0, rng)),
        "mains_hum": hum * (1 + 0.2 * _wander(seconds, 1.0, rng)) + _shaped(hertz**-0.5, rng) / 10,
        "babble": babble,
    }
    return {
        kind: np.clip(noise * (rng.uniform(0.02, 0.08) / _rms(noise)), -1, 1).astype(np.float32)
        for kind, noise in noises.items()
    }


def _shaped(gain: Floats, rng: np.random.Generator) -> Floats:
    """Noise with the amplitude spectrum `gain`: mean 0, standard deviation 1."""
    spectrum = rng.standard_normal(2 * len(gain), dtype=np.float32).view(np.complex64)
    spectrum *= gain
    spectrum[0] = 0
    noise: Floats = np.fft.irfft(spectrum)
    noise /= noise.std()
    return noise


def _wander(seconds: int, hertz: float, rng: np.random.Generator) -> Floats:
    """A random curve about zero, standard deviation about 1, with `hertz` turns a second."""
    turns = rng.standard_normal(int(seconds * hertz) + 2)
    at = np.arange(seconds * SAMPLE_RATE) * (hertz / SAMPLE_RATE)
    curve: Floats = np.interp(at, np.arange(len(turns)), turns)
    return curve
