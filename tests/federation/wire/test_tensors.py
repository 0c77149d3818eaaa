import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openfl.databases import TensorDB
from openfl.interface.aggregation_functions import Median, WeightedAverage
from openfl.utilities import TensorKey

from federation.wire.tensors import TensorStore


def key(name: str = "w", round_number: int = 0, *tags: str) -> TensorKey:
    return TensorKey(name, "agg", round_number, False, tags)


def test_what_is_kept_is_found_whatever_the_order_of_its_tags() -> None:
    store = TensorStore()
    store.cache_tensor({key("w", 1, "b", "a"): np.ones(2)})
    assert store.get_tensor_from_cache(key("w", 1, "a", "b")) is not None
    assert store.get_tensor_from_cache(key("w", 2, "a", "b")) is None


def test_the_first_tensor_under_a_key_stays() -> None:
    store = TensorStore()
    store.cache_tensor({key(): np.zeros(1)})
    store.cache_tensor({key(): np.ones(1)})
    np.testing.assert_array_equal(store.get_tensor_from_cache(key()), [0.0])


def test_old_rounds_are_dropped() -> None:
    store = TensorStore()
    store.clean_up(1)
    store.cache_tensor({key("w", number): np.ones(1) for number in range(4)})
    store.clean_up(-1)
    assert repr(store) == "TensorStore of 4 tensors"
    store.clean_up(2)
    assert [store.get_tensor_from_cache(key("w", number)) is None for number in range(4)] == [True, True, False, False]


@given(st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=5), st.sampled_from([WeightedAverage(), Median()]))
def test_aggregates_as_the_engines_store_does(values: list[float], function: object) -> None:
    weights = {f"site{number}": 1 / len(values) for number in range(len(values))}
    tensors = {
        key("w", 0, "trained", site): np.full(3, value, np.float32) for site, value in zip(weights, values, strict=True)
    }
    ours, engines = TensorStore(), TensorDB()
    for store in (ours, engines):
        store.cache_tensor({TensorKey(*k[:4], tuple(sorted(k.tags))): v for k, v in tensors.items()})
    wanted = engines.get_aggregated_tensor(key("w", 0, "trained"), weights, function)
    np.testing.assert_array_equal(ours.get_aggregated_tensor(key("w", 0, "trained"), weights, function), wanted)


def test_a_missing_site_is_an_error() -> None:
    with pytest.raises(KeyError):
        TensorStore().get_aggregated_tensor(key("w", 0, "trained"), {"site": 1.0}, WeightedAverage())
