"""The OpenFL shard descriptor of this workspace: translates the data layer for an envoy, decides nothing."""

import json
from dataclasses import asdict
from functools import cached_property

from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from shard_descriptors import partition
from shard_descriptors.clips import ClipSet
from shard_descriptors.report import summarize
from shard_descriptors.sources import open_corpus


class ClipDataset(ClipSet, ShardDataset):  # type: ignore[misc]
    """The clips of one split of one shard; item i is (waveform float32 (num_samples,), label id)."""

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.read([index])[0], int(self.labels[index])


class SuperbKsShardDescriptor(ShardDescriptor):  # type: ignore[misc]
    """Shard `shard` of `of` of a corpus in the official Speech Commands layout.

    Args:
        data_path: folder of the corpus; None: the environment variable DATA, else synthetic speech, made on first use.
        shard: number of this site's shard, from 1.
        of: number of shards; every site must give the same.
        seed: seed of the partition; every site must give the same.

    Raises:
        CorpusError: the folder is not a corpus in the official layout.
        PartitionError: no such shard, or an empty one.
    """

    def __init__(self, data_path: str | None = None, shard: int = 1, of: int = 1, seed: int = 0) -> None:
        self.number, self.of, self.seed = shard, of, seed
        self._corpus = open_corpus(data_path=data_path)
        self._utterances = partition.shard(self._corpus.utterances, shard, of, seed)
        for split in ("train", "validation"):
            if not any(utterance.split == split for utterance in self._utterances):
                raise partition.PartitionError(
                    f"shard {shard} of {of} of {self._corpus.name} has no {split} utterances; ask for fewer shards"
                )

    def get_dataset(self, dataset_type: str) -> ClipDataset:
        """The site's clips of one split: "train", "validation" or "test"."""
        return ClipDataset([u for u in self._utterances if u.split == dataset_type], self._corpus.format)

    @property
    def sample_shape(self) -> list[str]:
        """Samples of a clip."""
        return [str(self._corpus.format.num_samples)]

    @property
    def target_shape(self) -> list[str]:
        """One label id."""
        return ["1"]

    @cached_property
    def dataset_description(self) -> str:
        """JSON of what the site tells about its data: counts, no audio, no speaker's name."""
        return json.dumps(
            {
                "corpus": self._corpus.name,
                "shard": self.number,
                "of": self.of,
                "seed": self.seed,
                "partition": partition.digest(self._corpus.utterances, self.of, self.seed),
                "format": asdict(self._corpus.format),
                **summarize(self._utterances, self._corpus.format),
            }
        )
