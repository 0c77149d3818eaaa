"""Utterances as waveforms: decoded when first asked for, remembered as far as a memory budget allows."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from shard_descriptors.audio import read_clip
from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.utterances import Utterance

CACHE_BYTES = 512 * 2**20
"""Default budget for remembered waveforms: some 16,000 clips of one second at 2 bytes a sample."""


class ClipSet:
    """n clips of one length, by number.

    labels: int64 (n,), label ids in the order of `form.labels`. Clips are remembered with 16 bits a sample, the
    resolution of the official archives; those beyond `cache_bytes` are decoded each time.
    """

    def __init__(
        self, utterances: Sequence[Utterance], form: ClipFormat = SUPERB_KS, cache_bytes: int = CACHE_BYTES
    ) -> None:
        self.utterances = tuple(utterances)
        self.format = form
        ids = form.label_ids
        self.labels = np.array([ids[u.label] for u in self.utterances], dtype=np.int64)
        remembered = min(len(self.utterances), cache_bytes // (2 * form.num_samples))
        self._cache = np.empty((remembered, form.num_samples), dtype=np.int16)  # pages are taken when first written
        self._known = np.zeros(remembered, dtype=bool)

    def __len__(self) -> int:
        return len(self.utterances)

    def read(self, numbers: npt.NDArray[np.int64] | Sequence[int]) -> npt.NDArray[np.float32]:
        """Waveforms of the clips with these numbers: float32 (len(numbers), num_samples), in [-1, 1].

        AudioError names a file that cannot be used.
        """
        rows = np.empty((len(numbers), self.format.num_samples), dtype=np.int16)
        for row, number in enumerate(numbers):
            rows[row] = self._clip(int(number))
        return rows.astype(np.float32) / np.float32(32768)

    def _clip(self, number: int) -> npt.NDArray[np.int16]:
        if number < len(self._known) and self._known[number]:
            clip: npt.NDArray[np.int16] = self._cache[number]
            return clip
        utterance = self.utterances[number]
        waveform = read_clip(
            utterance.path, utterance.start, self.format.num_samples, self.format.sample_rate, utterance.row
        )
        clip = np.clip(np.round(waveform * 32768), -32768, 32767).astype(np.int16)
        if number < len(self._known):
            self._cache[number], self._known[number] = clip, True
        return clip
