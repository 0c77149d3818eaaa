"""From clips to what the model eats: order, augmentation, standardisation."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kws.config import Augmentation
from shard_descriptors.corpus import ClipFormat


class Clips(Protocol):
    """n labelled clips of equal length, by number (`shard_descriptors.clips.clip_set.ClipSet` is one)."""

    @property
    def format(self) -> ClipFormat:
        """Label names, sample rate and length."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Label ids: int64 (n,)."""

    def __len__(self) -> int: ...

    def read(
        self, numbers: npt.NDArray[np.int64] | Sequence[int], generator: np.random.Generator | None = None
    ) -> npt.NDArray[np.float32]:
        """Waveforms: float32 (len(numbers), num_samples), in [-1, 1]; of a longer recording, a part that is drawn."""


@dataclass(frozen=True)
class Batch:
    """waveforms: float32 (batch, num_samples), raw. labels: int64 (batch,)."""

    waveforms: torch.Tensor
    labels: torch.Tensor


def in_order(clips: Clips, batch_size: int) -> Iterator[Batch]:
    """All clips once, in their order, as they are."""
    for first in range(0, len(clips), batch_size):
        numbers = np.arange(first, min(first + batch_size, len(clips)))
        yield _batch(clips, numbers)


def shuffled(
    clips: Clips,
    batch_size: int,
    augmentation: Augmentation,
    noise: npt.NDArray[np.int64],
    generator: np.random.Generator,
    sampling: str = "all",
) -> Iterator[Batch]:
    """As many clips as there are in random order, each changed at random.

    `sampling` is "all" (each clip once) or "balanced" (see `balanced`). `noise` are the numbers of the clips whose
    sound may be mixed into others (the site's own silence).
    """
    order = balanced(clips.labels, generator) if sampling == "balanced" else generator.permutation(len(clips))
    for first in range(0, len(clips), batch_size):
        batch = _batch(clips, order[first : first + batch_size], generator)
        picked = generator.choice(noise, len(batch.labels)) if len(noise) else None
        waveforms = moved(batch.waveforms, augmentation, generator, clips.format.sample_rate)
        if picked is not None and augmentation.noise_probability > 0:
            snr = generator.uniform(augmentation.min_snr_db, augmentation.max_snr_db, (len(picked), 1))
            chosen = generator.random(len(picked)) < augmentation.noise_probability
            added = torch.from_numpy(clips.read(picked[chosen], generator))
            into = torch.from_numpy(chosen)
            waveforms[into] = mixed(waveforms[into], added, torch.from_numpy(snr[chosen]).float())
        yield Batch(waveforms, batch.labels)


def balanced(labels: npt.NDArray[np.int64], generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """As many numbers as there are labels, drawn with replacement: int64, each label that is there equally often.

    That is in expectation; of one label, all numbers are equally likely.
    """
    weights = 1 / np.bincount(labels)[labels]
    return generator.choice(len(labels), size=len(labels), p=weights / weights.sum())


def prefetched(batches: Iterator[Batch]) -> Iterator[Batch]:
    """The same batches in the same order, each prepared in a thread while the one before it is in use.

    An error in the thread is raised here, in its batch's place; the thread ends with this generator.
    """
    with ThreadPoolExecutor(1, "batches") as thread:
        following = thread.submit(next, batches, None)
        while (batch := following.result()) is not None:
            following = thread.submit(next, batches, None)
            yield batch


def moved(
    waveforms: torch.Tensor, settings: Augmentation, generator: np.random.Generator, sample_rate: int
) -> torch.Tensor:
    """Each clip shifted and played at another speed: float32 of the same shape; silence where there was no sound."""
    count, num_samples = waveforms.shape
    speed = 1 + _uniform(generator, count, settings.max_speed)
    shift = _uniform(generator, count, settings.max_shift * sample_rate)
    centre = (num_samples - 1) / 2
    places = (torch.arange(num_samples) - centre) * speed  # where each new sample lies in the old clip
    places.add_(centre).add_(shift)  # in place, as below: this is half of what preparing a batch costs
    outside = (places < 0).logical_or_(places > num_samples - 1)
    left = places.long().clamp_(0, num_samples - 2)
    share = places.sub_(left)
    before, after = waveforms.gather(1, left), waveforms.gather(1, left.add_(1))
    after.mul_(share)
    return before.mul_(share.neg_().add_(1)).add_(after).masked_fill_(outside, 0.0)


def mixed(waveforms: torch.Tensor, noise: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """Noise added to each clip: float32 of the same shape. snr: float32 (batch, 1), signal-to-noise ratios in dB."""
    return waveforms + _rms(waveforms) / (_rms(noise) + 1e-6) * 10 ** (-snr / 20) * noise


def _uniform(generator: np.random.Generator, count: int, reach: float) -> torch.Tensor:
    return torch.from_numpy(generator.uniform(-reach, reach, (count, 1))).float()


def _rms(waveforms: torch.Tensor) -> torch.Tensor:
    return waveforms.square().mean(dim=1, keepdim=True).sqrt()


def standardise(waveforms: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Zero mean and unit variance per clip, as `Wav2Vec2FeatureExtractor` does with `do_normalize`.

    With a mask (1 for sound, 0 for padding), over the sound only; the padding stays zero.
    """
    if mask is None:
        mask = torch.ones_like(waveforms)
    count = mask.sum(dim=-1, keepdim=True).clamp(min=1)
    centred = (waveforms - (waveforms * mask).sum(dim=-1, keepdim=True) / count) * mask
    return centred / torch.sqrt(centred.square().sum(dim=-1, keepdim=True) / count + 1e-7)


def sound_mask(waveforms: torch.Tensor) -> torch.Tensor:
    """1 up to each clip's last sample that is not zero, 0 in the padding behind it: int64 of the same shape."""
    reversed_sound = (waveforms != 0).flip(-1).cumsum(-1) > 0
    return reversed_sound.flip(-1).long()


def _batch(clips: Clips, numbers: npt.NDArray[np.int64], generator: np.random.Generator | None = None) -> Batch:
    return Batch(torch.from_numpy(clips.read(numbers, generator)), torch.from_numpy(clips.labels[numbers]))
