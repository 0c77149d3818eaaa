"""Recordings as people have them, cut into what a model hears: files, folders, a stream of raw samples."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import soxr

from lab.product.spotter import Floats
from shard_descriptors.clips.audio import AudioError, read_clip

BLOCK_SECONDS = 10.0
"""Of a long recording, decoded at a time."""
SUFFIXES = frozenset(f".{name.lower()}" for name in soundfile.available_formats()) | {
    ".aif", ".mp3", ".oga", ".opus", ".sph",
} - {".raw"}  # fmt: skip
"""Of files that are looked at in a folder; a file that is named is tried whatever its name is."""
SAMPLES = {"s16": ("<i2", 1 / 32768), "f32": ("<f4", 1.0)}
"""The forms of raw samples, little-endian: signed 16 bits, or single precision in [-1, 1]."""


@dataclass(frozen=True)
class Windows:
    """What a model hears of one recording.

    seconds: how long the recording is. starts: where each window begins, in seconds. waveforms: float32 (windows,
    num_samples).
    """

    seconds: float
    starts: tuple[float, ...]
    waveforms: Floats


def find(paths: Iterable[str | Path]) -> list[Path]:
    """The files that are meant: of a folder all recordings below it, sorted, without hidden ones."""
    found: list[Path] = []
    for given in paths:
        path = Path(given).expanduser()
        if not path.is_dir():
            found.append(path)
            continue
        inside = (each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file())
        found += sorted(
            each for each in inside if not any(part.startswith(".") for part in each.relative_to(path).parts)
        )
    return found


def parts(path: Path, rate: int, window: int, hop: int) -> Iterator[Windows]:
    """A recording in windows of `window` samples every `hop` of them, some seconds at a time.

    One that is no longer than a window is one clip, as in training; the last window of a longer one ends with it.

    Raises:
        AudioError: the file cannot be read, or holds nothing; names it.
    """
    try:
        info = soundfile.info(path)
    except (soundfile.LibsndfileError, OSError):
        read_clip(path, 0, window, rate)  # which says what is wrong
        raise AudioError(f"{path} cannot be read as audio; replace the file or remove it") from None
    seconds = info.frames / info.samplerate
    if round(seconds * rate) <= window:
        yield Windows(seconds, (0.0,), read_clip(path, 0, window, rate)[None])
        return
    yield from _sliding(_blocks(path, info.samplerate, rate), seconds, rate, window, hop)


def stream(source: BinaryIO, form: str, given_rate: int, rate: int, window: int, hop: int) -> Iterator[Windows]:
    """Raw samples, one channel, as they come: a window as soon as there are samples for it.

    Args:
        form: one of `SAMPLES`. given_rate: Hz of the samples that come.
    """
    kind, scale = SAMPLES[form]
    width = np.dtype(kind).itemsize
    resampler = soxr.ResampleStream(given_rate, rate, 1, dtype="float32")
    block = max(1, hop * given_rate // rate) * width

    def blocks() -> Iterator[Floats]:
        rest = b""
        while content := source.read(block):
            content = rest + content
            whole = len(content) // width * width
            rest = content[whole:]
            yield _resampled(resampler, np.frombuffer(content[:whole], kind).astype(np.float32) * scale, last=False)
        yield _resampled(resampler, np.zeros(0, np.float32), last=True)

    yield from _sliding(blocks(), math.inf, rate, window, hop)


def _blocks(path: Path, given_rate: int, rate: int) -> Iterator[Floats]:
    """The samples of a file, one channel at `rate` Hz."""
    resampler = soxr.ResampleStream(given_rate, rate, 1, dtype="float32")
    try:
        with soundfile.SoundFile(path) as file:
            while len(block := file.read(round(BLOCK_SECONDS * given_rate), dtype="float32", always_2d=True)):
                mono = block.mean(axis=1)
                if not np.isfinite(mono).all():
                    raise AudioError(f"{path} holds samples that are not finite; replace the file or remove it")
                yield _resampled(resampler, mono, last=False)
    except (soundfile.LibsndfileError, OSError) as error:
        raise AudioError(f"{path} cannot be read to its end ({error}); replace the file or remove it") from error
    yield _resampled(resampler, np.zeros(0, np.float32), last=True)


def _resampled(resampler: soxr.ResampleStream, samples: Floats, last: bool) -> Floats:
    made: Floats = resampler.resample_chunk(samples, last=last)
    return np.clip(made, -1.0, 1.0)


def _sliding(blocks: Iterator[Floats], seconds: float, rate: int, window: int, hop: int) -> Iterator[Windows]:
    """Windows of samples that come in blocks; the last one ends with the last sample."""
    held, first, following = np.zeros(0, np.float32), 0, 0  # samples from `first` on; where the next window begins
    for block in blocks:
        held = np.concatenate([held, block])
        if starts := range(following, first + len(held) - window + 1, hop):
            yield _windows(held, first, starts, seconds, rate, window)
            following = starts[-1] + hop
            held, first = held[starts[-1] - first :], starts[-1]
    end, covered = first + len(held), following - hop + window if following else 0
    if end > covered:
        start = max(0, end - window)
        clip = np.zeros(window, np.float32)
        clip[: end - start] = held[start - first :]
        yield Windows(seconds, (start / rate,), clip[None])


def _windows(held: Floats, first: int, starts: Sequence[int], seconds: float, rate: int, window: int) -> Windows:
    waveforms = np.stack([held[start - first : start - first + window] for start in starts])
    return Windows(seconds, tuple(start / rate for start in starts), waveforms)
