"""Clips joined are the clips of one set, and training on them makes nothing again that was made for a part."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_network import plain, small_recipe

from kws.config import ModelRecipe, Training
from kws.model import build_model, trained_weights
from kws.training import build_optimizer, evaluate, train_round
from lab.joined import Joined, heard_by, shared_out
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.sources.speech_commands import load


@pytest.fixture(scope="module")
def parts(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[ClipSet]:
    """Three sets of other sizes, one of them with a long recording."""
    cache = tmp_path_factory.mktemp("cache")
    rows = [row for row in load(tiny_corpus, silence="files").utterances if row.split == "train"]
    return [ClipSet(own, cache=cache) for own in (rows[:20], rows[20:27], [*rows[-8:], *rows[40:46]])]


@pytest.fixture(scope="module")
def whole(parts: list[ClipSet]) -> ClipSet:
    return ClipSet([row for part in parts for row in part.utterances], cache=parts[0].cache)


def test_they_are_one_set(parts: list[ClipSet], whole: ClipSet) -> None:
    joined = Joined(parts)
    assert len(joined) == len(whole) == 41
    assert joined.format == whole.format
    np.testing.assert_array_equal(joined.labels, whole.labels)
    np.testing.assert_array_equal(joined.keys, whole.keys)
    generator = np.random.default_rng(0)
    numbers = generator.integers(41, size=60)
    places = generator.random(60)
    np.testing.assert_array_equal(joined.read(numbers), whole.read(numbers))
    np.testing.assert_array_equal(joined.read(numbers, places), whole.read(numbers, places))
    assert any((u.num_samples or 0) > 16_000 for u in whole.utterances)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_each_number_goes_to_its_part_once(sizes: list[int], data: st.DataObject) -> None:
    class Part:
        def __init__(self, size: int) -> None:
            self.labels = np.zeros(size)

    parts = [Part(size) for size in sizes]
    numbers = np.array(data.draw(st.lists(st.integers(0, sum(sizes) - 1), max_size=12)), dtype=np.int64)
    all_of = [(index, number) for index, size in enumerate(sizes) for number in range(size)]
    found: dict[int, tuple[int, int]] = {}
    for part, own, where in shared_out(parts, numbers):  # type: ignore[type-var]
        found |= {int(at): (parts.index(part), int(number)) for at, number in zip(where, own, strict=True)}
    assert found == {at: all_of[number] for at, number in enumerate(numbers)}


@pytest.mark.parametrize("cache", ["none", "probe", "conv"])
def test_they_train_as_one_set(parts: list[ClipSet], whole: ClipSet, tmp_path: Path, cache: str) -> None:
    trained = {"none": "all", "probe": "head", "conv": "all_but_feature_encoder"}[cache]
    recipe = ModelRecipe(small_recipe(tmp_path).name, trained=trained)
    training: Training = plain(cache=cache, optimizer="sgd")
    outcomes, files = [], []
    for clips in (*parts, Joined(parts), whole):
        model = build_model(recipe, 0, SUPERB_KS)
        heard = heard_by(model, clips, training, changed=True)
        optimizer = build_optimizer(model, training)
        losses = [train_round(model, optimizer, heard, training, done)["loss"] for done in range(2)]
        losses.append(evaluate(model, heard_by(model, clips, training), training).loss)
        outcomes.append((losses, trained_weights(model)))
        files.append(len([*parts[0].folder.glob("*.float16"), *parts[0].folder.glob("*.int16")]))
    assert outcomes[-2][0] == pytest.approx(outcomes[-1][0], rel=1e-5)
    for name, weights in outcomes[-2][1].items():
        np.testing.assert_allclose(weights, outcomes[-1][1][name], rtol=1e-4, atol=1e-6)
    assert files[-2] == files[-3]  # nothing was made again
