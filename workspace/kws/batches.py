"""From clips to what the model eats: order, augmentation, standardisation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from kws.config import Augmentation
from shard_descriptors.corpus import ClipFormat


class Clips(Protocol):
    """n labelled clips of equal length, by number (`shard_descriptors.clips.ClipSet` is one)."""

    @property
    def format(self) -> ClipFormat:
        """Label names, sample rate and length."""

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """Label ids: int64 (n,)."""

    def __len__(self) -> int: ...

    def read(self, numbers: npt.NDArray[np.int64] | Sequence[int]) -> npt.NDArray[np.float32]:
        """Waveforms: float32 (len(numbers), num_samples), in [-1, 1]."""


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
) -> Iterator[Batch]:
    """All clips once in random order, each changed at random.

    `noise` are the numbers of the clips whose sound may be mixed into others (the site's own silence).
    """
    order = generator.permutation(len(clips))
    for first in range(0, len(clips), batch_size):
        batch = _batch(clips, order[first : first + batch_size])
        added = clips.read(generator.choice(noise, len(order[first : first + batch_size]))) if len(noise) else None
        yield Batch(augment(batch.waveforms, added, augmentation, generator, clips.format.sample_rate), batch.labels)


def augment(
    waveforms: torch.Tensor,
    noise: npt.NDArray[np.float32] | None,
    settings: Augmentation,
    generator: np.random.Generator,
    sample_rate: int,
) -> torch.Tensor:
    """Shift each clip, change its speed, and mix noise into some: float32 of the same shape.

    noise: as many clips as `waveforms`, or None.
    """
    count, num_samples = waveforms.shape
    speed = 1 + _uniform(generator, count, settings.max_speed)
    shift = _uniform(generator, count, settings.max_shift * sample_rate)
    centre = (num_samples - 1) / 2
    places = (torch.arange(num_samples) - centre) * speed + centre + shift  # where each new sample lies in the old clip
    before = places.floor().clamp(0, num_samples - 2)
    share = places - before
    inside = (places >= 0) & (places <= num_samples - 1)
    left = before.long()
    moved = waveforms.gather(1, left) * (1 - share) + waveforms.gather(1, left + 1) * share
    moved = torch.where(inside, moved, 0.0)
    if noise is None or settings.noise_probability == 0:
        return moved
    added = torch.from_numpy(noise)
    snr = torch.from_numpy(generator.uniform(settings.min_snr_db, settings.max_snr_db, (count, 1))).float()
    chosen = torch.from_numpy(generator.random((count, 1)) < settings.noise_probability)
    level = _rms(moved) / (_rms(added) + 1e-6) * 10 ** (-snr / 20)
    return moved + torch.where(chosen, level, 0.0) * added


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


def _batch(clips: Clips, numbers: npt.NDArray[np.int64]) -> Batch:
    return Batch(torch.from_numpy(clips.read(numbers)), torch.from_numpy(clips.labels[numbers]))
