"""Where the tests' corpora come from."""

from pathlib import Path

from shard_descriptors.synthetic import SyntheticSettings

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
