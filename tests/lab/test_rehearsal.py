from pathlib import Path

import numpy as np
import pytest
from small_network import plain, small_recipe

from kws.config import ExperimentConfig
from kws.training import evaluate
from lab import tables
from lab.records import Run
from lab.rehearsal import rehearse
from lab.selection import Selection
from lab.simulation import federated_averaging
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.schemes import Speakers
from shard_descriptors.sources.speech_commands import load


@pytest.fixture
def config(tmp_path: Path) -> ExperimentConfig:
    return ExperimentConfig(small_recipe(tmp_path / "model"), plain(rounds=30, batch_size=32), best_metric="loss")


def test_some_rounds_are_simulated_and_recorded(config: ExperimentConfig, tiny_corpus: Path, tmp_path: Path) -> None:
    rows = load(tiny_corpus).utterances
    assigned = assign(rows, Speakers(), 2, 0)
    shards = {
        site: [u for u in shard_of(rows, assigned, number) if u.split == "train"]
        for number, site in enumerate(("envoy", "envoy_two"), start=1)
    }
    validation = ClipSet([u for u in rows if u.split == "validation"])
    run = Run.create(tmp_path)
    table = rehearse(config, shards, validation, 2, run)
    assert list(table.index) == [0, 1, 2]
    assert table["envoy", "training loss"].notna().tolist() == [False, True, True]
    assert table["average", "accuracy"].notna().all()
    assert tables.best_validation(run.metrics(), "loss")["loss"] == table["average", "loss"].min()
    nothing = Run.create(tmp_path, "nothing")
    assert rehearse(config, shards, validation, 0, nothing).empty
    assert not nothing.metrics_path.exists()


def test_the_best_round_is_kept_and_of_equals_the_last(config: ExperimentConfig, tiny_corpus: Path) -> None:
    clips = ClipSet([u for u in load(tiny_corpus).utterances if u.split == "validation"])
    scores: list[float] = []
    chosen = Selection(config, clips, "cpu", lambda done, found: scores.append(found["loss"]))
    rounds: list[dict[str, np.ndarray]] = []

    def after(done: int, weights: dict[str, np.ndarray]) -> None:
        chosen(done, weights)
        rounds.append(dict(weights))

    short = ExperimentConfig(config.model, plain(rounds=2, batch_size=32), best_metric="loss")
    federated_averaging(short, {"one": clips}, lambda *_: None, after_round=after)
    best = int(np.argmin(scores))
    assert all(np.array_equal(chosen.best[name], rounds[best][name]) for name in rounds[best])
    chosen(9, {name: array.copy() for name, array in rounds[best].items()})
    assert chosen.best is not rounds[best], "which has learned longer"
    assert evaluate(chosen.best_model(), clips).loss == pytest.approx(scores[best])
