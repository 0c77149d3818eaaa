"""The mean with momentum at the director: what all sites move to, round after round, is gone faster."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rules.contract import Averaging, State, Tensors, together
from rules.numbers import number


@dataclass(frozen=True)
class FedAvgM(Averaging):
    """v = beta1 v + (mean - x), then x = x + server_learning_rate v.

    Hsu, Qi and Brown 2019, "Measuring the effects of non-identical data distribution for federated visual
    classification", section 3, equation in the text: v = beta v + dw, w = w - v; with a rate, which is 1 there.
    """

    server_learning_rate: float = number(1.0, above=0)
    beta1: float = number(0.9, least=0, below=1)

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps v, a number for each of the model's."""
        (mean,) = updates
        velocity = state.kept("velocity")

        def step(name: str, place: slice) -> tuple[np.ndarray, np.ndarray]:
            before = state.model.read(name, place).astype(np.float64)
            v = self.beta1 * velocity(name, place) + (mean.read(name, place) - before)
            return before + self.server_learning_rate * v, v

        arrays, model = together(state.model.shapes, ("velocity",), step)
        return State(state.model, arrays), model
