"""Exact means: against math.fsum and whole-number arithmetic, in any order, with updates taken out again."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.exact import DIGITS, MOST_WEIGHT, Digits, divided, mean

quick = settings(max_examples=60, deadline=None)
any_float = st.floats(width=32, allow_nan=False, allow_infinity=False)
usual = st.floats(-1, 1, width=32)
values = st.one_of(any_float, usual, st.sampled_from([0.0, -0.0, 2.0**-149, -(2.0**-149), 3.4028234663852886e38]))
weights = st.one_of(st.integers(1, 100), st.integers(1, MOST_WEIGHT))


@st.composite
def rows(draw: st.DrawFn, least: int = 1) -> tuple[list[np.ndarray], list[int]]:
    """What some sites have sent, and their weights."""
    count, length = draw(st.integers(least, 12)), draw(st.integers(1, 6))
    sent = [np.array(draw(st.lists(values, min_size=length, max_size=length)), np.float32) for _ in range(count)]
    return sent, draw(st.lists(weights, min_size=count, max_size=count))


def by_fsum(sent: list[np.ndarray], sizes: list[int]) -> np.ndarray:
    """Each sum rounded once to double precision, divided, rounded to float32."""
    sums = [
        math.fsum(float(each[i]) * size for each, size in zip(sent, sizes, strict=True)) for i in range(len(sent[0]))
    ]
    return (np.array(sums) / sum(sizes)).astype(np.float32)


@quick
@given(rows())
def test_it_is_what_fsum_gives_to_the_bit(given_rows: tuple[list[np.ndarray], list[int]]) -> None:
    sent, sizes = given_rows
    np.testing.assert_array_equal(mean(sent, sizes), by_fsum(sent, sizes))


@quick
@given(rows())
def test_it_is_within_a_unit_of_the_true_mean(given_rows: tuple[list[np.ndarray], list[int]]) -> None:
    sent, sizes = given_rows
    for place, got in enumerate(mean(sent, sizes)):
        true = sum(Fraction(float(each[place])) * size for each, size in zip(sent, sizes, strict=True)) / sum(sizes)
        assert abs(Fraction(float(got)) - true) <= Fraction(float(np.spacing(min(abs(got), np.float32(1e38)))))


@quick
@given(rows(), st.randoms())
def test_neither_order_nor_grouping_matters(given_rows: tuple[list[np.ndarray], list[int]], random: object) -> None:
    sent, sizes = given_rows
    wanted = mean(sent, sizes).tobytes()
    order = random.sample(range(len(sent)), len(sent))
    assert mean([sent[n] for n in order], [sizes[n] for n in order]).tobytes() == wanted
    digits = Digits(len(sent[0]))
    while order:
        some, order = order[: (cut := random.randint(1, 4))], order[cut:]
        digits.add([sent[n] for n in some], [sizes[n] for n in some])
        if random.random() < 0.3:
            digits.carry()
    assert divided(digits.total(), sum(sizes)).tobytes() == wanted


@quick
@given(rows(), rows(), st.randoms())
def test_what_is_taken_out_leaves_no_trace(one: tuple, other: tuple, random: object) -> None:
    length = min(len(one[0][0]), len(other[0][0]))
    stay, go = ([each[:length] for each in rows_[0]] for rows_ in (one, other))
    digits, without = Digits(length), Digits(length)
    without.add(stay, one[1])
    steps = [(stay, one[1]), (go, other[1])]
    random.shuffle(steps)
    for each, sizes in steps:
        digits.add(each, sizes)
    digits.add(go, [-size for size in other[1]])
    np.testing.assert_array_equal(digits.total(), without.total())


@quick
@given(rows())
def test_the_total_is_rounded_once(given_rows: tuple[list[np.ndarray], list[int]]) -> None:
    sent, sizes = given_rows
    digits = Digits(len(sent[0]))
    digits.add(sent, sizes)
    for place, got in enumerate(digits.total()):
        # In units of the smallest float32: a whole number, which Python rounds to the nearest, ties to even.
        whole = sum(int(Fraction(float(each[place])) * 2**149) * size for each, size in zip(sent, sizes, strict=True))
        assert got == math.ldexp(float(whole), -149)
    assert set(digits.parts) <= set(range(DIGITS))


def test_digits_do_not_overflow() -> None:
    """Ten thousand updates of the largest weight and the largest numbers, of one sign and of both."""
    largest = np.full(2, 3.4028234663852886e38, np.float32) * np.array([1, -1], np.float32)
    digits = Digits(2)
    for _ in range(10_000):
        digits._add(largest.astype(np.float64), MOST_WEIGHT, slice(None))
    whole = int(float(largest[0])) * MOST_WEIGHT * 10_000
    np.testing.assert_array_equal(digits.total(), [float(whole), -float(whole)])
    assert all(np.abs(part).max() < 2**62 for part in digits.parts.values())


def test_usual_weights_take_two_or_three_digits() -> None:
    generator = np.random.default_rng(0)
    digits = Digits(2**15)
    for _ in range(100):
        digits.add([(generator.normal(size=2**15) * 0.03).astype(np.float32)], [10_000])
    digits.carry()
    assert len(digits.parts) <= 3


@pytest.mark.parametrize("weight", [0, -1, MOST_WEIGHT + 1, 1.5, True, math.nan])
def test_weights_are_whole_numbers(weight: object) -> None:
    with pytest.raises(ValueError, match=f"allowed: whole numbers from 1 to {MOST_WEIGHT}"):
        mean([np.zeros(1, np.float32)] * 2, [1, weight])


def test_as_many_weights_as_updates() -> None:
    for sent, sizes in (([], []), ([np.zeros(1, np.float32)], [1, 2])):
        with pytest.raises(ValueError, match="needs as many of each, at least one"):
            mean(sent, sizes)
