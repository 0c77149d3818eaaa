"""The mean of a round's updates as they come: to the bit that of all of them, in the room of a few."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rules.contract import BLOCK, InMemory
from rules.exact import mean
from rules.running import KEPT, RunningMean

MODEL = InMemory(a=np.array([[1.0, -2.0, 0.5]], np.float32), b=np.array(3.0, np.float32), c=np.zeros(0, np.float32))


class Sent(InMemory):
    """An update that has left some tensors as they were."""

    def __init__(self, seed: int, scale: float, unchanged: frozenset[str], model: InMemory = MODEL) -> None:
        generator = np.random.default_rng(seed)
        super().__init__(
            {
                name: array if name in unchanged else (generator.normal(size=array.shape) * scale).astype(np.float32)
                for name, array in model.items()
            }
        )
        self.unchanged = unchanged


updates = st.builds(
    Sent,
    seed=st.integers(0, 2**32),
    scale=st.sampled_from([1.0, 1e-3, 1e30, 1e-40, 0.0]),
    unchanged=st.frozensets(st.sampled_from(sorted(MODEL))),
)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(updates, st.integers(1, 2**29 - 1)), min_size=1, max_size=12),
    st.integers(0, 5), st.data(),
)  # fmt: skip
def test_it_is_the_mean_of_all_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[Sent, int]], kept: int, data: st.DataObject
) -> None:
    running = RunningMean(MODEL, tmp_path_factory.mktemp("sums"), kept)
    counted = []
    for update, weight in sent:
        running.add(update, weight)
        counted.append((update, weight))
        if len(counted) > 1 and data.draw(st.booleans()):
            out = counted.pop(data.draw(st.integers(0, len(counted) - 1)))
            running.take_out(*out)
    result, sizes = running.mean(), [weight for _, weight in counted]
    assert result.unchanged == frozenset.intersection(*(update.unchanged for update, _ in counted))
    for name in MODEL:
        wanted = mean([update[name] for update, _ in counted], sizes) if name not in result.unchanged else MODEL[name]
        np.testing.assert_array_equal(InMemory.of(result)[name], wanted)
    running.close()


def test_it_needs_the_room_of_a_few_models(tmp_path: Path) -> None:
    size = 3 * BLOCK + 5
    model = InMemory(w=np.zeros(size, np.float32))
    running = RunningMean(model, tmp_path)
    held: list[object] = []
    most = 0
    tracemalloc.start()
    for number in range(40):
        update = Sent(number, 0.05, frozenset(), model)
        held.append(update)
        for each in running.add(update, 1000 + number):
            held = [other for other in held if other is not each]
        most = max(most, len(held))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most <= KEPT + 1
    assert sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir()) <= 7 * 4 * size
    assert peak < (KEPT + 8) * 4 * size
    whole = [Sent(number, 0.05, frozenset(), model)["w"] for number in range(40)]
    np.testing.assert_array_equal(InMemory.of(running.mean())["w"], mean(whole, [1000 + n for n in range(40)]))
    running.close()
    assert not list(tmp_path.iterdir())


def test_few_updates_need_no_sums(tmp_path: Path) -> None:
    running = RunningMean(MODEL, tmp_path)
    for number in range(KEPT):
        assert running.add(Sent(number, 1.0, frozenset()), 1) == []
    assert not list(tmp_path.iterdir())


def test_sums_that_come_to_nothing_count(tmp_path: Path) -> None:
    model = InMemory(w=np.ones(2, np.float32))
    running = RunningMean(model, tmp_path, kept=1)

    def sent(value: float) -> InMemory:
        return InMemory(w=np.full(2, value, np.float32))

    for value in (1.0, -1.0, 3.0):
        running.add(sent(value), 1)
    np.testing.assert_array_equal(InMemory.of(running.mean())["w"], 1.0)


def test_a_mean_of_nothing(tmp_path: Path) -> None:
    running = RunningMean(MODEL, tmp_path)
    with pytest.raises(ValueError, match="there is no update"):
        running.mean()
    with pytest.raises(ValueError, match="allowed: whole numbers"):
        running.add(Sent(0, 1.0, frozenset()), 0)


def test_a_disk_that_takes_nothing_is_told(tmp_path: Path) -> None:
    running = RunningMean(MODEL, tmp_path / "is not there", kept=0)
    with pytest.raises(OSError, match="is not there"):
        running.add(Sent(0, 1.0, frozenset()), 1)
