"""What a rule is: the server's part of an algorithm, one small file beside the others.

A rule makes the next model of what the sites have trained: `(state, updates, weights) -> (state, model)`. What it is
given and what it gives are `Tensors`: named float32 arrays that are read block by block, so that a rule works in memory
that grows neither with the model nor with the number of sites, and may read everything twice. A rule computes nothing
when it is called, beyond what needs a first look at the updates (a distance, a norm): it says how a block is made
(`Computed`), and whoever called it reads the blocks and writes them to disk.

What a rule wants to have again in the next round it puts into its state: arrays of any names and shapes, and numbers.
The director keeps them with the model of the round that they belong to, so that a restart finds both or neither.

Here is only numpy: the same files serve the director and the simulation.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from rules.numbers import number, problems

Floats = npt.NDArray[np.float32]

BLOCK = 2**16
"""Elements that are computed at a time: a few such blocks in double precision stay in a core's cache."""


class Tensors(Protocol):
    """Named float32 tensors, wherever they are."""

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor, in the order in which they are read and written."""

    def read(self, name: str, place: slice) -> Floats:
        """The elements of a tensor from `place.start` to `place.stop`, flat; not to be changed."""


class Update(Tensors, Protocol):
    """A model that a site has trained."""

    @property
    def unchanged(self) -> frozenset[str]:
        """Tensors that are as the site received them; reading them gives the received ones."""


@dataclass(frozen=True)
class Computed:
    """Tensors that are made as they are read: `block(name, place)` gives the elements, flat."""

    shapes: Mapping[str, tuple[int, ...]]
    block: Callable[[str, slice], npt.NDArray[Any]]

    def read(self, name: str, place: slice) -> Floats:
        """The elements of a tensor from `place.start` to `place.stop`, flat."""
        return np.asarray(self.block(name, place), np.float32)


class InMemory(dict[str, Floats]):
    """Tensors that are arrays; also an update, of which nothing is known to be as it was."""

    unchanged: frozenset[str] = frozenset()

    @classmethod
    def of(cls, tensors: Tensors) -> "InMemory":
        """Read them all."""
        return cls({name: _whole(tensors, name, shape) for name, shape in tensors.shapes.items()})

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: array.shape for name, array in self.items()}

    def read(self, name: str, place: slice) -> Floats:
        """The elements of a tensor from `place.start` to `place.stop`, flat."""
        return self[name].reshape(-1)[place]


@dataclass(frozen=True)
class State:
    """What a rule begins a round with.

    model: what the sites were sent. arrays, numbers: what the rule has kept of the round before; nothing in the first.
    share: of the experiment's sites, those whose updates these are.
    """

    model: Tensors
    arrays: Tensors = field(default_factory=InMemory)
    numbers: Mapping[str, float] = field(default_factory=dict)
    share: float = 1.0

    def kept(self, kind: str, first: float = 0.0) -> Callable[[str, slice], Floats]:
        """Reads the arrays of one kind, `kind/name`; in the first round every element is `first`."""
        known = self.arrays.shapes

        def read(name: str, place: slice) -> Floats:
            if f"{kind}/{name}" not in known:
                return np.full(place.stop - place.start, first, np.float32)
            return self.arrays.read(f"{kind}/{name}", place)

        return read


def together(
    shapes: Mapping[str, tuple[int, ...]],
    kinds: Sequence[str],
    compute: Callable[[str, slice], Sequence[npt.NDArray[Any]]],
) -> tuple[Computed, Computed]:
    """What a rule keeps, and the next model, where both come of one computation.

    Args:
        shapes: the model's.
        kinds: of the arrays that are kept, one for each tensor of the model, called `kind/name`.
        compute: the elements of the model, and of each kind.

    The blocks computed last are remembered: who reads model and arrays in turn, as the director does, has every block
    computed once.
    """
    last: tuple[tuple[str, slice] | None, Sequence[npt.NDArray[Any]]] = None, ()

    def part(which: int, name: str, place: slice) -> npt.NDArray[Any]:
        nonlocal last
        if last[0] != (name, place):
            last = (name, place), compute(name, place)
        return last[1][which]

    kept = {f"{kind}/{name}": (which, name) for which, kind in enumerate(kinds, 1) for name in shapes}
    arrays = Computed(
        {key: shapes[name] for key, (_, name) in kept.items()}, lambda key, place: part(*kept[key], place)
    )
    return arrays, Computed(shapes, lambda name, place: part(0, name, place))


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule with its numbers: a frozen dataclass whose fields say what is allowed (`rules.numbers.number`).

    of_the_mean: whether the rule needs no more of the updates than their mean, weighted by the sites' utterances. It
    is then called with one update, the mean, and one weight, their sum: nobody has to keep what all the sites have
    sent. The others are called with every update, in the order of the sites' names.

    max_update_norm: how far an update may be from the model that the site was sent (Euclidean norm); one that is
    farther is moved along the line to the model, before the rule sees it. None: as far as it likes.

    Raises:
        ValueError: numbers that are not allowed, each on a line.
    """

    of_the_mean: ClassVar[bool]
    max_update_norm: float | None = number(None, above=0)

    def __post_init__(self) -> None:
        if found := problems(type(self), vars(self)):
            raise ValueError("\n".join(found))

    @property
    def least_sites(self) -> int:
        """How many updates the rule needs at least."""
        return 1

    def weight(self, utterances: int) -> int:
        """What a site with so many training utterances counts."""
        return utterances

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """What the rule keeps for the next round, and the next round's model, with the names and shapes of the last."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Averaging(Rule):
    """A rule that makes something of the weighted mean.

    weight_cap: a site's utterances count up to so many; 1: every site counts the same. None: as many as they are.
    """

    of_the_mean: ClassVar[bool] = True
    weight_cap: int | None = number(None, least=1, whole=True)

    def weight(self, utterances: int) -> int:
        """What a site with so many training utterances counts."""
        return utterances if self.weight_cap is None else min(utterances, int(self.weight_cap))


def places(shape: tuple[int, ...], block: int = BLOCK) -> Iterator[slice]:
    """The blocks of a tensor of this shape.

    >>> list(places((3, 2), block=4))
    [slice(0, 4, None), slice(4, 6, None)]
    """
    count = math.prod(shape)
    for start in range(0, count, block):
        yield slice(start, min(start + block, count))


def _whole(tensors: Tensors, name: str, shape: tuple[int, ...]) -> Floats:
    parts = [np.zeros(0, np.float32), *(tensors.read(name, place) for place in places(shape))]
    whole: Floats = np.concatenate(parts).reshape(shape)
    return whole
