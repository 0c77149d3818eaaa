"""Utterances as waveforms, by number: decoded once into a file that is mapped into memory."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import cache as remembered
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tqdm import tqdm

from shard_descriptors.clips.audio import AudioError, read_clip
from shard_descriptors.clips.cache import cache_folder
from shard_descriptors.clips.packed import kept
from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.utterances import Utterance

Samples = npt.NDArray[np.int16]

DECODER_VERSION = 1  # raise it with any change to what a decoded clip is: it names the packed files
FULL_SCALE = np.float32(32768)
KEY_SAMPLES = 1024
"""Of the middle of a clip: more than are ever alike in two recordings."""


class ClipSet:
    """n clips of one length, by number.

    labels: int64 (n,), label ids in the order of `form.labels`.
    cache:  folder of the packed clips; None: "clips" in the user's cache (see `cache_folder`).

    All clips of a set are decoded once, at the first `read` or by `prepare`, into one file with 16 bits a sample, the
    resolution of the official archives. The file is mapped, so memory does not grow with the corpus; other processes
    with the same clips share it; a recording that has changed since is decoded anew. Where the file cannot be written,
    a warning says so, and clips are decoded each time, to the same samples.
    """

    def __init__(
        self, utterances: Sequence[Utterance], form: ClipFormat = SUPERB_KS, cache: Path | None = None
    ) -> None:
        self.utterances = tuple(utterances)
        self.format = form
        self.cache = cache
        ids = form.label_ids
        self.labels = np.array([ids[u.label] for u in self.utterances], dtype=np.int64)
        # A recording that is longer than a clip is kept whole, since clips are cut from it anywhere.
        self._lengths = np.array([u.num_samples or form.num_samples for u in self.utterances], dtype=np.int64)
        self._starts = np.cumsum(self._lengths) - self._lengths
        self._packed: Samples | None = None
        self._prepared = False

    def __len__(self) -> int:
        return len(self.utterances)

    def __getstate__(self) -> dict[str, Any]:
        """Without the samples: another process maps the same file."""
        return self.__dict__ | {"_packed": None, "_prepared": False}

    @cached_property
    def keys(self) -> npt.NDArray[np.uint64]:
        """A number for each clip, the same wherever it lies: uint64 (n,); from its name, its place and its sound.

        Of the sound, so that recordings of two owners who number theirs alike are not taken for each other.

        AudioError names a file that cannot be used.
        """
        self.prepare()
        keys = np.empty(len(self), dtype=np.uint64)
        for number, (utterance, length) in enumerate(zip(self.utterances, self._lengths.tolist(), strict=True)):
            digest = hashlib.blake2b(f"{utterance.start} {length} {utterance.name}".encode(), digest_size=8)
            digest.update(self._samples(number)[length // 2 :][:KEY_SAMPLES].tobytes())
            keys[number] = int.from_bytes(digest.digest())
        return keys

    def read(
        self, numbers: npt.NDArray[np.int64] | Sequence[int], places: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[np.float32]:
        """Waveforms of the clips with these numbers: float32 (len(numbers), num_samples), in [-1, 1].

        An utterance that is shorter than a clip is padded with zeros on the right. Of a longer one it is a part, which
        begins where `places` says for each: from 0, its beginning (which it is without places), to below 1, the last
        place from which there is a whole clip.

        AudioError names a file that cannot be used.
        """
        self.prepare()
        clips = np.zeros((len(numbers), self.format.num_samples), dtype=np.float32)
        firsts = np.zeros(len(numbers), dtype=np.int64)
        if places is not None:
            spare = np.maximum(self._lengths[np.asarray(numbers, dtype=np.int64)] - self.format.num_samples, 0)
            firsts = (places * (spare + 1)).astype(np.int64)
        for clip, number, first in zip(clips, numbers, firsts, strict=True):
            samples = self._samples(int(number))[first : first + len(clip)]
            np.divide(samples, FULL_SCALE, out=clip[: len(samples)])
        return clips

    def prepare(self) -> None:
        """Decode all clips now, unless a file from an earlier time has them; shows progress.

        AudioError names a file that cannot be used.
        """
        if self._prepared or not self.utterances:
            return
        self._packed = kept(
            self.folder / f"{self.digest()}.int16",
            self._decoded,
            2 * int(self._lengths.sum()),
            "Decoded clips",
            "each is decoded whenever it is read",
        )
        self._prepared = True

    @property
    def folder(self) -> Path:
        """Where the packed clips lie, and what a model has made of them."""
        return self.cache or cache_folder() / "clips"

    def _samples(self, number: int) -> Samples:
        if self._packed is None:
            return self._decode(number)
        return self._packed[self._starts[number] : self._starts[number] + self._lengths[number]]

    def _decode(self, number: int) -> Samples:
        utterance = self.utterances[number]
        length = int(self._lengths[number])
        waveform = read_clip(utterance.path, utterance.start, length, self.format.sample_rate, utterance.row)
        samples: Samples = np.minimum(np.rint(waveform * FULL_SCALE), FULL_SCALE - 1).astype(np.int16)
        return samples

    def _decoded(self) -> Iterator[Samples]:
        """The samples of every clip, one after the other; small sets are done before a bar would be seen."""
        for number in tqdm(range(len(self)), desc="decoding", unit="clip", delay=1, mininterval=0.5):
            yield self._decode(number)

    def digest(self) -> str:
        """Names all that the samples depend on: the format, and which parts of which files as they are now.

        AudioError names a file that is not there.
        """
        stat = remembered(os.stat)
        digest = hashlib.sha256(f"{DECODER_VERSION} {self.format.sample_rate}".encode())
        for utterance, length in zip(self.utterances, self._lengths.tolist(), strict=True):
            try:
                file = stat(utterance.path)
            except OSError as error:
                raise AudioError(f"{utterance.path} is not a file; was it moved after the listing?") from error
            part = (os.path.abspath(utterance.path), utterance.start, length, utterance.row)
            digest.update(repr((*part, file.st_size, file.st_mtime_ns)).encode())
        return digest.hexdigest()[:32]
