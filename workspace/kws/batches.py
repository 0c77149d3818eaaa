"""From clips to what the model eats: order, random changes, standardisation.

Everything random is drawn by number, not in turn: what a clip sounds like when it is heard for the n-th time depends on
the seed, the clip and n, and not on the batch or the site that it is in.
"""

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from kws.config import Augmentation, Training
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.labels import SILENCE

Numbers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
"""A number for each clip, from which all is drawn that is random about hearing it once."""

Inputs = Mapping[str, torch.Tensor]
"""What a model takes, by name; the batch comes first."""


class Clips(Protocol):
    """n labelled clips of equal length, by number (`shard_descriptors.clips.clip_set.ClipSet` is one)."""

    @property
    def format(self) -> ClipFormat:
        """Label names, sample rate and length."""

    @property
    def labels(self) -> Numbers:
        """Label ids: int64 (n,)."""

    @property
    def keys(self) -> Keys:
        """A number for each clip, the same wherever it lies: uint64 (n,)."""

    def __len__(self) -> int: ...

    def read(
        self, numbers: Numbers | Sequence[int], places: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Waveforms: float32 (len(numbers), num_samples), in [-1, 1].

        places: where in a longer recording each clip begins, 0 (its beginning) to below 1; None: at the beginning.
        """


@dataclass(frozen=True)
class Heard:
    """Clips as a model hears them; what is computed only once is another one of these (`kws.caching`)."""

    clips: Clips
    augmentation: Augmentation = field(default_factory=Augmentation.none)

    @property
    def labels(self) -> Numbers:
        """Label ids: int64 (n,)."""
        return self.clips.labels

    def inputs(self, numbers: Numbers, keys: Keys | None = None) -> Inputs:
        """What `logits` takes of the clips with these numbers, on the CPU; changed at random by their keys, if any."""
        if keys is None:
            return {"waveforms": torch.from_numpy(self.clips.read(numbers))}
        return {"waveforms": changed_at_random(self.clips, numbers, keys, self.augmentation)}

    def logits(self, model: Any, inputs: Inputs) -> torch.Tensor:
        """The model's answers: float32 (batch, num_labels)."""
        logits: torch.Tensor = model(inputs["waveforms"])
        return logits


@dataclass(frozen=True)
class Batch:
    """labels: int64 (batch,)."""

    inputs: Inputs
    labels: torch.Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same on a device; from pinned memory without waiting for it."""
        moved = {name: tensor.to(device, non_blocking=True) for name, tensor in self.inputs.items()}
        return Batch(moved, self.labels.to(device, non_blocking=True))

    def pinned(self) -> "Batch":
        """The same in memory from which a GPU copies while others work."""
        return Batch({name: tensor.pin_memory() for name, tensor in self.inputs.items()}, self.labels.pin_memory())


def in_order(heard: Heard, batch_size: int) -> Iterator[Batch]:
    """All clips once, in their order, as they are."""
    for first in range(0, len(heard.labels), batch_size):
        yield _batch(heard, np.arange(first, min(first + batch_size, len(heard.labels))))


def steps_in_epoch(training: Training, count: int) -> int:
    """Steps that a pass through so many clips takes; the last one may have fewer clips."""
    return -(-count // (training.batch_size * training.accumulation))


def steps(heard: Heard, training: Training, first: int, last: int) -> Iterator[list[Batch]]:
    """The steps `first` to below `last` of a training without end: the batches of each.

    Epoch follows epoch, each in an order of its own (see `epoch`), so that rounds of any length hear every clip equally
    often, and any step can be had without those before it.
    """
    count, size = len(heard.labels), training.batch_size
    in_epoch = steps_in_epoch(training, count)
    number, order, keys = -1, np.array([], np.int64), np.array([], np.uint64)
    for step in range(first, last):
        if step // in_epoch != number:
            number = step // in_epoch
            order, keys = epoch(heard, training, number)
        begin = step % in_epoch * size * training.accumulation
        end = min(begin + size * training.accumulation, count)
        parts = [slice(at, min(at + size, end)) for at in range(begin, end, size)]
        yield [_batch(heard, order[part], keys[part]) for part in parts]


def epoch(heard: Heard, training: Training, number: int) -> tuple[Numbers, Keys]:
    """The clips of one epoch in the order in which they are heard, and a key for each hearing.

    As many as there are: each once, or drawn as `training.sampling` says. The order depends on which clips a site
    has; the keys do not.
    """
    clips = heard.clips
    generator = np.random.default_rng([training.seed, number, digest(clips.keys)])
    if training.sampling == "balanced":
        order = balanced(clips.labels, generator)
    else:
        order = generator.permutation(len(clips.labels))
    return order, hearings(clips.keys[order], training.seed, number)


def hearings(keys: Keys, seed: int, number: int) -> Keys:
    """A key for each time that a clip is heard in the epoch of this number, from the clips' own: uint64 (n,)."""
    by_clip = np.argsort(keys, kind="stable")
    first = np.searchsorted(keys[by_clip], keys[by_clip])
    times = np.empty(len(keys), np.uint64)
    times[by_clip] = np.arange(len(keys)) - first  # how often it was heard before in this epoch
    for value in (np.uint64(seed), np.uint64(number), times):
        keys = _scattered(_scattered(keys) + value)
    return keys


def drawn(keys: Keys, count: int) -> npt.NDArray[np.float64]:
    """Random numbers for each key, 0 to below 1: float64 (len(keys), count).

    SplitMix64 (Steele, Lea and Flood 2014), which is a function of its counter: a generator of numpy for each clip
    would take longer than the clip's changes.
    """
    counters = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (_scattered(keys[:, None] + counters) >> np.uint64(11)) * 2.0**-53


def _scattered(values: Keys) -> Keys:
    """SplitMix64's finalizer: other bits for every value, and no value twice."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def digest(keys: Keys) -> int:
    """A number for a set of clips, from theirs: sites with other recordings draw otherwise, whatever they are called."""
    return int(np.bitwise_xor.reduce(_scattered(keys + np.uint64(len(keys)))))


def balanced(labels: Numbers, generator: np.random.Generator) -> Numbers:
    """As many numbers as there are labels, drawn with replacement: int64, each label that is there equally often.

    That is in expectation; of one label, all numbers are equally likely.
    """
    weights = 1 / np.bincount(labels)[labels]
    return generator.choice(len(labels), size=len(labels), p=weights / weights.sum())


Item = TypeVar("Item")


def prefetched(items: Iterator[Item]) -> Iterator[Item]:
    """The same in the same order, each made in a thread while the one before it is in use.

    An error in the thread is raised here, in its item's place; the thread ends with this generator.
    """
    with ThreadPoolExecutor(1, "batches") as thread:
        following = thread.submit(next, items, None)
        while (item := following.result()) is not None:
            following = thread.submit(next, items, None)
            yield item


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
    num_samples = waveforms.shape[1]
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
    """Noise added to each clip: float32 of the same shape.

    snr: float32 (batch, 1), signal-to-noise ratios in dB, over the part of the clip that is not padding.
    """
    return waveforms + _rms(waveforms) / (_rms(noise) + 1e-6) * 10 ** (-snr / 20) * noise


def _column(shares: npt.NDArray[np.float64], least: float, most: float) -> torch.Tensor:
    """Numbers between two, from shares of the way: float32 (len(shares), 1)."""
    return torch.from_numpy(least + shares * (most - least)).float()[:, None]


def _rms(waveforms: torch.Tensor) -> torch.Tensor:
    sound = sound_mask(waveforms).sum(dim=1, keepdim=True).clamp(min=1)
    return (waveforms.square().sum(dim=1, keepdim=True) / sound).sqrt()


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


def _batch(heard: Heard, numbers: Numbers, keys: Keys | None = None) -> Batch:
    return Batch(heard.inputs(numbers, keys), torch.from_numpy(heard.labels[numbers]))
