"""The server's part of SCAFFOLD; the sites' part is `kws.algorithms`."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rules.contract import Averaging, Computed, State, Tensors
from rules.numbers import number

CONTROL = "scaffold/"
"""What the names of the control variates begin with; the rest is that of the tensor they belong to."""


@dataclass(frozen=True)
class Scaffold(Averaging):
    """x = x + server_learning_rate (mean - x), and c = c + (sites in the round / all sites) (mean of c's - c).

    Karimireddy et al. 2020, "SCAFFOLD: stochastic controlled averaging for federated learning", algorithm 1, lines 16
    and 17. A site sends c + (its new c_i - its old c_i). In the paper all sites weigh the same, which `weight_cap` of 1
    makes true here; otherwise both means are weighted by utterances, as the objective is.
    """

    server_learning_rate: float = number(1.0, above=0)

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps nothing: c is a part of what travels."""
        (mean,) = updates

        def block(name: str, place: slice) -> np.ndarray:
            share = state.share if name.startswith(CONTROL) else self.server_learning_rate
            if share == 1:
                return mean.read(name, place)
            before = state.model.read(name, place).astype(np.float64)
            return np.asarray(before + share * (mean.read(name, place) - before))

        return state, Computed(state.model.shapes, block)
