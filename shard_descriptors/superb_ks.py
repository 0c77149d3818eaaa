"""SUPERB keyword spotting for an envoy: the shard descriptor of this workspace's two sites."""

from collections.abc import Mapping
from typing import Any

from shard_descriptors.descriptor import SpeechShardDescriptor


class SuperbKsShardDescriptor(SpeechShardDescriptor):
    """Shard `shard` of `of` of Speech Commands v0.01, shared out by whole speakers unless `partition` says otherwise.

    Args:
        data_path: folder of the archives, unpacked or as tarballs, or "download"; None: the environment's DATA, else
            synthetic speech, made when missing.
        silence: what the training silence is: one of `sources.speech_commands.SILENCES`.
        partition, shard, of, seed: as in `SpeechShardDescriptor`.
    """

    def __init__(
        self,
        data_path: str | None = None,
        shard: int = 1,
        of: int = 1,
        seed: int = 0,
        partition: str | Mapping[str, Any] = "speakers",
        silence: str = "balanced",
    ) -> None:
        super().__init__("speech_commands", data_path, partition, shard, of, seed, silence=silence)
