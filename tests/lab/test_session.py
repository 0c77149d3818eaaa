from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kws.config import ConfigError, ExperimentConfig, Training
from kws.metrics import Evaluation
from lab import session
from lab.changes import changed
from lab.presets import preset
from lab.records import Run
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.labels import LABELS
from shard_descriptors.partition.contract import assign, digest, shard_of
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.speech_commands import load

Shards = dict[str, dict[str, Any]]


def described(corpus: Path, seed: int = 0, scheme: str = "speakers", silence: str = "balanced") -> Shards:
    """What two sites tell of their shards."""
    rows = load(corpus, silence).utterances
    name = digest(rows, assign(rows, scheme_of(scheme), 2, seed))
    common = {"of": 2, "seed": seed, "scheme": {"scheme": scheme}, "partition": name, "corpus": "synthetic"}
    common["settings"] = {"silence": silence}
    return {site: {"shard": number, **common} for number, site in enumerate(("envoy", "envoy_two"), start=1)}


def test_the_demo_speaks_through_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    people, made = ({"envoy": {"corpus": corpus}} for corpus in ("Speech Commands", "synthetic"))
    for name in ("KWS_CHANGES", "KWS_RUN", "KWS_BASELINES", "KWS_MODEL", "KWS_PRESET"):
        monkeypatch.delenv(name, raising=False)
    tiny, own = preset("tiny"), ExperimentConfig(training=Training(rounds=7))
    assert session.apply_changes(tiny, people) == tiny
    assert session.apply_changes(tiny, made) == changed(tiny, ["training.rounds=10"])
    assert session.apply_changes(own, made) == own
    assert session.with_baselines()
    monkeypatch.setenv("KWS_CHANGES", "training.seed=3\nmodel.dropout=0")
    monkeypatch.setenv("KWS_BASELINES", "0")
    monkeypatch.setenv("KWS_RUN", str(tmp_path))
    config = session.apply_changes(tiny, made)
    assert (config.training.rounds, config.training.seed, config.model.dropout) == (10, 3, 0.0)
    assert not session.with_baselines()
    assert session.start_run() == Run(tmp_path)
    monkeypatch.setenv("KWS_CHANGES", "training.round=3")
    with pytest.raises(ConfigError, match="rounds"):
        session.apply_changes(tiny, made)


def test_the_demos_model_and_preset_take_the_place_of_the_notebooks(monkeypatch: pytest.MonkeyPatch) -> None:
    shards = {"envoy": {"corpus": "synthetic"}}
    tiny = preset("tiny")
    monkeypatch.setenv("KWS_CHANGES", "training.seed=3")
    monkeypatch.setenv("KWS_MODEL", "folder")
    seeded = ["training.seed=3"]
    assert session.apply_changes(tiny, shards) == changed(preset("superb_ks", "folder"), seeded)
    monkeypatch.setenv("KWS_PRESET", "hf_finetune")
    assert session.apply_changes(tiny, shards) == changed(preset("hf_finetune", "folder"), seeded)
    monkeypatch.setenv("KWS_MODEL", "tiny")
    monkeypatch.setenv("KWS_PRESET", "")
    assert session.apply_changes(preset("hf_finetune"), shards).training.rounds == 10
    monkeypatch.setenv("KWS_MODEL", "")
    monkeypatch.setenv("KWS_CHANGES", "model.name=folder")
    assert session.apply_changes(tiny, shards) == preset("superb_ks", "folder")


def test_the_local_copy_is_the_sites_corpus(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(tiny_corpus))
    shards = described(tiny_corpus)
    utterances = session.local_corpus(shards).utterances
    assert utterances == load(tiny_corpus).utterances
    own = session.train_shards(utterances, shards)
    assert list(own) == ["envoy", "envoy_two"]
    assert Counter(own["envoy"] + own["envoy_two"]) == Counter(u for u in utterances if u.split == "train")
    speakers = [{u.speaker for u in part} - {None} for part in own.values()]
    assert not speakers[0] & speakers[1]


@pytest.mark.parametrize(("scheme", "silence"), [("iid", "balanced"), ("clients", "files"), ("speakers", "segments")])
def test_the_local_copy_is_opened_and_shared_out_as_the_sites_do(
    tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch, scheme: str, silence: str
) -> None:
    monkeypatch.setenv("DATA", str(tiny_corpus))
    shards = described(tiny_corpus, 3, scheme, silence)
    rows = session.local_corpus(shards).utterances
    assert rows == load(tiny_corpus, silence).utterances
    own = session.train_shards(rows, shards)
    assigned = assign(rows, scheme_of(scheme), 2, 3)
    for site, number in (("envoy", 1), ("envoy_two", 2)):
        assert own[site] == [u for u in shard_of(rows, assigned, number) if u.split == "train"]


def test_sites_with_recordings_of_their_own_have_no_common_corpus(tiny_corpus: Path) -> None:
    shards = described(tiny_corpus)
    for shard in shards.values():
        shard["scheme"] = {"scheme": "own"}
    with pytest.raises(ValueError, match=r"Open own_recordings\.ipynb instead"):
        session.local_corpus(shards)


def test_clip_format() -> None:
    given = {"labels": ["a", "b"], "sample_rate": 8000, "num_samples": 4000}
    assert session.clip_format({"envoy": {"format": given}}) == ClipFormat(("a", "b"), 8000, 4000)


def test_another_corpus_is_refused(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", str(tiny_corpus))
    shards = described(tiny_corpus)
    for shard in shards.values():
        shard |= {"partition": "0123456789ab", "corpus": "speech_commands_mini"}
    with pytest.raises(ValueError, match="speech_commands_mini") as caught:
        session.local_corpus(shards)
    for text in ("synthetic", "DATA"):
        assert text in str(caught.value)


def test_mistakes_name_the_clips(tiny_corpus: Path) -> None:
    clips = ClipSet([u for u in load(tiny_corpus).utterances if u.split == "test"])
    answers = clips.labels.copy()
    assert session.mistakes(Evaluation(clips.labels, answers, 0.1), clips, LABELS).empty
    answers[[2, 5]] = (clips.labels[[2, 5]] + 1) % 12
    table = session.mistakes(Evaluation(clips.labels, answers, 0.1), clips, LABELS)
    assert list(table["clip"]) == [2, 5]
    for row, number in zip(table.itertuples(), (2, 5), strict=True):
        assert row.file == clips.utterances[number].name
        assert row.true == clips.utterances[number].label
        assert row.answered == LABELS[answers[number]]


@pytest.mark.parametrize("baselines", [True, False])
def test_finish_writes_the_summary(tmp_path: Path, baselines: bool) -> None:
    labels = np.arange(10)
    shards: Shards = {site: {"corpus": "synthetic", "partition": "0123456789ab"} for site in ("envoy", "envoy_two")}
    wrong = {"federated": 4, "pooled": 2, "envoy alone": 6, "envoy_two alone": 5}
    evaluations = {
        name: Evaluation(labels, np.where(labels < count, 11, labels), 0.5)
        for name, count in wrong.items()
        if baselines or name == "federated"
    }
    run = Run.create(tmp_path)
    table = session.finish(run, ExperimentConfig(), shards, evaluations, 12.5)
    summary = run.summary()
    assert summary["accuracy"] == pytest.approx(0.6)
    assert summary["rounds"] == ExperimentConfig().training.rounds
    assert (summary["sites"], summary["corpus"]) == (["envoy", "envoy_two"], "synthetic")
    assert (summary["seconds"], summary["test_utterances"]) == (12.5, 10)
    assert summary["pooled_accuracy"] == (pytest.approx(0.8) if baselines else None)
    assert summary["local_accuracies"] == (pytest.approx({"envoy": 0.4, "envoy_two": 0.5}) if baselines else {})
    assert list(table.index) == list(evaluations)
    assert table.loc["federated", "accuracy"] == 0.6
