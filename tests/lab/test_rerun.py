"""A run is repeated from its record; the whole of it is in tests/end_to_end/test_run_again.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from federation.settings import load_envoy
from kws.config import ConfigError, ExperimentConfig
from lab.asked import Asked
from lab.rerun import RecordError, envoys, read, repeat
from shard_descriptors.partition.contract import assign, digest
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.speech_commands import load

SCHEME = {"scheme": "dirichlet", "alpha": 0.5, "min_utterances": 2}


@pytest.fixture
def record(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Of three sites that share the tiny corpus out by label."""
    monkeypatch.delenv("DATA", raising=False)
    rows = load(tiny_corpus).utterances
    name = digest(rows, assign(rows, scheme_of(SCHEME), 3, 7))
    shards = {
        site: {
            "corpus": "synthetic", "settings": {"silence": "balanced"}, "scheme": SCHEME, "shard": number, "of": 3,
            "seed": 7, "partition": name,
            "format": {"labels": ["yes", "no"], "sample_rate": 16_000, "num_samples": 16_000},
        }
        for number, site in enumerate(("a", "b", "c"), start=1)
    }  # fmt: skip
    asked = Asked(changes=["training.rounds=5"], seeds=[4], baselines=["pooled"]).to_dict()
    return {
        "config": ExperimentConfig().to_dict(),
        "asked": asked,
        "shards": shards,
        "data": {"path": str(tiny_corpus)},
    }


def written(folder: Path, record: Mapping[str, Any]) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(record))
    return path


def test_every_site_of_the_record_is_started_with_its_shard(record: dict[str, Any], tmp_path: Path) -> None:
    commands = envoys(record["shards"], tmp_path)
    assert list(commands) == ["a", "b", "c"]
    for number, (site, command) in enumerate(commands.items(), start=1):
        settings = load_envoy(Path(command[-1]))
        assert settings.name == site
        expected = {"shard": number, "of": 3, "seed": 7, "partition": SCHEME, "silence": "balanced"}
        assert dict(settings.descriptor_params) == expected


def test_what_is_repeated_is_the_experiment_as_it_was(record: dict[str, Any], tmp_path: Path) -> None:
    path = written(tmp_path, record)
    again = repeat(path)
    assert again.asked == Asked(baselines=["pooled"], seeds=[4], recorded=str(path))
    assert again.asked.experiment(again.shards).training.seed == 4
    assert again.data_path == record["data"]["path"]
    assert list(again.sites(tmp_path)) == ["a", "b", "c"]
    assert again.different == []
    repeated = repeat(written(tmp_path, record | {"versions": {"torch": "0.1"}}))
    assert repeated.different[0].startswith("versions torch is ")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shards": {}}, "does not say how the recordings were shared out"),
        ({"shards": {"a": {"shard": 1}}}, "does not say how"),
        ({"config": 3}, "does not say how"),
        ({"asked": None}, "does not say how"),
        ({"asked": [1]}, "does not say how"),
        ({"data": 5}, "does not say how"),
        ({"shards": 3}, "is no record of a run"),
    ],
)
def test_what_is_no_record_is_refused(
    record: dict[str, Any], tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    with pytest.raises(RecordError, match=words):
        read(written(tmp_path, record | change))


@pytest.mark.parametrize(
    "change", [{"settings": 5}, {"scheme": "iid"}, {"of": "two"}, {"seed": None}, {"format": None}, {"shard": [1]}]
)
def test_a_shard_that_says_nonsense_is_refused(record: dict[str, Any], tmp_path: Path, change: dict[str, Any]) -> None:
    record["shards"]["b"] |= change
    with pytest.raises(RecordError, match="does not say how the recordings were shared out"):
        read(written(tmp_path, record))


def test_a_record_from_elsewhere_writes_no_file_elsewhere(record: dict[str, Any], tmp_path: Path) -> None:
    record["shards"]["../../elsewhere"] = record["shards"].pop("b")
    with pytest.raises(RecordError, match=r"not names of sites: '\.\./\.\./elsewhere'"):
        read(written(tmp_path, record))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"give runs/NAME/config\.json"):
        read(tmp_path / "missing.json")
    (tmp_path / "x.json").write_text("[1")
    with pytest.raises(RecordError, match="is no record"):
        read(tmp_path / "x.json")


def test_recordings_that_only_a_site_has_are_not_repeated_elsewhere(record: dict[str, Any], tmp_path: Path) -> None:
    record["shards"]["b"]["scheme"] = {"scheme": "own"}
    with pytest.raises(RecordError, match=r"recordings that only they have.*KWS_RECORDED"):
        read(written(tmp_path, record))


def test_another_partition_is_refused_before_anything_starts(record: dict[str, Any], tmp_path: Path) -> None:
    for shard in record["shards"].values():
        shard["partition"] = "0123456789ab"
    with pytest.raises(RecordError, match=r"partition 0123456789ab.*set DATA to the same corpus"):
        repeat(written(tmp_path, record))


def test_settings_of_another_version_are_named(record: dict[str, Any], tmp_path: Path) -> None:
    record["config"]["training"]["epochs"] = 3
    with pytest.raises(ConfigError, match=r"there is no training\.epochs"):
        repeat(written(tmp_path, record))
