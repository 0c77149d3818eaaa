"""The median of what the sites have trained, which a site that sends nonsense moves little."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rules.contract import Computed, Floats, Rule, State, Tensors
from rules.ordering import ordered


@dataclass(frozen=True)
class Median(Rule):
    """The median of every element over the sites; the mean of the two in the middle where their number is even.

    Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", algorithm 1, option I.
    Every site counts once, however many utterances it has: a weight would be one more thing to lie about.
    """

    of_the_mean: ClassVar[bool] = False

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps nothing; the next model is the median."""
        low, high = (len(updates) - 1) // 2, len(updates) // 2

        def block(name: str, place: slice) -> Floats:
            median = np.empty(place.stop - place.start, np.float32)
            for piece, rows in ordered([update.read(name, place) for update in updates]):
                median[piece] = np.add(rows[low], rows[high], dtype=np.float64) / 2
            return median

        return state, Computed(state.model.shapes, block)
