"""Clips to hear and to see."""

from collections.abc import Iterable, Sequence
from typing import Any

import librosa
import numpy as np
import numpy.typing as npt

from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import Corpus
from shard_descriptors.utterances import Utterance

MEL_BANDS = 64
WINDOW_SECONDS, HOP_SECONDS = 0.025, 0.010


def one_of_each(corpus: Corpus, labels: Iterable[str]) -> list[Utterance]:
    """The first training utterance of each of these labels, of those that the corpus has."""
    first = {u.label: u for u in reversed(corpus.utterances) if u.split == "train"}
    return [first[label] for label in labels if label in first]


def mel_spectrogram(waveform: npt.NDArray[np.float32], sample_rate: int) -> npt.NDArray[np.float32]:
    """Power in 64 mel bands every 10 ms, from windows of 25 ms: float32 (64, frames), in dB below the loudest.

    waveform: float32 (num_samples,), in [-1, 1].
    """
    power = librosa.feature.melspectrogram(
        y=waveform,
        sr=sample_rate,
        n_fft=_samples(WINDOW_SECONDS, sample_rate),
        hop_length=_samples(HOP_SECONDS, sample_rate),
        n_mels=MEL_BANDS,
    )
    decibels: npt.NDArray[np.float32] = librosa.power_to_db(power, ref=max(float(power.max()), 1e-10))
    return decibels


def _samples(seconds: float, sample_rate: int) -> int:
    return max(1, round(seconds * sample_rate))


def play(clips: ClipSet, numbers: Sequence[int], captions: Sequence[str] | None = None) -> None:
    """Show a player for each of these clips in the notebook, with its label, or with a caption of its own."""
    from IPython.display import Audio, display

    for place, number in enumerate(numbers):
        print(captions[place] if captions else clips.utterances[number].label)
        player: Any = Audio(clips.read([number])[0], rate=clips.format.sample_rate, normalize=True)
        display(player)
