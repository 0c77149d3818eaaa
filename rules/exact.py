"""Weighted means that are exact: no order, no grouping and no number of sites changes a bit of them.

Floating point sums depend on their order, so a mean that is made as the updates arrive would depend on who comes first,
and none of them could be taken out again without a trace. So the sums here are of whole numbers.

The format. Every float32 is a whole multiple of 2**-149 below 2**128. A sum of float32 values times whole weights is
kept as a whole number of 2**-154 in digits to the base 2**32: digit j, from 0 to 9, counts units of 2**(32 j - 154) in
an int64. (2**-154, and not 2**-149, since a digit then begins at 2**-26, and two hold most weights of networks.) Digits
that no value has are not there: usually two or three are, 16 or 24 bytes an element. A value's digit is below 2**32, a
weight below 2**29, and before 2**30 units of weight have come together, what is beyond 32 bits is carried to the next
digit, so nothing overflows. Nothing is rounded on the way, taking out is adding with the weight negative, and the
digits after all carries are the same whatever came first.

The mean is defined by it: the sum, rounded once to double precision, divided by the sum of the weights, rounded to
float32; a zero is positive. That is what `math.fsum` gives, and at most one unit in the last place of float32 from the
true mean. Two values need no digits, since one rounded sum of two exact products is rounded once. Of a few more, double
precision holds most sums exactly, and it is known which; only the others go the long way.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from rules.contract import Floats

Doubles = npt.NDArray[np.float64]

DIGITS = 10
MOST_WEIGHT = 2**29 - 1
"""The largest weight of one update: some half a billion utterances."""

_BITS, _LOWEST = 32, -154
_MASK = np.int64(2**_BITS - 1)
_CACHED = 2**14 - 2**10
"""Doubles of less than 128 KiB."""
_ROOM = 2**30
"""Units of weight that are added to the digits between two carries."""


class Digits:
    """The exact sum of weighted float32 values, element by element.

    `parts` are its digits by their number, those that are there; `load` the units of weight added since the last carry.
    """

    def __init__(self, size: int, parts: dict[int, npt.NDArray[np.int64]] | None = None, load: int = 0) -> None:
        self.size, self.load = size, load
        self.parts = {} if parts is None else parts

    def add(self, values: Sequence[Floats], weights: Sequence[int]) -> None:
        """Add arrays times their weights; the negative weight takes out what was added with the positive one.

        Raises:
            ValueError: values that are not finite.
        """
        total, inexact = _sum(values, weights)
        self._add(total, 1, slice(None))
        if len(inexact):
            for each, weight in zip(values, weights, strict=True):
                self._add(each[inexact].astype(np.float64), weight, inexact)

    def carry(self) -> None:
        """Leave in every digit what 32 bits hold, and in the highest one the sign."""
        self.load = 1
        for number in range(min(self.parts, default=DIGITS), DIGITS - 1):
            part = self._part(number)
            if number == max(self.parts) and np.abs(part).max(initial=0) <= _MASK:
                return
            self._part(number + 1)[:] += part >> _BITS
            part &= _MASK

    def total(self) -> Doubles:
        """The sum, rounded once."""
        self.carry()
        if not self.parts:
            return np.zeros(self.size)
        lowest, highest = min(self.parts), max(self.parts)
        total = self.parts[highest].astype(np.float64)
        rounded = np.zeros(self.size, bool)  # before the last digit that is not 0
        again = np.zeros(self.size, bool)
        for number in range(highest - 1, lowest - 1, -1):
            total *= 2.0**_BITS
            if number not in self.parts:
                continue
            digit = self.parts[number].astype(np.float64)
            again |= rounded & (digit != 0)
            sum_ = total + digit
            rounded |= digit - (sum_ - total) != 0
            total = sum_
        total *= _unit(lowest)
        for place in np.flatnonzero(again):
            total[place] = math.ldexp(float(self._whole(int(place))), _LOWEST)
        return total

    def _add(self, values: Doubles, weight: int, where: slice | npt.NDArray[np.intp]) -> None:
        """Add whole multiples of the lowest unit times a weight; changes the values."""
        if self.load + abs(weight) > _ROOM:
            self.carry()
        self.load += abs(weight)
        largest = float(np.abs(values).max(initial=0.0))
        number = min(DIGITS - 1, (math.frexp(largest)[1] - 1 - _LOWEST) // _BITS)
        while values.any():
            values /= _unit(number)  # a power of two: exact, as all of this
            digit = np.trunc(values)
            self._part(number)[where] += digit.astype(np.int64) * weight
            values -= digit
            values *= _unit(number)
            number -= 1

    def _part(self, number: int) -> npt.NDArray[np.int64]:
        if number not in self.parts:
            self.parts[number] = np.zeros(self.size, np.int64)
        return self.parts[number]

    def _whole(self, place: int) -> int:
        """The sum of one element in units of 2**-154."""
        return sum(int(part[place]) << (_BITS * number) for number, part in self.parts.items())


def mean(values: Sequence[Floats], weights: Sequence[int]) -> Floats:
    """The mean of arrays of one shape, weighted; as exact as above.

    Raises:
        ValueError: values that are not finite; no values; not as many weights; of two and more values, a weight that is
            no whole number from 1 to `MOST_WEIGHT`.
    """
    check_weights(values, weights, MOST_WEIGHT if len(values) > 1 else math.inf)
    if len(values) == 1:
        return values[0] + np.float32(0.0)
    flat = [each.reshape(-1) for each in values]
    total = _sum_of_two(flat, weights) if len(flat) == 2 else _sum_of_many(flat, weights)
    _check_finite(total)
    return divided(total, sum(map(int, weights))).reshape(values[0].shape)


def divided(total: Doubles, weight: int) -> Floats:
    """The mean of a sum of this weight."""
    result: Floats = (total / float(weight)).astype(np.float32)
    result += np.float32(0.0)  # makes a negative zero positive
    return result


def check_weights(values: Sequence[object], weights: Sequence[int], most: float = MOST_WEIGHT) -> None:
    """Refuse weights that are none.

    Raises:
        ValueError: as `mean` says.
    """
    if not values or len(values) != len(weights):
        raise ValueError(f"{len(values)} updates and {len(weights)} weights; needs as many of each, at least one")
    for weight in weights:
        if isinstance(weight, bool) or not isinstance(weight, int | np.integer) or not 1 <= weight <= most:
            raise ValueError(f"a weight is {weight!r:.60}; allowed: whole numbers from 1 to {most}")


def _check_finite(values: Doubles | float) -> None:
    if not np.isfinite(values).all():
        raise ValueError("there are values that are not finite numbers")


def _sum_of_two(values: Sequence[Floats], weights: Sequence[int]) -> Doubles:
    """The weighted sum, rounded once: the products are exact, of 24 and 29 bits."""
    total = np.empty(len(values[0]))
    for place in _pieces(len(total), 2):
        np.multiply(values[0][place], float(weights[0]), out=total[place], dtype=np.float64)
        total[place] += np.multiply(values[1][place], float(weights[1]), dtype=np.float64)
    return total


def _sum_of_many(values: Sequence[Floats], weights: Sequence[int]) -> Doubles:
    """The weighted sum, rounded once."""
    total, inexact = _sum(values, weights)
    if len(inexact):
        digits = Digits(len(inexact))
        digits.add([each[inexact] for each in values], weights)
        total[inexact] = digits.total()
    return total


def _sum(values: Sequence[Floats], weights: Sequence[int]) -> tuple[Doubles, npt.NDArray[np.intp]]:
    """The weighted sum where double precision holds it exactly, and the places where it may not; there it is 0.

    In units of 2**-53 of what a sum can be at most, values that are whole numbers add up without rounding.
    """
    total = np.empty(len(values[0]))
    inexact = []
    for place in _pieces(len(total), len(values)):
        stacked = np.array([each[place] for each in values], np.float64)
        most = max(stacked.max(), -stacked.min()) * sum(abs(int(weight)) for weight in weights)
        _check_finite(most)
        unit = 2.0 ** max(math.frexp(most)[1] - 53, _LOWEST)
        stacked /= unit
        odd = np.flatnonzero((stacked != np.rint(stacked)).any(axis=0))
        stacked[:, odd] = 0.0
        np.einsum("i,ij->j", np.array(weights, np.float64) * unit, stacked, out=total[place])
        inexact.append(odd + place.start)
    return total, np.concatenate(inexact) if inexact else np.zeros(0, np.intp)


def _pieces(size: int, arrays: int) -> Iterator[slice]:
    """Parts of so many arrays of this size, together small enough to stay in a core's cache.

    Memory that is asked for in larger pieces comes fresh from the system each time, which costs more than the sums.
    """
    piece = max(1, _CACHED // arrays)
    for start in range(0, size, piece):
        yield slice(start, min(start + piece, size))


def _unit(number: int) -> float:
    """What a digit counts."""
    return 2.0 ** (_BITS * number + _LOWEST)
