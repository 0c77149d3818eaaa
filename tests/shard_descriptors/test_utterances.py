"""Rows are values: comparable, hashable, and named alike wherever the corpus lies."""

import dataclasses
from pathlib import Path

import pytest

from shard_descriptors.utterances import Utterance, canonical_order


def test_name_is_the_same_everywhere() -> None:
    here = Utterance(Path("/a/yes/1_nohash_0.wav"), "yes", "yes", "1", "train")
    there = Utterance("/b/c/yes/1_nohash_0.wav", "yes", "yes", "1", "train")
    assert here.name == there.name == "yes/1_nohash_0.wav"
    assert canonical_order(here) == canonical_order(there)


def test_frozen_and_hashable() -> None:
    row = Utterance("a.wav", "yes", "yes", "1", "train")
    assert row in {row}
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.label = "no"  # type: ignore[misc]
