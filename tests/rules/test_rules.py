"""Every rule on cases computed by hand, what holds of each on anything, and those that an operator installs."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rules.adaptive import FedAdagrad, FedAdam, FedYogi
from rules.contract import BLOCK, InMemory, Rule
from rules.in_memory import StateInMemory, begin, next_state
from rules.krum import Krum, squared_distances
from rules.mean import Mean
from rules.median import Median
from rules.momentum import FedAvgM
from rules.ordering import PIECE, network, ordered
from rules.registry import RULES, build, kind_of
from rules.scaffold import CONTROL, Scaffold
from rules.trimmed import TrimmedMean

HOUSE = Path(__file__).resolve().parents[2]
quick = settings(max_examples=50, deadline=None)
elements = st.floats(-1e3, 1e3, width=32)
five = st.lists(arrays.arrays(np.float32, 4, elements=elements), min_size=5, max_size=5)
weights = st.lists(st.integers(1, 1000), min_size=5, max_size=5)


def after(rule: Rule, sent: Sequence[Sequence[float]], sizes: Sequence[int] = (), before: float = 0.0) -> np.ndarray:
    """The next model, of one tensor, of what the sites have sent; all of them were sent `before`."""
    return rounds(rule, [sent], sizes, before)[-1]


def rounds(
    rule: Rule, sent: Sequence[Sequence[Sequence[float]]], sizes: Sequence[int] = (), before: float = 0.0
) -> list[np.ndarray]:
    """The models of several rounds; what is sent is what the sites add to the model that they were sent."""
    state = begin({"w": np.full(len(sent[0][0]), before, np.float32)})
    models = []
    for each in sent:
        updates = [{"w": state.model["w"] + np.array(one, np.float32) - np.float32(before)} for one in each]
        state = next_state(rule, state, updates, sizes or [1] * len(each))
        models.append(state.model["w"])
    return models


def test_momentum_by_hand() -> None:
    # v: 2, then 0.5 * 2 + 4 = 5, then 0.5 * 5 + 0 = 2.5; half of each is added
    models = rounds(FedAvgM(beta1=0.5, server_learning_rate=0.5), [[[1], [3]], [[4], [4]], [[0], [0]]])
    assert [float(model[0]) for model in models] == [1.0, 3.5, 4.75]


@pytest.mark.parametrize(
    ("rule", "seconds"),
    [
        (FedAdagrad(beta1=0.5, tau=2.0, server_learning_rate=0.1), [4 + 16, 4 + 16 + 1]),
        (FedAdam(beta1=0.5, beta2=0.75, tau=2.0, server_learning_rate=0.1), [0.75 * 4 + 0.25 * 16, 0.75 * 7 + 0.25]),
        (FedYogi(beta1=0.5, beta2=0.75, tau=2.0, server_learning_rate=0.1), [4 + 0.25 * 16, 8 - 0.25]),
    ],
    ids=["adagrad", "adam", "yogi"],
)
def test_adaptive_rules_by_hand(rule: Rule, seconds: list[float]) -> None:
    # d is 4, then -1: m is 2, then 0.5; v begins at tau squared, 4; nothing makes up for the first rounds
    models = rounds(rule, [[[3], [5]], [[-1], [-1]]])
    first = 0.1 * 2 / (math.sqrt(seconds[0]) + 2)
    second = first + 0.1 * 0.5 / (math.sqrt(seconds[1]) + 2)
    assert [float(model[0]) for model in models] == pytest.approx([first, second], rel=1e-6)


@pytest.mark.parametrize(
    ("trim", "sent", "expected"),
    [
        (0.2, [0, 1, 2, 3, 900], 2.0),
        (0.1, [0, 1, 2, 3, 900], 2.0),  # a part of a site is a site
        (0.0, [0, 1, 2, 3, 4], 2.0),
        (0.4, [0, 1, 5, 8, 9], 5.0),
        (0.49, [1, 3], 2.0),  # one at least is left, at either side of the middle
        (0.25, [7, 7.5, -3, 2], 4.5),
        (0.3, [5], 5.0),
    ],
)
def test_trimmed_mean_by_hand(trim: float, sent: list[float], expected: float) -> None:
    assert after(TrimmedMean(trim=trim), [[value] for value in sent], range(1, len(sent) + 1)) == expected


def test_krum_by_hand() -> None:
    # With one byzantine of five, the two nearest count. Sums of squares, from left to right:
    # 0: 1 + 4; 1: 1 + 1; 2: 1 + 4; 4: 4 + 9; 50: far
    sent = [[0], [1], [2], [4], [50]]
    assert after(Krum(), sent) == 1.0
    assert after(Krum(select=3), sent) == 1.0  # the mean of 0, 1 and 2
    assert after(Krum(select=4), sent) == 1.75
    assert after(Krum(select=9), sent) == 1.75  # at most n - byzantine
    assert after(Krum(select=4), sent, [1, 1, 1, 997, 1]) == 1.75  # nobody counts more than another
    with pytest.raises(ValueError, match="krum with byzantine=1 needs 5 sites; there are 4"):
        after(Krum(), sent[:4])


def test_distances_are_made_block_by_block() -> None:
    generator = np.random.default_rng(0)
    sent = [{"a": generator.normal(size=(3, BLOCK)), "b": generator.normal(size=5)} for _ in range(4)]
    updates = [InMemory({name: array.astype(np.float32) for name, array in each.items()}) for each in sent]
    far = squared_distances(updates[0], updates)
    for one in range(4):
        for other in range(4):
            expected = sum(float(((updates[one][name] - updates[other][name]) ** 2).sum()) for name in ("a", "b"))
            assert far[one, other] == pytest.approx(expected, rel=1e-5)


def test_scaffold_by_hand() -> None:
    state = begin({"w": np.array([1.0], np.float32), f"{CONTROL}w": np.array([4.0], np.float32)})
    sent = [{"w": np.array([w], np.float32), f"{CONTROL}w": np.array([c], np.float32)} for w, c in ((2, 4), (6, 12))]
    whole = next_state(Scaffold(), state, sent, [1, 1]).model
    assert (whole["w"], whole[f"{CONTROL}w"]) == (4.0, 8.0)
    half = next_state(Scaffold(server_learning_rate=0.5), state, sent, [3, 1], share=0.25).model
    assert (half["w"], half[f"{CONTROL}w"]) == (1 + 0.5 * 2, 4 + 0.25 * 2)  # the weighted means are 3 and 6


def test_a_bound_is_the_length_of_the_way_from_the_model() -> None:
    # From (1, 1): (4, 5) is 5 away and comes as far as 2.5, in its direction; (1, 3) is near enough
    sent = [[1 + 3, 1 + 4], [1, 1 + 2]]
    assert after(Mean(max_update_norm=2.5), sent, before=1.0).tolist() == [1 + 1.5 / 2, 1 + (2 + 2) / 2]
    assert after(Median(max_update_norm=5), sent, before=1.0).tolist() == [2.5, 4.0]
    control = {"w": np.zeros(1, np.float32), f"{CONTROL}w": np.zeros(1, np.float32)}
    update = {"w": np.full(1, 0.5, np.float32), f"{CONTROL}w": np.full(1, 8.0, np.float32)}
    held = next_state(Scaffold(max_update_norm=1.0), begin(control), [update], [1]).model
    assert (held["w"], held[f"{CONTROL}w"]) == (0.5, 1.0)  # each is a vector of its own


def test_a_bound_is_over_all_tensors_together() -> None:
    model = {"a": np.zeros(1, np.float32), "b": np.zeros(1, np.float32)}
    update = {"a": np.full(1, 3, np.float32), "b": np.full(1, 4, np.float32)}
    held = next_state(Mean(max_update_norm=1.0), begin(model), [update], [1]).model
    assert (held["a"], held["b"]) == (pytest.approx(0.6), pytest.approx(0.8))


def test_weights_are_capped() -> None:
    sent = [[0], [4]]
    assert after(Mean(), sent, [300, 100]) == 1.0
    assert after(Mean(weight_cap=100), sent, [300, 100]) == 2.0
    assert after(Mean(weight_cap=1), sent, [300, 100]) == 2.0
    assert after(Mean(weight_cap=200), sent, [600, 200]) == 2.0
    assert after(Mean(weight_cap=300), sent, [600, 100]) == 1.0


@quick
@given(five, weights, st.randoms(use_true_random=False), st.sampled_from(sorted(RULES)))
def test_the_order_of_the_sites_does_not_matter(
    sent: list[np.ndarray], sizes: list[int], random: object, name: str
) -> None:
    # of equal sums Krum takes the first, so no two may be equal
    sent = [each + np.float32(2e3) * np.float32(number) ** 2 for number, each in enumerate(sent)]
    rule, state = build(name), begin({"w": np.zeros(4, np.float32)})
    state = next_state(rule, state, [{"w": each} for each in sent], sizes)  # a round with nothing kept, one with
    shuffled = random.sample(list(zip(sent, sizes, strict=True)), 5)
    one = next_state(rule, state, [{"w": each} for each in sent], sizes)
    other = next_state(rule, state, [{"w": each} for each, _ in shuffled], [size for _, size in shuffled])
    assert same(one, other)


def same(one: StateInMemory, other: StateInMemory) -> bool:
    pairs = [(one.model, other.model), (one.arrays, other.arrays)]
    return one.numbers == other.numbers and all(
        a.keys() == b.keys() and all(a[name].tobytes() == b[name].tobytes() for name in a) for a, b in pairs
    )


GARBAGE = st.one_of(st.floats(1e6, 2.0**99, width=32), st.floats(-(2.0**99), -1e6, width=32))


@quick
@given(five, GARBAGE, st.integers(0, 4), st.integers(1, 10))
def test_one_site_of_five_moves_robust_rules_no_farther_than_the_others_are(
    sent: list[np.ndarray], garbage: float, where: int, scale: int
) -> None:
    honest = np.array([each for number, each in enumerate(sent) if number != where])
    sent[where] = np.full(4, garbage, np.float32)
    sizes = [1, 1, 1, 1, 1]
    sizes[where] = 10 * scale
    low, high = honest.min(axis=0), honest.max(axis=0)
    for rule in (Median(), TrimmedMean(trim=0.2), Krum(), Krum(select=2)):
        model = after(rule, sent, sizes)
        assert (low <= model).all(), rule
        assert (model <= high).all(), rule
    mean = after(Mean(), sent, sizes)
    assert ((mean < low) | (mean > high)).all()
    held = after(Mean(max_update_norm=1.0), sent, [1] * 5)
    assert np.linalg.norm(held) <= 1.0 + 1e-6


@quick
@given(five, weights)
def test_without_momentum_it_is_the_mean(sent: list[np.ndarray], sizes: list[int]) -> None:
    plain = after(Mean(), sent, sizes, before=0.5)
    for rule in (FedAvgM(beta1=0.0), Scaffold(), TrimmedMean(trim=0.0)):
        given_sizes = [1] * 5 if isinstance(rule, TrimmedMean) else sizes
        expected = after(Mean(), sent, [1] * 5, before=0.5) if isinstance(rule, TrimmedMean) else plain
        np.testing.assert_allclose(after(rule, sent, given_sizes, before=0.5), expected, rtol=1e-6, atol=1e-30)


def test_a_model_of_several_blocks_is_made_as_one_of_a_block() -> None:
    generator = np.random.default_rng(1)
    size = BLOCK + PIECE + 5
    for name in RULES:
        rule = build(name)
        sent = [generator.normal(size=size).astype(np.float32) for _ in range(5)]
        whole = state = begin({"w": np.zeros(size, np.float32)})
        part = begin({"w": np.zeros(7, np.float32)})
        for _ in range(2):
            state = next_state(rule, state, [{"w": each} for each in sent], [1, 2, 3, 4, 5])
            if name == "krum":  # which looks at all of it
                continue
            part = next_state(rule, part, [{"w": each[-7:]} for each in sent], [1, 2, 3, 4, 5])
            np.testing.assert_array_equal(state.model["w"][-7:], part.model["w"], err_msg=name)
        assert not np.array_equal(state.model["w"], whole.model["w"])


@pytest.mark.parametrize("size", range(1, 10))
def test_a_network_sorts(size: int) -> None:
    for bits in range(2**size):  # zeros and ones are enough (Knuth, volume 3, 5.3.4 Z)
        row = [bits >> place & 1 for place in range(size)]
        expected = sorted(row)
        for low, high in network(size):
            row[low], row[high] = min(row[low], row[high]), max(row[low], row[high])
        assert row == expected


def test_ordered_arrays() -> None:
    values = np.random.default_rng(2).normal(size=(33, 2 * PIECE + 7)).astype(np.float32)
    given_arrays = list(values.copy())
    for place, rows in ordered(given_arrays):
        np.testing.assert_array_equal(rows, np.sort(values[:, place], axis=0))
    np.testing.assert_array_equal(given_arrays, values)  # what was read is not changed


@pytest.mark.parametrize(
    ("name", "numbers", "texts"),
    [
        ("mean", {"weight_cap": 0}, ["rule.weight_cap is 0; allowed: a whole number, at least 1"]),
        ("mean", {"weight_cap": 1.5}, ["rule.weight_cap is 1.5"]),
        ("median", {"weight_cap": 1}, ["rule.weight_cap is no number of this rule; allowed: max_update_norm"]),
        ("median", {"max_update_norm": 0}, ["rule.max_update_norm is 0; allowed: a finite number, above 0"]),
        (
            "fedadam",
            {"beta1": 1, "tau": 0, "trim": 0.1, "server_learning_rate": math.inf},
            [
                "rule.beta1 is 1; allowed: a finite number, at least 0, below 1",
                "rule.tau is 0; allowed: a finite number, above 0",
                "rule.trim is no number of this rule; allowed: beta1, beta2, max_update_norm, server_learning_rate, t",
                "rule.server_learning_rate is inf; allowed: a finite number, above 0",
            ],
        ),
        ("trimmed_mean", {"trim": 0.5}, ["rule.trim is 0.5; allowed: a finite number, at least 0, below 0.5"]),
        ("krum", {"byzantine": -1, "select": True}, ["rule.byzantine is -1", "rule.select is True"]),
    ],
)
def test_every_number_that_is_not_allowed_is_named(name: str, numbers: dict[str, float], texts: list[str]) -> None:
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        build(name, numbers)
    lines = str(raised.value).splitlines()
    assert len(lines) == len(texts)
    assert all(line.startswith(text) for line, text in zip(lines, texts, strict=True)), lines


def test_a_rule_checks_itself_however_it_is_made() -> None:
    with pytest.raises(ValueError, match=r"rule.trim is 0.7; allowed: a finite number, at least 0, below 0.5"):
        TrimmedMean(trim=0.7)
    assert build("mean", {"weight_cap": None}) == Mean()
    assert build("krum", {"byzantine": 2.0}).least_sites == 7


def test_a_rule_is_a_small_file() -> None:
    for kind in RULES.values():
        file = Path(str(sys.modules[kind.__module__].__file__))
        assert len(file.read_text(encoding="utf-8").splitlines()) < 80, file
        assert kind.__doc__
        assert kind.__call__.__doc__


OPERATORS = {
    "house_rules.py": """
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rules.contract import Computed, Rule, State, Tensors
from rules.numbers import number


@dataclass(frozen=True)
class First(Rule):
    of_the_mean: ClassVar[bool] = False
    times: float = number(1.0, above=0)

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        block = lambda name, place: self.times * updates[0].read(name, place)
        return state, Computed(state.model.shapes, block)
""",
    "house_rules-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: house-rules\nVersion: 1.0\n",
    "house_rules-1.0.dist-info/entry_points.txt": (
        "[federation.rules]\nfirst = house_rules:First\nmean = house_rules:First\n"
        "broken = house_rules:Nothing\nnone = house_rules:Sequence\n"
    ),
}


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with rules, as pip leaves it behind."""
    for name, text in OPERATORS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.usefixtures("installed")
def test_an_operators_own_rule_is_found_by_its_name() -> None:
    rule = build("first", {"times": 2.0})
    assert after(rule, [[3], [9]]) == 6.0
    assert kind_of("mean") is Mean  # the house's own stay what they are
    with pytest.raises(ValueError, match=r"rule.times is -1; allowed: a finite number, above 0"):
        build("first", {"times": -1})
    with pytest.raises(ValueError, match=r"allowed: mean, .*scaffold, broken, first, none"):
        build("second")
    with pytest.raises(ValueError, match=r"broken is installed \(house_rules:Nothing\), but cannot be loaded: Attr"):
        build("broken")
    with pytest.raises(ValueError, match="rule none: house_rules:Sequence is no rule; it has to be a class made from"):
        build("none")
