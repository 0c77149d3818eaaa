"""What a frozen model makes of clips: computed once, kept beside the packed clips in half precision."""

import hashlib
import logging
import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from shard_descriptors.clips import packed
from shard_descriptors.clips.clip_set import ClipSet

logger = logging.getLogger(__name__)

VERSION = 1  # raise it with any change to how the features are computed: it names the files
BLOCK = 32

Numbers = npt.NDArray[np.int64]
Compute = Callable[[Numbers], npt.NDArray[np.float32]]


class FeatureError(ValueError):
    """Features that cannot be kept; the message says why and what to do."""


class Features:
    """n arrays of one shape, by number: float16 (n, *shape).

    clips:   what they are computed from; they lie in its folder, within the same limits.
    made_by: all else that they depend on, in words and digests: weights, settings, seeds.
    shape:   of each array.
    count:   how many there are: n.
    compute: float32 (len(numbers), *shape) for the features with these numbers, the same whenever it is called.
    what:    their name, for messages: "the feature encoder's output".

    All are computed at the first `read` or by `prepare`, a block at a time, into one file that is made under a lock,
    checked, mapped and shared as the packed clips are. Where it cannot be written, a warning says so, and features are
    computed each time, to the same values.
    """

    def __init__(
        self, clips: ClipSet, made_by: str, shape: tuple[int, ...], count: int, compute: Compute, what: str
    ) -> None:
        self.shape, self.count = shape, count
        self._clips, self._made_by, self._compute, self._what = clips, made_by, compute, what
        self._packed: npt.NDArray[np.float16] | None = None
        self._prepared = False

    @property
    def size(self) -> int:
        """Bytes of all."""
        return 2 * self.count * math.prod(self.shape)

    def read(self, numbers: Numbers) -> npt.NDArray[np.float16]:
        """The features with these numbers: float16 (len(numbers), *shape)."""
        self.prepare()
        return self._halves(numbers) if self._packed is None else self._packed[numbers]

    def prepare(self) -> None:
        """Compute all features now, unless a file from an earlier time has them; shows progress.

        FeatureError when they are too large for the folder, or for half precision.
        """
        if self._prepared or not self.count:
            return
        size = (
            f"{self._what} of {self.count:,} clips: {self.size / 1e6:,.1f} MB ({_product(self.shape)} x 2 bytes each)"
        )
        if self.size > packed.KEPT_BYTES:
            raise FeatureError(
                f"{size}, and {self._clips.folder} keeps {packed.KEPT_BYTES / 1e6:,.1f} MB at most; "
                f'set training.cache to "none", or give the site fewer clips'
            )
        logger.info("%s, in %s", size, self._clips.folder)
        path = self._clips.folder / f"{self._digest()}.float16"
        found = packed.kept(path, self._blocks, self.size, self._what, "it is computed whenever it is read")
        self._packed = None if found is None else found.reshape(self.count, *self.shape)
        self._prepared = True

    def _blocks(self) -> Iterator[npt.NDArray[np.float16]]:
        with tqdm(total=self.count, desc=self._what, unit="clip", delay=1, mininterval=0.5) as bar:
            for first in range(0, self.count, BLOCK):
                numbers = np.arange(first, min(first + BLOCK, self.count))
                yield self._halves(numbers)
                bar.update(len(numbers))

    def _halves(self, numbers: Numbers) -> npt.NDArray[np.float16]:
        values = self._compute(numbers)
        with np.errstate(over="ignore"):  # an error, not a warning
            halves = values.astype(np.float16)
        if not np.isfinite(halves).all():
            raise FeatureError(
                f"{self._what} has values up to {np.abs(values).max():.3g}, which half precision does not hold; "
                f'set training.cache to "none"'
            )
        return halves

    def _digest(self) -> str:
        """Names all that the features depend on."""
        about = (VERSION, self._made_by, self.count, self.shape, self._clips.format.num_samples, self._clips.digest())
        return hashlib.sha256(repr(about).encode()).hexdigest()[:32]


def _product(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
