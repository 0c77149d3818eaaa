"""The OpenFL shard descriptors: translate the data layer for an envoy, decide nothing."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from typing import Any

from openfl.interface.interactive_api.shard_descriptor import ShardDataset, ShardDescriptor

from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.partition.contract import PartitionError, assign, digest, shard_of
from shard_descriptors.partition.report import summarize
from shard_descriptors.partition.schemes import described, scheme_of
from shard_descriptors.sources.registry import open_corpus


class ClipDataset(ClipSet, ShardDataset):  # type: ignore[misc]
    """The clips of one split of one shard; item i is (waveform float32 (num_samples,), label id)."""

    def __getitem__(self, index: int) -> tuple[object, int]:
        return self.read([index])[0], int(self.labels[index])


class SpeechShardDescriptor(ShardDescriptor):  # type: ignore[misc]
    """Shard `shard` of `of` of the recordings of one source; the parameters of `envoy.yaml`.

    Args:
        source: one of `sources.registry.SOURCES`.
        data_path: where the recordings lie.
        partition: a scheme of `partition.schemes.SCHEMES` by name, or a mapping with `scheme` and its settings; every
            site must give the same. "own": this site's own recordings, whatever the others have.
        shard: number of this site's shard, from 1.
        of: number of shards; every site must give the same.
        seed: seed of the partition; every site must give the same.
        **settings: of the source.

    Raises:
        CorpusError: the recordings cannot be used.
        PartitionError: no such scheme, no such shard, or an empty one.
    """

    def __init__(
        self,
        source: str,
        data_path: str | None = None,
        partition: str | Mapping[str, Any] = "own",
        shard: int = 1,
        of: int = 1,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        if not 1 <= shard <= of:
            raise PartitionError(f"shard {shard} of {of} does not exist; the first is 1, the last {of}")
        self.number, self.of, self.seed = shard, of, seed
        self._scheme = scheme_of(partition)
        self._corpus = open_corpus(source, data_path, **settings)
        # So that the notebook opens its own copy alike; how other recordings are kept is their owner's affair.
        self._settings = settings if source == "speech_commands" else {}
        rows = self._corpus.utterances
        assigned = assign(rows, self._scheme, of, seed)
        self._utterances, self._digest = shard_of(rows, assigned, shard), digest(rows, assigned)
        if not any(utterance.split == "validation" for utterance in self._utterances):
            raise PartitionError(
                f"shard {shard} of {of} of {self._corpus.name} has no validation utterances; ask for fewer shards or "
                f"less skew, or say in the recordings themselves which are for validation"
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
                "settings": self._settings,
                "format": asdict(self._corpus.format),
                "scheme": described(self._scheme),
                "shard": self.number,
                "of": self.of,
                "seed": self.seed,
                "partition": self._digest,
                **summarize(self._utterances, self._corpus.format),
            }
        )
