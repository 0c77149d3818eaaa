"""Rows are values: comparable, hashable, and named alike wherever the corpus lies."""

import dataclasses

import pytest

from shard_descriptors.utterances import Utterance, canonical_order

ROW = Utterance("yes/1.wav", "/a/yes/1.wav", "yes", "1", "train", columns=(("accent", "scottish"),))


def test_order_is_the_same_everywhere() -> None:
    elsewhere = dataclasses.replace(ROW, path="/b/c/yes/1.wav")
    assert canonical_order(ROW) == canonical_order(elsewhere)


def test_frozen_and_hashable() -> None:
    assert ROW in {ROW}
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROW.label = "no"  # type: ignore[misc]


def test_columns() -> None:
    assert [ROW.column(name) for name in ("label", "speaker", "accent", "age")] == ["yes", "1", "scottish", None]
