"""Label skew: proportions drawn from a Dirichlet distribution."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from shard_descriptors.partition.contract import Assignment, PartitionError, Scheme
from shard_descriptors.partition.tools import check, positive, shuffled
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Dirichlet(Scheme):
    """Label skew: each label's utterances are shared out in proportions drawn from Dir(alpha), by `flwr-datasets`.

    Source: Yurochkin et al. 2019 (Bayesian Nonparametric Federated Learning of Neural Networks). All splits are shared
    out together, so that a shard has about the same mixture of labels in each. Speakers are torn apart.

    alpha:          concentration; 0.1 leaves a shard few labels, 100 makes all alike.
    min_utterances: proportions are drawn again, ten times at most, until every shard has so many.
    """

    alpha: float = 0.5
    min_utterances: int = 10

    keeps_speakers: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
        check(self, alpha=positive, min_utterances=lambda n: isinstance(n, int) and n >= 1)

    def assign(self, utterances: Sequence[Utterance], num_shards: int, seed: int) -> Assignment:
        """PartitionError when no draw gives every shard enough."""
        from datasets import Dataset  # here, not above: it takes two seconds, which the other schemes do without
        from flwr_datasets.partitioner import DirichletPartitioner

        order = shuffled(len(utterances), seed)
        partitioner = DirichletPartitioner(
            num_shards, "label", float(self.alpha), self.min_utterances, shuffle=False, seed=seed
        )
        partitioner.dataset = Dataset.from_dict({"label": [utterances[row].label for row in order], "row": order})
        assigned = np.empty(len(utterances), dtype=np.int64)
        try:
            with warnings.catch_warnings(action="ignore"):  # of every draw that is repeated
                for number in range(num_shards):
                    assigned[partitioner.load_partition(number)["row"]] = number
        except ValueError as error:
            raise PartitionError(
                f"alpha {self.alpha} leaves some of {num_shards} shards with fewer than {self.min_utterances} "
                f"utterances in every draw; give a larger alpha, fewer shards or fewer min_utterances"
            ) from error
        return assigned
