"""The mean of a round's updates as they come, in the room of a few models however many there are.

A few updates are kept as they are; when there are more, they are added to exact sums on disk (`rules.exact`), in one
pass over all of them, and are not needed any more. The mean is the same, to the bit, as that of all of them at once.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rules.contract import Floats, Tensors, Update, places
from rules.exact import MOST_WEIGHT, Digits, check_weights, divided, mean

KEPT = 8
"""Updates that are kept before they are added up."""


@dataclass(frozen=True)
class MeanOfUpdates:
    """The mean so far, made as it is read; `unchanged` are tensors that every site has left as they were."""

    running: "RunningMean"
    unchanged: frozenset[str]

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return self.running.model.shapes

    def read(self, name: str, place: slice) -> Floats:
        """The elements of a tensor from `place.start` to `place.stop`, flat."""
        return self.running.block(name, place)


class RunningMean:
    """The weighted mean of updates of a model.

    `weight` is the sum of the weights. Not for two threads at a time.

    Args:
        model: what the sites received.
        folder: where the sums go, as files `sum-N.int64`; they need 4 to 6 times the room of the model.
    """

    def __init__(self, model: Tensors, folder: Path, kept: int = KEPT) -> None:
        self.model, self.kept = model, kept
        self.weight = 0
        self._waiting: list[tuple[Update, int]] = []
        self._as_it_was = dict.fromkeys(model.shapes, 0)  # weight of the updates that have left a tensor unchanged
        self._sums = _SumsOnDisk(folder, model.shapes)

    def add(self, update: Update, weight: int) -> list[Update]:
        """Count an update; those that are not needed any more.

        Raises:
            ValueError: the weight is no whole number from 1 to `rules.exact.MOST_WEIGHT`.
            OSError: the sums cannot be kept.
        """
        check_weights([update], [weight])
        self._waiting.append((update, weight))
        self.weight += weight
        if len(self._waiting) <= self.kept:
            return []
        self._add_up(self._waiting)
        added = [each for each, _ in self._waiting]
        self._waiting = []
        return added

    def take_out(self, update: Update, weight: int) -> None:
        """Count an update no longer; it has to be there again.

        Raises:
            OSError: the sums cannot be kept.
        """
        self.weight -= weight
        others = [each for each in self._waiting if each[0] is not update]
        if len(others) == len(self._waiting):
            self._add_up([(update, -weight)])
        self._waiting = others

    def mean(self) -> MeanOfUpdates:
        """The mean of all that counts now.

        Raises:
            ValueError: nothing does.
        """
        if self.weight < 1:
            raise ValueError("there is no update to make a mean of")
        changed = {name for name, weight in self._unchanged().items() if weight < self.weight}
        return MeanOfUpdates(self, frozenset(self.model.shapes.keys() - changed))

    def close(self) -> None:
        """Forget everything, on disk too."""
        self._waiting = []
        self._sums.remove()

    def block(self, name: str, place: slice) -> Floats:
        """The mean of a part of a tensor."""
        kept = self._unchanged()[name]
        if kept == self.weight:
            return self.model.read(name, place)
        values, weights = _changed(self._waiting, name, place)
        if kept:
            received = self.model.read(name, place)
            for portion in _portions(kept):
                values.append(received)
                weights.append(portion)
        if sum(weights) == self.weight:
            return mean(values, weights)
        digits = self._sums.load(name, place)
        if values:
            digits.add(values, weights)
        return divided(digits.total(), self.weight)

    def _unchanged(self) -> dict[str, int]:
        total = dict(self._as_it_was)
        for update, weight in self._waiting:
            for name in update.unchanged:
                total[name] += weight
        return total

    def _add_up(self, updates: Sequence[tuple[Update, int]]) -> None:
        for name, shape in self.model.shapes.items():
            if all(name in update.unchanged for update, _ in updates):
                continue
            for place in places(shape):
                digits = self._sums.load(name, place)
                digits.add(*_changed(updates, name, place))
                self._sums.store(name, place, digits)
        for update, weight in updates:
            for name in update.unchanged:
                self._as_it_was[name] += weight


class _SumsOnDisk:
    """The digits of every element of a model, a file for each digit; what was never written takes no room."""

    def __init__(self, folder: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._folder = folder
        self._starts: dict[str, int] = {}
        self._size = 0
        for name, shape in shapes.items():
            self._starts[name] = self._size
            self._size += int(np.prod(shape, dtype=np.int64))
        self._files: dict[int, int] = {}
        self._load = 1

    def load(self, name: str, place: slice) -> Digits:
        """The digits of a part of a tensor."""
        count, start = place.stop - place.start, self._starts[name] + place.start
        parts = {}
        for number, file in self._files.items():
            part = np.zeros(count, np.int64)
            os.preadv(file, [part.data.cast("B")], 8 * start)
            if part.any():
                parts[number] = part
        return Digits(count, parts, self._load)

    def store(self, name: str, place: slice, digits: Digits) -> None:
        """Keep the digits of a part of a tensor."""
        for number, part in digits.parts.items():
            if number not in self._files:
                self._open(number)
            _write(self._files[number], part.data.cast("B"), 8 * (self._starts[name] + place.start))
        self._load = max(self._load, digits.load)

    def remove(self) -> None:
        """Close the files and delete them."""
        for number, file in self._files.items():
            os.close(file)
            self._path(number).unlink(missing_ok=True)
        self._files = {}

    def _open(self, number: int) -> None:
        file = os.open(self._path(number), os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        self._files[number] = file
        os.truncate(file, 8 * self._size)

    def _path(self, number: int) -> Path:
        return self._folder / f"sum-{number}.int64"


def _changed(updates: Sequence[tuple[Update, int]], name: str, place: slice) -> tuple[list[Floats], list[int]]:
    """A part of a tensor as those have it that have changed it, and their weights."""
    changed = [(update.read(name, place), weight) for update, weight in updates if name not in update.unchanged]
    return [values for values, _ in changed], [weight for _, weight in changed]


def _portions(weight: int) -> Iterator[int]:
    """A weight in parts that one update may have."""
    while weight > 0:
        yield min(weight, MOST_WEIGHT)
        weight -= MOST_WEIGHT


def _write(file: int, content: memoryview, offset: int) -> None:
    """All of it: a disk that fills up takes a part first, then raises."""
    while content:
        written = os.pwrite(file, content, offset)
        content, offset = content[written:], offset + written
