"""A tensor store that is a dictionary.

The engine keeps tensors in a pandas frame and scans every row at each look-up (databases/tensor_db.py:143):
one aggregation of 211 tensors took over a second of CPU, and more with each round. Same interface, one look-up.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from openfl.utilities import LocalTensor, TensorKey, change_tags


class TensorStore:
    """Drop-in for `openfl.databases.TensorDB`: tensors by (name, origin, round, report, tags)."""

    def __init__(self) -> None:
        self._tensors: dict[TensorKey, np.ndarray] = {}

    def __repr__(self) -> str:
        return f"TensorStore of {len(self._tensors)} tensors"

    def cache_tensor(self, tensors: Mapping[TensorKey, np.ndarray]) -> None:
        """Keep tensors; the first one under a key stays, as in the engine's store."""
        for key, array in tensors.items():
            self._tensors.setdefault(_normal(key), array)

    def get_tensor_from_cache(self, key: TensorKey) -> np.ndarray | None:
        """The tensor under `key`, or None."""
        return self._tensors.get(_normal(key))

    def get_aggregated_tensor(
        self, key: TensorKey, collaborator_weight_dict: Mapping[str, float], aggregation_function: Any
    ) -> np.ndarray:
        """Aggregate what each collaborator stored under `key` plus its own name as a tag.

        Raises:
            KeyError: a collaborator's tensor is missing.
        """
        local = [
            LocalTensor(name, self._tensors[_normal(key._replace(tags=change_tags(key.tags, add_field=name)))], weight)
            for name, weight in collaborator_weight_dict.items()
        ]
        return np.asarray(aggregation_function(local, self._history(), key.tensor_name, key.round_number, key.tags))

    def clean_up(self, remove_older_than: int = 1) -> None:
        """Drop tensors of rounds older than the newest `remove_older_than` rounds; negative keeps all."""
        if remove_older_than < 0 or not self._tensors:
            return
        oldest = max(key.round_number for key in self._tensors) - remove_older_than
        self._tensors = {key: array for key, array in self._tensors.items() if key.round_number > oldest}

    def _history(self) -> Iterator[Any]:
        """Rows as the engine's aggregation functions read them, newest round first."""
        for key in sorted(self._tensors, key=lambda key: -key.round_number):
            yield {
                "round": key.round_number,
                "nparray": self._tensors[key],
                "tensor_name": key.tensor_name,
                "tags": key.tags,
            }


def _normal(key: TensorKey) -> TensorKey:
    return TensorKey(key[0], key[1], key[2], key[3], tuple(sorted(key[4])))
