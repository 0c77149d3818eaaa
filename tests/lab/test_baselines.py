import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from small_network import plain, small_recipe

from kws.config import ExperimentConfig, ModelRecipe
from kws.metrics import METRICS
from kws.model import ModelError, build_model, load_weights
from kws.training import evaluate, steps_in_round
from lab import tables
from lab.baselines import Baseline, train_baselines, with_budget, workers_for
from lab.records import Run
from lab.simulation import federated_averaging
from lab.tables import alone
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.schemes import Speakers
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.utterances import Utterance

NAMES = ["pooled", "envoy alone", "envoy_two alone"]


def shards_of(corpus: Path) -> tuple[dict[str, list[Utterance]], ClipSet, ClipSet]:
    utterances = load(corpus).utterances
    assigned = assign(utterances, Speakers(), 2, 0)
    shards = {
        site: [u for u in shard_of(utterances, assigned, number) if u.split == "train"]
        for number, site in enumerate(("envoy", "envoy_two"), start=1)
    }
    validation, test = (ClipSet([u for u in utterances if u.split == split]) for split in ("validation", "test"))
    return shards, validation, test


def test_pooled_and_each_alone_in_processes_that_end(tiny_corpus: Path, tmp_path: Path) -> None:
    shards, validation, test = shards_of(tiny_corpus)
    config = ExperimentConfig(small_recipe(tmp_path / "model"), plain(rounds=2, batch_size=32), best_metric="loss")
    run = Run.create(tmp_path)
    environment = dict(os.environ)
    evaluations = train_baselines(config, shards, validation, test, run, cores=1)
    sizes = {site: len(own) for site, own in shards.items()}
    spent = tables.budget(run.metrics(), sizes)
    assert {name: each["epochs"] for name, each in spent.items()} == dict.fromkeys(NAMES, 2.0)
    assert spent["pooled"]["steps"] == 2 * -(-sum(sizes.values()) // 32)

    assert list(evaluations) == NAMES
    assert alone("envoy") == "envoy alone"
    truth = test.labels
    for evaluation in evaluations.values():
        assert np.array_equal(evaluation.labels, truth)
    lines = run.metrics()
    trained, validated = (lines[lines["task"] == task] for task in ("train", "validate"))
    assert set(zip(trained["site"], trained["round"], strict=True)) == {(name, n) for name in NAMES for n in (1, 2)}
    assert set(zip(validated["site"], validated["round"], strict=True)) == {
        (name, n) for name in NAMES for n in (0, 1, 2)
    }
    assert set(trained["metric"]) == {"loss", "objective", "accuracy", "steps", "samples"}
    assert set(validated["metric"]) == METRICS.keys()
    workers = [child.cmdline() for child in psutil.Process().children(recursive=True) if child.status() != "zombie"]
    assert not [command for command in workers if any("spawn_main" in part for part in command)]
    assert dict(os.environ) == environment

    # The pooled model is the best round of the simulation with one site that holds everything.
    everything = ClipSet([u for own in shards.values() for u in own])
    model = build_model(config.model, config.training.seed, SUPERB_KS)
    rounds = []
    federated_averaging(
        config, {"pooled": everything}, lambda *_: None, after_round=lambda _, weights: rounds.append(weights)
    )
    losses = []
    for weights in rounds:
        load_weights(model, weights)
        losses.append(evaluate(model, validation).loss)
    pooled = validated[(validated["site"] == "pooled") & (validated["metric"] == "loss")]
    assert list(pooled["value"]) == pytest.approx(losses, rel=1e-4)
    load_weights(model, rounds[int(np.argmin(losses))])
    assert evaluate(model, test).scalars() == pytest.approx(evaluations["pooled"].scalars(), rel=1e-3)


UTTERANCE = Utterance("a.wav", "a.wav", "yes", None, "train")


def of_sizes(*sizes: int) -> Baseline:
    """A baseline on so many clips of each of some sites."""
    return Baseline("some", tuple((UTTERANCE,) * size for size in sizes))


@pytest.mark.parametrize(
    ("training", "budget", "steps"),
    [
        # By job: pooled, the large site alone, the small one. A step is 8 clips; the sites have 80 and 20.
        ({}, "epochs", [13, 10, 3]),
        ({}, "steps", [10, 10, 10]),
        ({}, None, [13, 10, 3]),
        ({"local_epochs": 0.5}, "steps", [5, 5, 5]),
        ({"local_steps": 4}, None, [4, 4, 4]),
        ({"local_steps": 4}, "steps", [4, 4, 4]),
        ({"local_steps": 4}, "epochs", [8, 4, 4]),
    ],
)
def test_a_baseline_is_trained_as_long_as_its_budget_says(
    training: dict[str, object], budget: str | None, steps: list[int]
) -> None:
    config = ExperimentConfig(training=plain(batch_size=8, **training))
    jobs = of_sizes(80, 20), of_sizes(80), of_sizes(20)
    longer = [with_budget(config, job, [80, 20], budget).training for job in jobs]
    assert [steps_in_round(each, sum(map(len, job.sites))) for each, job in zip(longer, jobs, strict=True)] == steps
    assert all(replace(each, local_steps=config.training.local_steps) == config.training for each in longer)


def test_on_a_gpu_one_after_the_other() -> None:
    assert (workers_for(3, 8, gpu=True), workers_for(3, 8, gpu=False), workers_for(3, 2, gpu=False)) == (1, 3, 2)


def test_none_asked_for_is_none_trained(tiny_corpus: Path, tmp_path: Path) -> None:
    shards, validation, test = shards_of(tiny_corpus)
    assert train_baselines(ExperimentConfig(), shards, validation, test, Run.create(tmp_path), which=[]) == {}


def test_an_error_in_a_worker_reaches_the_caller(tiny_corpus: Path, tmp_path: Path) -> None:
    shards, validation, test = shards_of(tiny_corpus)
    config = ExperimentConfig(ModelRecipe(str(tmp_path)), plain())
    with pytest.raises(ModelError, match=str(tmp_path)):
        train_baselines(config, shards, validation, test, Run.create(tmp_path / "runs"), cores=1)


ENDLESS = """
import sys
from pathlib import Path
from lab.baselines import train_baselines
from kws.config import ExperimentConfig, ModelRecipe, Training
from lab.records import Run
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.sources.speech_commands import load

if __name__ == "__main__":
    corpus, model, run = sys.argv[1:]
    utterances = load(Path(corpus)).utterances
    train = [u for u in utterances if u.split == "train"]
    config = ExperimentConfig(ModelRecipe(model), Training(rounds=100_000))
    clips = ClipSet(utterances[:1])
    train_baselines(config, {"envoy": train}, clips, clips, Run(Path(run)), cores=1)
"""


def test_no_worker_outlives_a_killed_parent(tiny_corpus: Path, tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(ENDLESS)
    model = small_recipe(tmp_path / "model").name
    run = Run.create(tmp_path / "runs")
    with (tmp_path / "log").open("w") as log:
        parent = subprocess.Popen(
            [sys.executable, str(script), str(tiny_corpus), model, str(run.folder)], stdout=log, stderr=log
        )
    children: list[psutil.Process] = []
    try:
        deadline = time.monotonic() + 60
        while run.metrics().empty:  # until a worker trains
            assert parent.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = psutil.Process(parent.pid).children(recursive=True)
        assert children, "the training runs in a process of its own"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        _, left = psutil.wait_procs(children, timeout=10)
        assert not left
    finally:
        for process in (child for child in children if child.is_running()):
            process.kill()
        parent.kill()
        parent.wait()
