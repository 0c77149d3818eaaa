from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from answers import predictions
from recordings import sound, write

from kws.config import ExperimentConfig, Training
from kws.metrics import Evaluation
from lab import session
from lab.claims import Overlap
from lab.predictions import Predictions
from lab.records import Run
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.labels import LABELS
from shard_descriptors.partition.contract import assign, digest, shard_of
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.registry import open_corpus
from shard_descriptors.sources.speech_commands import load

Shards = dict[str, dict[str, Any]]


def described(corpus: Path, seed: int = 0, scheme: str = "speakers", silence: str = "balanced") -> Shards:
    """What two sites tell of their shards."""
    rows = load(corpus, silence).utterances
    name = digest(rows, assign(rows, scheme_of(scheme), 2, seed))
    common = {"of": 2, "seed": seed, "scheme": {"scheme": scheme}, "partition": name, "corpus": "synthetic"}
    common["settings"] = {"silence": silence}
    return {site: {"shard": number, **common} for number, site in enumerate(("envoy", "envoy_two"), start=1)}


def test_the_demo_names_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_RUN", str(tmp_path))
    assert session.start_run() == Run(tmp_path)


def test_a_trial_for_each_seed_with_records_of_its_own(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "mine")
    config = ExperimentConfig(training=Training(rounds=7, seed=3))
    (only,) = session.trials(config, run)
    assert (only.config, only.run) == (config, run)
    first, second = session.trials(config, run, [5, 6])
    assert [trial.config.training.seed for trial in (first, second)] == [5, 6]
    assert first.run == run
    assert second.run.folder.parent == run.folder
    assert second.run.name == "mine-seed6", "which no other experiment of the director has"
    first.run.add_metric(1, "envoy", "train", "loss", 1.0)
    second.run.add_metric(1, "envoy", "train", "loss", 2.0)
    assert [list(trial.run.metrics()["value"]) for trial in (first, second)] == [[1.0], [2.0]]


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


def test_a_corpus_without_a_test_split_is_told_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "x.csv"
    rows = ["path,label,speaker,split"]
    for n, (speaker, label, split) in enumerate(product("ab", ("yes", "no"), ("train", "validation"))):
        rows.append(f"{write(tmp_path / f'{n}.wav', sound(n)).name},{label},{speaker},{split}")
    table.write_text("\n".join(rows))
    corpus = open_corpus(source="table", data_path=str(table))
    name = digest(corpus.utterances, assign(corpus.utterances, scheme_of("speakers"), 2, 0))
    shards = {"envoy": {"shard": 1, "of": 2, "seed": 0, "scheme": {"scheme": "speakers"}, "partition": name,
                        "corpus": corpus.name, "settings": {}}}  # fmt: skip
    with pytest.raises(ValueError, match=r"has no test utterances.*own_recordings\.ipynb"):
        session.local_corpus(shards, source="table", data_path=str(table))


def test_the_mistakes_that_are_shown_are_the_most_certain_one_a_label(tiny_corpus: Path) -> None:
    clips = ClipSet([u for u in load(tiny_corpus).utterances if u.split == "test"])
    logits = 9 * np.eye(len(LABELS), dtype=np.float32)[clips.labels]
    assert session.mistakes(Evaluation(clips.labels, logits), clips, LABELS).empty
    yes, no = (np.flatnonzero(clips.labels == LABELS.index(label)) for label in ("yes", "no"))
    for number, sharpness in ((yes[0], 2.0), (yes[1], 6.0), (no[0], 4.0), (no[1], 3.0)):
        logits[number] = sharpness * np.eye(len(LABELS))[(clips.labels[number] + 1) % len(LABELS)]
    table = session.mistakes(Evaluation(clips.labels, logits), clips, LABELS)
    assert list(table["clip"]) == [yes[1], no[0]]
    assert list(table["true"]) == ["yes", "no"]
    assert list(table["answered"]) == [LABELS[LABELS.index("yes") + 1], LABELS[LABELS.index("no") + 1]]
    assert list(table["probability"]) == pytest.approx([np.exp(s) / (np.exp(s) + 11) for s in (6, 4)], rel=1e-5)
    assert list(table["file"]) == [clips.utterances[number].name for number in table["clip"]]


@pytest.mark.parametrize("baselines", [True, False])
def test_finish_keeps_the_predictions_and_a_summary_of_them(tmp_path: Path, baselines: bool) -> None:
    models = ("federated", "pooled", "envoy alone", "envoy_two alone") if baselines else ("federated",)
    some = predictions(np.random.default_rng(0), models=models)
    shards: Shards = {site: {"corpus": "synthetic", "partition": "0123456789ab"} for site in ("envoy", "envoy_two")}
    run = Run.create(tmp_path)
    table = session.finish(run, ExperimentConfig(), shards, 12.5, some, Overlap(28, 0, 0, 0, len(some), 0))
    summary = run.summary()
    accuracy = {model: evaluation.accuracy for model, evaluation in some.evaluations.items()}
    assert summary["accuracy"] == accuracy["federated"]
    assert summary["macro_f1"] == some.evaluations["federated"].macro_f1
    assert summary["rounds"] == ExperimentConfig().training.rounds
    assert (summary["sites"], summary["corpus"]) == (["envoy", "envoy_two"], "synthetic")
    assert (summary["seconds"], summary["test_utterances"]) == (12.5, len(some))
    assert summary["pooled_accuracy"] == accuracy.get("pooled")
    own = {site: accuracy[f"{site} alone"] for site in shards} if baselines else {}
    assert summary["local_accuracies"] == own
    assert summary["test_of"] == "28 speakers that no site trained on"
    assert summary["overlap"]["equal"] == 0
    assert list(table.index) == list(models)
    again = session.figures(Predictions.load(run.predictions_path), "accuracy", shards)
    assert again == {name: summary[name] for name in again}, "every figure of the table can be computed again"


def test_finish_without_a_test_set(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.add_metrics(1, "aggregator", "validate_global", {"loss": 0.5, "accuracy": 0.75})
    shards: Shards = {"envoy": {"corpus": "own", "partition": "0123456789ab"}}
    table = session.finish(run, ExperimentConfig(), shards, 1.0)
    assert table.loc["federated, in validation", "accuracy"] == 0.75
    assert (run.summary()["accuracy"], run.summary()["test_utterances"]) == (None, 0)
    assert not run.predictions_path.exists()
