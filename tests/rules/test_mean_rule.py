"""The rules on zeros, ones and twos, and on anything; the registry; a round in memory."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rules.contract import BLOCK, Computed, InMemory, Rule, State, Tensors
from rules.in_memory import begin, next_state
from rules.mean import Mean
from rules.median import Median
from rules.registry import RULES, build

Models = dict[str, np.ndarray]
quick = settings(max_examples=50, deadline=None)
values = st.floats(-1e6, 1e6, width=32)
models = arrays.arrays(np.float32, (2, 3), elements=values).map(lambda tensor: {"a": tensor, "b": tensor[0] * 2})
sites = st.lists(st.tuples(models, st.integers(1, 10_000)), min_size=1, max_size=5)
BETWEEN = ("mean", "median", "scaffold", "trimmed_mean")
"""Rules whose model lies between those of the sites, of any number of sites."""


def model(value: float) -> Models:
    return {"kernel": np.full((2, 3), value, np.float32), "bias": np.full(3, value, np.float32)}


def after(rule: Rule, sent: Sequence[Models], sizes: Sequence[int]) -> Models:
    return next_state(rule, begin(sent[0]), sent, sizes).model


@pytest.mark.parametrize(
    ("levels", "sizes", "mean", "median"),
    [
        ((0, 0), (1, 1), 0, 0),
        ((1, 1), (5, 9), 1, 1),
        ((0, 2), (1, 1), 1, 1),
        ((0, 1, 2), (1, 1, 1), 1, 1),
        ((0, 1), (3, 1), 0.25, 0.5),
        ((1, 2), (100, 300), 1.75, 1.5),
        ((2,), (7,), 2, 2),
        ((1, 2, 9), (1, 1, 2), 5.25, 2),
    ],
)
def test_zeros_ones_and_twos(levels: tuple[int, ...], sizes: tuple[int, ...], mean: float, median: float) -> None:
    for rule, expected in ((Mean(), mean), (Median(), median)):
        result = after(rule, [model(level) for level in levels], sizes)
        assert result.keys() == model(0).keys()
        for name, tensor in result.items():
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, model(expected)[name])


@quick
@given(models, st.lists(st.integers(1, 10_000), min_size=5, max_size=6), st.sampled_from(sorted(RULES)))
def test_equal_models_give_that_model(same: Models, sizes: list[int], rule: str) -> None:
    result = after(build(rule), [same] * len(sizes), sizes)
    for name, tensor in same.items():
        np.testing.assert_array_equal(result[name], tensor)


@quick
@given(sites, st.sampled_from(BETWEEN))
def test_the_result_lies_between_the_models(given_sites: list[tuple[Models, int]], rule: str) -> None:
    result = after(build(rule), [m for m, _ in given_sites], [size for _, size in given_sites])
    for name, tensor in result.items():
        stacked = np.stack([m[name] for m, _ in given_sites])
        assert (tensor >= stacked.min(axis=0)).all()
        assert (tensor <= stacked.max(axis=0)).all()


@quick
@given(sites, st.randoms(), st.integers(1, 1000), st.sampled_from(BETWEEN))
def test_neither_order_nor_unit_of_the_sizes_matters(
    given_sites: list[tuple[Models, int]], random: object, unit: int, rule: str
) -> None:
    result = after(build(rule), [m for m, _ in given_sites], [size for _, size in given_sites])
    shuffled = random.sample(given_sites, len(given_sites))
    again = after(build(rule), [m for m, _ in shuffled], [size * unit for _, size in shuffled])
    for name, tensor in result.items():
        assert again[name].tobytes() == tensor.tobytes()


def test_agrees_with_openfl() -> None:
    from openfl.interface.aggregation_functions import Median as EngineMedian
    from openfl.interface.aggregation_functions import WeightedAverage
    from openfl.utilities import LocalTensor

    generator = np.random.default_rng(0)
    tensors = [generator.normal(size=(4, 5)).astype(np.float32) for _ in range(3)]
    sizes = (120, 77, 301)
    sent = [
        LocalTensor(col_name=f"site {size}", tensor=tensor, weight=size / sum(sizes))
        for tensor, size in zip(tensors, sizes, strict=True)
    ]
    for rule, function in ((Mean(), WeightedAverage()), (Median(), EngineMedian())):
        theirs = function.call(sent, None, "kernel", 0, ("trained",))
        ours = after(rule, [{"kernel": tensor} for tensor in tensors], sizes)["kernel"]
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("given_models", "sizes", "text"),
    [
        ([], [], "0 updates and 0 weights"),
        ([model(0), model(1)], [1], "2 updates and 1 weights"),
        ([model(0), {"kernel": np.zeros(3, np.float32)}], [1, 1], "other names or shapes"),
        ([model(0), model(1)], [1, 0], "a weight is 0; allowed: whole numbers from 1"),
        ([model(0), model(np.nan)], [1, 1], "not finite"),
    ],
)
def test_bad_input(given_models: list[Models], sizes: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        next_state(Mean(), begin(model(0)), given_models, sizes)


@dataclass(frozen=True)
class Momentum(Rule):
    """FedAvgM (Hsu et al. 2019) in a few lines: what an algorithm of the next kind looks like."""

    of_the_mean: ClassVar[bool] = True
    beta: float = 0.5

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        (mean,) = updates
        known = state.arrays.shapes

        def velocity(name: str, place: slice) -> np.ndarray:
            before = state.arrays.read(name, place) if name in known else np.float32(0)
            return np.float32(self.beta) * before + (mean.read(name, place) - state.model.read(name, place))

        arrays = Computed(state.model.shapes, velocity)
        rounds = state.numbers.get("rounds", 0) + 1
        moved = Computed(
            state.model.shapes, lambda name, place: state.model.read(name, place) + arrays.read(name, place)
        )
        return State(state.model, arrays, {"rounds": rounds}), moved


def test_a_rule_finds_its_state_again() -> None:
    state = begin({"w": np.zeros(BLOCK + 3, np.float32)})
    heights = []
    for _ in range(4):
        trained = [{"w": state.model["w"] + step} for step in (np.float32(1), np.float32(3))]
        state = next_state(Momentum(), state, trained, [1, 1])
        assert (state.model["w"] == state.model["w"][0]).all()
        heights.append(float(state.model["w"][-1]))
    assert heights == [2.0, 5.0, 8.5, 12.25]
    assert state.numbers == {"rounds": 4}


def test_a_rule_may_look_twice_at_every_update() -> None:
    class Nearest(Rule):
        """The update that is nearest to the others (a part of Krum): distances first, then the model."""

        of_the_mean: ClassVar[bool] = False

        def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
            whole = [InMemory.of(update)["w"] for update in updates]
            far = [sum(float(np.abs(one - other).sum()) for other in whole) for one in whole]
            return state, updates[int(np.argmin(far))]

    sent = [{"w": np.full(3, value, np.float32)} for value in (1.0, 1.5, 900.0)]
    np.testing.assert_array_equal(after(Nearest(), sent, [1, 1, 1])["w"], 1.5)


def test_rules_by_name() -> None:
    assert build("mean") == Mean()
    assert build("median", {}) == Median()
    for rule in RULES.values():
        assert isinstance(rule.of_the_mean, bool)


@pytest.mark.parametrize(
    ("name", "numbers", "text"),
    [
        ("average", {}, "rule.name is 'average'; allowed: mean, fedavgm, .*scaffold"),
        ("", {}, "allowed: mean, fedavgm"),
        ("mean", {"momentum": 0.9}, "rule.momentum is no number of this rule; allowed: max_update_norm, weight_cap"),
        (
            "median",
            {"a": 1, "b": "x"},
            r"(?s)rule\.a is no number.*rule\.b is no number of this rule; allowed: max_update_norm",
        ),
    ],
)
def test_rules_that_cannot_be(name: str, numbers: dict[str, float], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        build(name, numbers)
