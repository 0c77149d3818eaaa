"""All that decides a result is in its record, and what is different here is said in words."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import write
from small_network import plain, small_recipe

from kws.config import ExperimentConfig
from lab import provenance as module
from lab.asked import Asked, seeded
from lab.provenance import code, data_digest, differences, model_digests, provenance
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.sources.speech_commands import load

Record = dict[str, Any]


@pytest.fixture(scope="module")
def record(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Record:
    """Of a run of a small network on the tiny corpus."""
    config = ExperimentConfig(small_recipe(tmp_path_factory.mktemp("small")), plain())
    made = provenance(config, Asked(seeds=[1, 2]), {"envoy": {"shard": 1}}, SUPERB_KS, load(tiny_corpus))
    return dict(json.loads(json.dumps(made)))


def test_a_record_has_all_that_decides(record: Record) -> None:
    assert ExperimentConfig.from_dict(record["config"]).training.rounds == 2
    assert record["asked"]["seeds"] == [1, 2]
    assert record["shards"] == {"envoy": {"shard": 1}}
    assert {"torch", "soundfile", "soxr", "flwr-datasets", "libsndfile"} <= record["versions"].keys()
    assert {"cores", "threads", "instructions", "gpu"} <= record["host"].keys()
    assert len(record["data"]["digest"]) == len(record["model"]["trained"]) == 64
    assert record["code"].keys() == {"commit", "changes"}


def test_what_is_the_same_is_not_told(record: Record) -> None:
    assert differences(record, copy.deepcopy(record)) == []
    less = {name: value for name, value in record.items() if name != "data"}
    assert differences(less, record) == differences(record, less) == [], "what nobody has told is not compared"
    elsewhere = record | {"host": record["host"] | {"name": "elsewhere"}}
    assert differences(elsewhere, record) == [], "a machine's name decides nothing"


@pytest.mark.parametrize(
    ("group", "name", "then", "words"),
    [
        ("code", "commit", "0123456789abcdef", "the code is that of another commit (0123456789ab, here "),
        ("data", "digest", "f" * 64, "the recordings are others (ffffffffffff, here "),
        ("model", "trained", "f" * 64, "the model begins with other weights"),
        ("model", "frozen", "f" * 64, "what is frozen of the model is different"),
        ("versions", "soundfile", "0.1", "versions soundfile is 0."),
        ("versions", "a-decoder", "7", "a-decoder is not here; it was 7"),
        ("host", "cores", 1000, "; it was 1000"),
    ],
)
def test_what_is_different_is_told(record: Record, group: str, name: str, then: object, words: str) -> None:
    if record["code"]["commit"] is None and group == "code":
        pytest.skip("this is no checkout")
    before = copy.deepcopy(record)
    before[group][name] = then
    (told,) = differences(before, record)
    assert words in told


def test_local_changes_are_told_wherever_they_are(record: Record) -> None:
    clean, dirty, other = (record | {"code": {"commit": "a", "changes": each}} for each in (None, "1" * 64, "2" * 64))
    assert differences(clean, dirty) == ["the code has local changes here"]
    assert differences(dirty, clean) == ["the code had local changes then"]
    assert differences(dirty, other) == ["the code has other local changes (111111111111, here 222222222222)"]


def test_the_digest_of_the_code_follows_what_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in module.PACKAGES:
        (tmp_path / folder).mkdir()
    (tmp_path / "rules" / "mean.py").write_text("1")
    monkeypatch.setattr(module, "HOUSE", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    first = code()
    assert first["commit"] is None, "there is no git here"
    assert code() == first
    (tmp_path / "rules" / "mean.py").write_text("2")
    assert code()["changes"] != first["changes"]

    for command in (
        ("init", "-q"),
        ("add", "."),
        ("-c", "user.name=a", "-c", "user.email=a@b.c", "commit", "-qm", "x"),
    ):
        module._git(*command)
    clean = code()
    assert clean["commit"] is not None
    assert clean["changes"] is None
    (tmp_path / "notes.md").write_text("what nobody runs")
    assert code() == clean
    (tmp_path / "rules" / "mean.py").write_text("3")
    changed = code()
    (tmp_path / "rules" / "median.py").write_text("new")
    assert len({clean["changes"], changed["changes"], code()["changes"]}) == 3


def test_the_digest_of_a_model_is_that_of_its_weights(record: Record) -> None:
    config = ExperimentConfig.from_dict(record["config"])
    assert model_digests(config, SUPERB_KS) == record["model"]
    head = seeded(replace(config, model=replace(config.model, head="weighted_sum", trained="head")), 1)
    other = model_digests(seeded(head, 2), SUPERB_KS)
    assert other["trained"] != model_digests(head, SUPERB_KS)["trained"], "the head is drawn from the seed"
    assert other["frozen"] == model_digests(head, SUPERB_KS)["frozen"]


def test_the_digest_of_the_data_is_that_of_what_is_heard(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = load(tiny_corpus)
    digest = data_digest(corpus)
    assert data_digest(load(tiny_corpus)) == digest
    first, *others = corpus.utterances
    assert (
        data_digest(
            replace(corpus, utterances=(replace(first, label="no" if first.label == "yes" else "yes"), *others))
        )
        != digest
    )
    noise = write(tmp_path / "x.wav", np.random.default_rng(0).integers(-9, 9, 16_000).astype(np.int16))
    assert data_digest(replace(corpus, utterances=(replace(first, path=str(noise)), *others))) != digest
