"""Federated averaging: the mean of what the sites have trained."""

from collections.abc import Sequence
from dataclasses import dataclass

from rules.contract import Averaging, Computed, State, Tensors
from rules.exact import mean


@dataclass(frozen=True)
class Mean(Averaging):
    """The mean of the sites' models, weighted by their training utterances; exact, see `rules.exact`.

    McMahan et al. 2017, "Communication-efficient learning of deep networks from decentralized data", algorithm 1.
    """

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps nothing; the next model is the mean."""
        return state, Computed(
            state.model.shapes, lambda name, place: mean([update.read(name, place) for update in updates], weights)
        )
