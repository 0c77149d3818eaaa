"""The model of the site that is nearest to the others, or the mean of several such."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from rules.contract import Computed, Rule, State, Tensors, places
from rules.exact import mean
from rules.numbers import number

PIECE = 2**13


@dataclass(frozen=True)
class Krum(Rule):
    """Of n models, the one with the least sum of squared distances to its n - byzantine - 2 nearest.

    Blanchard et al. 2017, "Machine learning with adversaries: Byzantine tolerant gradient descent", section 4; it needs
    more than 2 byzantine + 2 sites. `select` above 1 is multi-Krum (section 5): the mean of so many of the least sums,
    of at most n - byzantine. Every site counts once.
    """

    of_the_mean: ClassVar[bool] = False
    byzantine: int = number(1, least=0, whole=True)
    select: int = number(1, least=1, whole=True)

    @property
    def least_sites(self) -> int:
        """How many updates the rule needs at least."""
        return 2 * int(self.byzantine) + 3

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps nothing; the next model is what was chosen.

        Raises:
            ValueError: there are fewer than 2 byzantine + 3 updates.
        """
        count = len(updates)
        if count < self.least_sites:
            raise ValueError(f"krum with byzantine={self.byzantine} needs {self.least_sites} sites; there are {count}")
        distances = np.sort(squared_distances(state.model, updates), axis=1)  # the first is its own, 0
        scores = distances[:, 1 : count - int(self.byzantine) - 1].sum(axis=1)
        chosen = np.argsort(scores, kind="stable")[: min(int(self.select), count - int(self.byzantine))]
        best = [updates[which] for which in sorted(chosen)]
        return state, Computed(
            state.model.shapes, lambda name, place: mean([each.read(name, place) for each in best], [1] * len(best))
        )


def squared_distances(model: Tensors, updates: Sequence[Tensors]) -> npt.NDArray[np.float64]:
    """Between every two updates, of the products of what each has changed: |a - b|^2 = a.a + b.b - 2 a.b, (n, n)."""
    products = np.zeros((len(updates), len(updates)))
    for name, shape in model.shapes.items():
        for place in places(shape):
            before, after = model.read(name, place), [update.read(name, place) for update in updates]
            for start in range(0, len(before), PIECE):
                piece = slice(start, start + PIECE)
                changes = np.array([each[piece] for each in after], np.float64)
                changes -= before[piece]
                products += changes @ changes.T
    own = np.diagonal(products)
    distances = np.maximum(own[:, None] + own - 2 * products, 0)
    np.fill_diagonal(distances, 0)
    return distances
