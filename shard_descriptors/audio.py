"""Audio files to waveforms: decode, mix to mono, resample, fix the length."""

import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from shard_descriptors.utterances import Utterance

SAMPLE_RATE = 16_000  # Hz
CLIP_SAMPLES = 16_000  # one second


class AudioError(ValueError):
    """An audio file cannot be used; the message names the file and what to do."""


def read_clip(
    path: Path | str,
    start: int = 0,
    num_samples: int = CLIP_SAMPLES,
    sample_rate: int = SAMPLE_RATE,
) -> npt.NDArray[np.float32]:
    """Waveform of one clip: float32 (num_samples,), in [-1, 1], at `sample_rate` Hz.

    `start` is the clip's first sample, counted at `sample_rate`. Channels are averaged, another
    rate is resampled, a short clip is padded with zeros on the right and a long one is cut.
    AudioError for a file that is missing, unreadable, without samples or with non-finite ones.
    """
    if start < 0 or num_samples < 1:
        raise AudioError(f"{path}: start {start} must be >= 0 and num_samples {num_samples} >= 1")
    try:
        with soundfile.SoundFile(os.fspath(path)) as file:
            rate = file.samplerate
            first = round(start * rate / sample_rate)
            if file.frames == 0:
                raise AudioError(f"{path} holds no samples; record it again or remove the file")
            if first >= file.frames:
                raise AudioError(
                    f"{path} lasts {file.frames / rate:.2f} s, but the clip starts at "
                    f"{start / sample_rate:.2f} s; was the file replaced by a shorter one?"
                )
            file.seek(first)
            frames = math.ceil(num_samples * rate / sample_rate)
            waveform = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, OSError) as error:
        if not os.path.isfile(path):
            raise AudioError(f"{path} is not a file; was it moved after the listing?") from error
        raise AudioError(f"{path} cannot be read as audio ({error}); replace the file or remove it") from error
    if not np.isfinite(waveform).all():
        raise AudioError(f"{path} holds samples that are not finite; replace the file or remove it")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    clip = np.zeros(num_samples, dtype=np.float32)
    length = min(num_samples, len(waveform))
    np.clip(waveform[:length], -1.0, 1.0, out=clip[:length])
    return clip


def read_clips(utterances: Sequence[Utterance], num_samples: int = CLIP_SAMPLES) -> npt.NDArray[np.float32]:
    """Waveforms of several utterances at 16 kHz: float32 (len(utterances), num_samples)."""
    clips = np.empty((len(utterances), num_samples), dtype=np.float32)
    for row, utterance in enumerate(utterances):
        clips[row] = read_clip(utterance.path, utterance.start, num_samples)
    return clips
