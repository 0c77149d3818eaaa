"""Updates that are not farther than they may be from what the sites were sent: what every rule is given."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from rules.contract import Floats, Rule, Tensors, Update, places


@dataclass(frozen=True)
class Bounded:
    """An update moved along the line to the model, read as it is needed; `factors` by what names begin with."""

    update: Update
    model: Tensors
    factors: Mapping[str, float]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return self.update.shapes

    @property
    def unchanged(self) -> frozenset[str]:
        """Tensors that are as the site received them."""
        return self.update.unchanged

    def read(self, name: str, place: slice) -> Floats:
        """The elements of a tensor from `place.start` to `place.stop`, flat."""
        after, factor = self.update.read(name, place), self.factors[_group(name)]
        if factor == 1 or name in self.unchanged:
            return after
        before = self.model.read(name, place).astype(np.float64)
        return np.asarray(before + factor * (after - before), np.float32)


def bounded(rule: Rule, model: Tensors, update: Update) -> Update:
    """The update as the rule may see it.

    Names that begin with another word and a slash (`scaffold/`) are another vector, which is measured by itself.
    """
    if rule.max_update_norm is None:
        return update
    squares = dict.fromkeys(map(_group, model.shapes), 0.0)
    for name, shape in model.shapes.items():
        for place in places(shape) if name not in update.unchanged else ():
            change = update.read(name, place).astype(np.float64)
            change -= model.read(name, place)
            squares[_group(name)] += float(change @ change)
    norms = {group: math.sqrt(square) for group, square in squares.items()}
    factors = {group: min(1.0, rule.max_update_norm / norm) if norm else 1.0 for group, norm in norms.items()}
    return update if min(factors.values(), default=1.0) == 1 else Bounded(update, model, factors)


def _group(name: str) -> str:
    return name.partition("/")[0] if "/" in name else ""
