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
    """

    model: Tensors
    arrays: Tensors = field(default_factory=InMemory)
    numbers: Mapping[str, float] = field(default_factory=dict)


class Rule(Protocol):
    """One rule with its numbers; a frozen dataclass that checks itself.

    of_the_mean: whether the rule needs no more of the updates than their mean, weighted by the sites' utterances. It
    is then called with one update, the mean, and one weight, their sum: nobody has to keep what all the sites have
    sent. The others are called with every update, in the order of the sites' names.
    """

    of_the_mean: ClassVar[bool]

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """What the rule keeps for the next round, and the next round's model, with the names and shapes of the last."""


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
