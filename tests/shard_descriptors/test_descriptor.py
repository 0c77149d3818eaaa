"""The shard descriptors tell an envoy what it holds, and refuse what cannot be before anything is trained."""

import json
from pathlib import Path

import numpy as np
import pytest

from shard_descriptors.corpus import CorpusError
from shard_descriptors.descriptor import SpeechShardDescriptor
from shard_descriptors.labels import LABELS
from shard_descriptors.partition.contract import PartitionError, assign, digest, shard_of
from shard_descriptors.partition.schemes import Quantity
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.superb_ks import SuperbKsShardDescriptor


def test_a_shard_by_any_scheme(tiny_corpus: Path) -> None:
    rows = load(tiny_corpus).utterances
    assigned = assign(rows, Quantity(2.0), 2, 5)
    site = SuperbKsShardDescriptor(
        str(tiny_corpus), shard=2, of=2, seed=5, partition={"scheme": "quantity", "alpha": 2.0}
    )
    for split in ("train", "validation", "test"):
        own = [u for u in shard_of(rows, assigned, 2) if u.split == split]
        assert list(site.get_dataset(split).utterances) == own
    told = json.loads(site.dataset_description)
    assert told["scheme"] == {"scheme": "quantity", "alpha": 2.0}
    assert told["partition"] == digest(rows, assigned)
    assert told["format"] == {"labels": list(LABELS), "sample_rate": 16_000, "num_samples": 16_000}
    assert not any(u.speaker in site.dataset_description for u in rows if u.speaker), "it names no speaker"


def test_items_are_waveforms_and_label_ids(tiny_corpus: Path) -> None:
    dataset = SuperbKsShardDescriptor(str(tiny_corpus)).get_dataset("validation")
    waveform, label = dataset[3]
    assert isinstance(waveform, np.ndarray)
    assert (waveform.shape, waveform.dtype) == ((16_000,), np.float32)
    assert LABELS[label] == dataset.utterances[3].label


def test_own_recordings_need_neither_shard_nor_seed(tiny_corpus: Path) -> None:
    site = SpeechShardDescriptor("speech_commands", str(tiny_corpus))
    told = json.loads(site.dataset_description)
    assert told["scheme"] == {"scheme": "own"}
    assert told["utterances"]["train"] == 193
    with pytest.raises(PartitionError, match="`of` is 2; leave `shard` and `of` out"):
        SpeechShardDescriptor("speech_commands", str(tiny_corpus), of=2)


@pytest.mark.parametrize("shard", [0, -1, 3])
def test_a_shard_that_does_not_exist(tiny_corpus: Path, shard: int) -> None:
    with pytest.raises(PartitionError, match=f"shard {shard} of 2 does not exist; the first is 1, the last 2"):
        SuperbKsShardDescriptor(str(tiny_corpus), shard=shard, of=2)


def test_a_shard_without_validation_is_refused(tiny_corpus: Path) -> None:
    """Of 4 validation speakers, 12 shards cannot all have one."""
    with pytest.raises(PartitionError, match="shard 12 of 12 of synthetic has no validation utterances; ask for fewer"):
        SuperbKsShardDescriptor(str(tiny_corpus), shard=12, of=12)


def test_an_unknown_setting_of_the_source(tiny_corpus: Path) -> None:
    with pytest.raises(CorpusError, match="speech_commands has no setting 'colour'"):
        SpeechShardDescriptor("speech_commands", str(tiny_corpus), colour="blue")
