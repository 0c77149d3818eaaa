"""What training asks of a site's recordings."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shard_descriptors.corpus import ClipFormat

Numbers = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]
"""A number for each clip, from which all is drawn that is random about hearing it."""


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
