"""Where the tests' corpora come from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.sources.synthetic import SyntheticSettings
from shard_descriptors.utterances import Utterance

BESIDE_THE_REPO = Path(__file__).resolve().parents[2] / "shared" / "data"

TINY = SyntheticSettings(
    train_speakers=12,
    validation_speakers=4,
    test_speakers=4,
    train_clips=180,
    validation_clips=40,
    test_clips_per_label=4,
    noise_seconds=6,
)


def read_all(utterances: Sequence[Utterance]) -> npt.NDArray[np.float32]:
    """The waveforms of these utterances: float32 (len(utterances), 16000)."""
    return ClipSet(utterances).read(range(len(utterances)))
