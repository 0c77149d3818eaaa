"""What is done to waveforms: standardised for a model, and in training changed at random."""

import numpy as np
import numpy.typing as npt
import torch

from kws.clips import Clips, Keys, Numbers
from kws.config import Augmentation
from shard_descriptors.labels import SILENCE


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


def changed_at_random(clips: Clips, numbers: Numbers, keys: Keys, settings: Augmentation) -> torch.Tensor:
    """The clips with these numbers, each changed as its key says: float32 (batch, num_samples).

    What is mixed in is sound of the site's own silence clips; a site without any mixes in nothing.
    """
    cut, shift, speed, mixes, which, noise_cut, snr = drawn(keys, 7).T
    waveforms = torch.from_numpy(clips.read(numbers, cut))
    if settings.max_shift > 0 or settings.max_speed > 0:
        reach = settings.max_shift * clips.format.sample_rate
        waveforms = moved(waveforms, _column(speed, 1 - settings.max_speed, 1 + settings.max_speed),
                          _column(shift, -reach, reach))  # fmt: skip
    noise = np.flatnonzero(clips.labels == clips.format.label_ids.get(SILENCE, -1))
    chosen = np.flatnonzero(mixes < settings.noise_probability)
    if len(noise) and len(chosen):
        added = clips.read(noise[(which[chosen] * len(noise)).astype(np.int64)], noise_cut[chosen])
        ratios = _column(snr[chosen], settings.min_snr_db, settings.max_snr_db)
        waveforms[chosen] = mixed(waveforms[chosen], torch.from_numpy(added), ratios)
    return waveforms


def moved(waveforms: torch.Tensor, speed: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Each clip played faster and shifted: float32 of the same shape; silence where there was no sound.

    speed: float32 (batch, 1), above 1 is faster. shift: float32 (batch, 1), in samples; above 0 is earlier.
    """
    centre = (waveforms.shape[1] - 1) / 2
    numbers = np.arange(waveforms.shape[1], dtype=np.float64)
    changed = np.empty_like(waveforms.numpy())
    rows = zip(changed, waveforms.numpy(), speed[:, 0].tolist(), shift[:, 0].tolist(), strict=True)
    for new, old, factor, offset in rows:  # `interp` row by row takes half the time of gathering from all at once
        new[:] = np.interp((numbers - centre) * factor + (centre + offset), numbers, old, left=0, right=0)
    return torch.from_numpy(changed)


def mixed(waveforms: torch.Tensor, noise: torch.Tensor, snr: torch.Tensor) -> torch.Tensor:
    """Noise added to each clip: float32 of the same shape.

    snr: float32 (batch, 1), signal-to-noise ratios in dB, over the part of the clip that is not padding.
    """
    return waveforms + _rms(waveforms) / (_rms(noise) + 1e-6) * 10 ** (-snr / 20) * noise


def _column(shares: npt.NDArray[np.float64], least: float, most: float) -> torch.Tensor:
    """Numbers between two, from shares of the way: float32 (len(shares), 1)."""
    return torch.from_numpy(least + shares * (most - least)).float()[:, None]


def _rms(waveforms: torch.Tensor) -> torch.Tensor:
    padding = np.argmax(waveforms.numpy()[:, ::-1] != 0, axis=1)
    sound = waveforms.shape[1] - torch.from_numpy(padding)[:, None]
    return (waveforms.square().sum(dim=1, keepdim=True) / sound).sqrt()


def drawn(keys: Keys, count: int) -> npt.NDArray[np.float64]:
    """Random numbers for each key, 0 to below 1: float64 (len(keys), count).

    SplitMix64 (Steele, Lea and Flood 2014), which is a function of its counter: a generator of numpy for each clip
    would take longer than the clip's changes.
    """
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (scattered(keys[:, None] + counters) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def scattered(values: Keys) -> Keys:
    """SplitMix64's finalizer: other bits for every value, and no value twice."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
