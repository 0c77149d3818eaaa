"""Several sites' clips as one set, for the baselines: what was decoded or computed for a site is not made again."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from kws import caching
from kws.batches import Heard, Inputs
from kws.clips import Clips, Keys, Numbers
from kws.config import Training
from kws.model import Classifier
from shard_descriptors.corpus import ClipFormat

Part = TypeVar("Part", Clips, Heard)


@dataclass(frozen=True)
class Joined:
    """Clips of equal format, those of one part after those of the one before it; at least one part."""

    parts: Sequence[Clips]

    @property
    def format(self) -> ClipFormat:
        """Label names, sample rate and length."""
        return self.parts[0].format

    @property
    def labels(self) -> Numbers:
        """Label ids: int64 (n,)."""
        return np.concatenate([part.labels for part in self.parts])

    @property
    def keys(self) -> Keys:
        """A number for each clip: uint64 (n,)."""
        return np.concatenate([part.keys for part in self.parts])

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def read(
        self, numbers: Numbers | Sequence[int], places: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Waveforms: float32 (len(numbers), num_samples), in [-1, 1]."""
        found = np.empty((len(numbers), self.format.num_samples), dtype=np.float32)
        for part, own, where in shared_out(self.parts, np.asarray(numbers, dtype=np.int64)):
            found[where] = part.read(own, None if places is None else places[where])
        return found


@dataclass(frozen=True, kw_only=True)
class JoinedHeard(Heard):
    """Joined clips as a model hears them, from what is kept of each part."""

    parts: Sequence[Heard]

    def inputs(self, numbers: Numbers, keys: Keys | None = None) -> Inputs:
        """What `logits` takes, as of each part."""
        found: dict[str, torch.Tensor] = {}
        for part, own, where in shared_out(self.parts, numbers):
            for name, rows in part.inputs(own, None if keys is None else keys[where]).items():
                found.setdefault(name, rows.new_empty(len(numbers), *rows.shape[1:]))[torch.from_numpy(where)] = rows
        return found

    def logits(self, model: Classifier, inputs: Inputs) -> torch.Tensor:
        """The answers: float32 (batch, num_labels)."""
        return self.parts[0].logits(model, inputs)


def heard_by(model: Classifier, clips: Clips, training: Training, changed: bool = False) -> Heard:
    """As `kws.caching.heard_by`; of joined clips, each part by itself."""
    if training.cache == "none" or not isinstance(clips, Joined):
        return caching.heard_by(model, clips, training, changed)
    return JoinedHeard(clips, parts=[caching.heard_by(model, part, training, changed) for part in clips.parts])


def shared_out(parts: Sequence[Part], numbers: Numbers) -> Iterator[tuple[Part, Numbers, Numbers]]:
    """For each part that some of the numbers are in: the part, their numbers in it, and where they stand."""
    ends = np.cumsum([len(part.labels) for part in parts])
    which = np.searchsorted(ends, numbers, side="right")
    for index in np.unique(which):
        where = np.flatnonzero(which == index)
        yield parts[index], numbers[where] - (ends[index] - len(parts[index].labels)), where
