"""From clips to what the model eats: order, random changes, standardisation.

Everything random is drawn by number, not in turn: what a clip sounds like when it is heard for the n-th time depends on
the seed, the clip and n, and not on the batch or the site that it is in.
"""

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from kws.clips import Clips, Keys, Numbers
from kws.config import Augmentation, Training
from kws.sound import changed_at_random, scattered

Inputs = Mapping[str, torch.Tensor]
"""What a model takes, by name; the batch comes first."""


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
        keys = scattered(scattered(keys) + value)
    return keys


def digest(keys: Keys) -> int:
    """A number for a set of clips, from theirs: sites with other recordings draw otherwise, however they are called."""
    return int(np.bitwise_xor.reduce(scattered(keys + np.uint64(len(keys)))))


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


def _batch(heard: Heard, numbers: Numbers, keys: Keys | None = None) -> Batch:
    return Batch(heard.inputs(numbers, keys), torch.from_numpy(heard.labels[numbers]))
