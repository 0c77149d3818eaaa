import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from small_network import quick

from lab.aggregation import weighted_mean

values = st.floats(-1e6, 1e6, width=32)
models = arrays.arrays(np.float32, (2, 3), elements=values).map(lambda tensor: {"a": tensor, "b": tensor[0] * 2})
sites = st.lists(st.tuples(models, st.integers(1, 10_000)), min_size=1, max_size=5)


def model(value: float) -> dict[str, np.ndarray]:
    return {"kernel": np.full((2, 3), value, np.float32), "bias": np.full(3, value, np.float32)}


@pytest.mark.parametrize(
    ("levels", "sizes", "expected"),
    [
        ((0, 0), (1, 1), 0),
        ((1, 1), (5, 9), 1),
        ((0, 2), (1, 1), 1),
        ((0, 1, 2), (1, 1, 1), 1),
        ((0, 1), (3, 1), 0.25),
        ((1, 2), (100, 300), 1.75),
        ((2,), (7,), 2),
        ((1, 2), (0, 4), 2),
    ],
)
def test_zeros_ones_and_twos(levels: tuple[int, ...], sizes: tuple[int, ...], expected: float) -> None:
    mean = weighted_mean([model(level) for level in levels], sizes)
    assert mean.keys() == model(0).keys()
    for name, tensor in mean.items():
        assert tensor.dtype == np.float32
        np.testing.assert_array_equal(tensor, model(expected)[name])


@quick
@given(models, st.lists(st.integers(1, 10_000), min_size=1, max_size=5))
def test_equal_models_give_that_model(same: dict[str, np.ndarray], sizes: list[int]) -> None:
    mean = weighted_mean([same] * len(sizes), sizes)
    for name, tensor in same.items():
        np.testing.assert_array_equal(mean[name], tensor)


@quick
@given(sites)
def test_the_mean_lies_between_the_models(given_sites: list[tuple[dict[str, np.ndarray], int]]) -> None:
    mean = weighted_mean([m for m, _ in given_sites], [size for _, size in given_sites])
    for name, tensor in mean.items():
        stacked = np.stack([m[name] for m, _ in given_sites])
        assert (tensor >= stacked.min(axis=0)).all()
        assert (tensor <= stacked.max(axis=0)).all()


@quick
@given(sites, st.randoms(), st.floats(0.01, 100))
def test_neither_order_nor_unit_of_the_sizes_matters(
    given_sites: list[tuple[dict[str, np.ndarray], int]], random: object, unit: float
) -> None:
    mean = weighted_mean([m for m, _ in given_sites], [size for _, size in given_sites])
    shuffled = random.sample(given_sites, len(given_sites))
    again = weighted_mean([m for m, _ in shuffled], [size * unit for _, size in shuffled])
    for name, tensor in mean.items():
        scale = max(float(np.abs(m[name]).max()) for m, _ in given_sites)
        np.testing.assert_allclose(again[name], tensor, rtol=1e-6, atol=1e-6 * scale)


def test_agrees_with_openfl() -> None:
    from openfl.interface.aggregation_functions import WeightedAverage
    from openfl.utilities import LocalTensor

    generator = np.random.default_rng(0)
    tensors = [generator.normal(size=(4, 5)).astype(np.float32) for _ in range(3)]
    sizes = (120, 77, 301)
    sent = [
        LocalTensor(col_name=f"site {size}", tensor=tensor, weight=size / sum(sizes))
        for tensor, size in zip(tensors, sizes, strict=True)
    ]
    theirs = WeightedAverage().call(sent, None, "kernel", 0, ("trained",))
    ours = weighted_mean([{"kernel": tensor} for tensor in tensors], sizes)["kernel"]
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("given_models", "sizes", "text"),
    [
        ([], [], "0 models"),
        ([model(0), model(1)], [1], "2 models and 1 sizes"),
        ([model(0), {"kernel": np.zeros(3, np.float32)}], [1, 1], "different names"),
    ],
)
def test_bad_input(given_models: list[dict[str, np.ndarray]], sizes: list[int], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        weighted_mean(given_models, sizes)
