"""The mean of what is left of the sites' models when the largest and the smallest elements are cut off."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from rules.contract import Computed, Floats, Rule, State, Tensors
from rules.numbers import number
from rules.ordering import ordered


@dataclass(frozen=True)
class TrimmedMean(Rule):
    """Of every element, the mean over the sites without the `trim` n largest and the `trim` n smallest of n.

    Yin et al. 2018, "Byzantine-robust distributed learning: towards optimal statistical rates", algorithm 1, option II.
    A part of a site is cut as a whole one, so that 0.1 of five sites protects from one; as long as one is left. Every
    site counts once.
    """

    of_the_mean: ClassVar[bool] = False
    trim: float = number(0.2, least=0, below=0.5)

    def cut(self, sites: int) -> int:
        """How many of so many are cut off at either end."""
        return min(math.ceil(self.trim * sites - 1e-9), (sites - 1) // 2)  # 0.1 * 30 is above 3

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps nothing; the next model is the trimmed mean."""
        cut = self.cut(len(updates))
        kept = slice(cut, len(updates) - cut)

        def block(name: str, place: slice) -> Floats:
            trimmed = np.empty(place.stop - place.start, np.float32)
            for piece, rows in ordered([update.read(name, place) for update in updates]):
                total = np.zeros(piece.stop - piece.start)
                for row in rows[kept]:
                    total += row
                trimmed[piece] = total / (kept.stop - kept.start)
            return trimmed

        return state, Computed(state.model.shapes, block)
