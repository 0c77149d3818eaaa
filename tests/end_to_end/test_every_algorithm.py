"""Every algorithm through real processes: what a federation computes is what the page of the simulation computes."""

import re
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PYTHON, Processes, write_site
from safetensors.numpy import load_file

from federation.errors import SubmissionRefused
from federation.notebook.handle import ExperimentHandle, FederationHandle
from kws.algorithms import CONTROL
from kws.config import Algorithm, Augmentation, ExperimentConfig, Training
from lab.simulation import federated_averaging
from lab.submission import best_model, submit, wait_for_shards
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.schemes import Speakers
from shard_descriptors.sources.speech_commands import load

SITES = {"one": 1, "two": 2, "three": 3}
TRAINING = Training(rounds=3, local_steps=2, batch_size=8, seed=7, augmentation=Augmentation.none())
SGD = replace(TRAINING, optimizer="sgd", momentum=0.0, learning_rate=0.05)
OPERATORS = {
    "house_rules.py": (
        "from dataclasses import dataclass\nfrom typing import ClassVar\n"
        "from rules.contract import Computed, Rule\n\n\n"
        "@dataclass(frozen=True)\nclass First(Rule):\n    of_the_mean: ClassVar[bool] = False\n\n"
        "    def __call__(self, state, updates, weights):\n        return state, updates[0]\n"
    ),
    "house_rules-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: house-rules\nVersion: 1.0\n",
    "house_rules-1.0.dist-info/entry_points.txt": "[federation.rules]\nfirst = house_rules:First\n",
}


class Federation(Processes):
    """A director, beside which an operator has installed a rule, and three sites on a small corpus."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        super().__init__(folder)
        self.corpus = corpus
        for name, text in OPERATORS.items():
            (folder / "installed" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "installed" / name).write_text(text)
        try:
            self.port = self.start_director()
            for name in SITES:
                self.start_site(name)
            self.handle = FederationHandle("localhost", self.port)
            wait_for_shards(self.handle, 60)
        except BaseException:
            self.stop()
            raise

    def start_director(self, port: int = 0) -> int:
        config = self.logs / "director.yaml"
        config.write_text("settings: {state: state, envoy_health_check_period: 1}\n")
        self.start(
            "director", PYTHON, "-m", "federation.director", "--config", config, "--port", str(port),
            env={"PYTHONPATH": str(self.logs / "installed"), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        return int(self.wait_for("director", r"listening on .*:(\d+)")[1])

    def start_site(self, name: str) -> None:
        params = {"data_path": str(self.corpus), "shard": SITES[name], "of": len(SITES), "seed": 3}
        template = "shard_descriptors.superb_ks.SuperbKsShardDescriptor"
        path = write_site(self.logs, name, self.port, template, params)
        self.start(name, PYTHON, "-m", "federation.envoy", "--config", path, env={"OMP_NUM_THREADS": "1"})

    def clips(self) -> dict[str, ClipSet]:
        utterances = load(self.corpus).utterances
        assigned = assign(utterances, Speakers(), len(SITES), 3)
        return {
            name: ClipSet([u for u in shard_of(utterances, assigned, number) if u.split == "train"])
            for name, number in SITES.items()
        }


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path) -> Iterator[Federation]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    federation = Federation(tmp_path_factory.mktemp("algorithms"), tiny_corpus)
    yield federation
    federation.stop()
    torch.set_num_threads(threads)


def finished(experiment: ExperimentHandle) -> dict[str, np.ndarray]:
    for _ in experiment.metrics():
        pass
    return dict(experiment.last_weights())


def agree(real: dict[str, np.ndarray], reference: dict[str, np.ndarray], tolerance: float = 1e-6) -> None:
    assert real.keys() == reference.keys()
    for name in real:
        np.testing.assert_allclose(real[name], reference[name], rtol=1e-4, atol=tolerance, err_msg=name)


CASES = {
    "capped": Algorithm(weight_cap=20, max_update_norm=0.5),
    "fedavgm": Algorithm(rule="fedavgm", server_learning_rate=0.5, proximal=0.1),
    "fedadam": Algorithm(rule="fedadam", server_learning_rate=0.005),
    "fedyogi": Algorithm(rule="fedyogi", server_learning_rate=0.005),
    "fedadagrad": Algorithm(rule="fedadagrad", server_learning_rate=0.005),
    "median": Algorithm(rule="median", max_update_norm=1.0),
    "trimmed_mean": Algorithm(rule="trimmed_mean", trim=0.3),
    "krum": Algorithm(rule="krum", byzantine=0, select=2),
    "scaffold": Algorithm(rule="scaffold", weight_cap=1),
    "personal": Algorithm(personal="head"),
    "sampled": Algorithm(rule="fedavgm", server_learning_rate=0.5, sites_per_round=2),
    "scaffold, sampled": Algorithm(rule="scaffold", weight_cap=1, sites_per_round=0.5),
}


QUICK = ("capped", "median", "sampled")
"""What starts no more processes than it has to; fedadam, scaffold and personal come below, and are killed besides."""


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_real_processes_compute_what_the_simulation_computes(shared: Federation, name: str) -> None:
    training = SGD if "scaffold" in name else TRAINING
    config = ExperimentConfig(training=replace(training, keep_optimizer=name != "personal"), algorithm=CASES[name])
    real = finished(submit(shared.handle, config, name, SUPERB_KS))
    reference = dict(federated_averaging(config, shared.clips(), lambda *_: None))
    agree(real, reference)
    assert any(key.startswith(CONTROL) for key in real) == ("scaffold" in name)
    plainly = federated_averaging(replace(config, algorithm=Algorithm()), shared.clips(), lambda *_: None)
    assert any(not np.allclose(real[key], plainly[key], rtol=1e-3, atol=1e-5) for key in real if key in plainly)


def test_a_head_of_its_own_stays_at_the_site_after_the_end(shared: Federation) -> None:
    config = ExperimentConfig(training=TRAINING, algorithm=Algorithm(personal="head"))
    experiment = submit(shared.handle, config, "own heads", SUPERB_KS)
    real = finished(experiment)
    told = []
    federated_averaging(config, shared.clips(), lambda *_: None, at_the_end=told.append)
    best_model(experiment, config, SUPERB_KS)
    for site, local in told[0].items():
        (folder,) = (shared.logs / "sites" / "own.tensors" / site).glob("own%20heads-*")
        assert "round-3.safetensors" in {path.name for path in folder.iterdir()}
        own = load_file(folder / "round-3.safetensors")
        agree(own, local.own_tensors())
        assert not own.keys() & real.keys()
    assert not list(shared.logs.glob("sites/one/*/*.state"))  # what belongs to the experiment is gone with it


@pytest.mark.parametrize("name", ["fedadam", "scaffold", pytest.param("personal", marks=pytest.mark.slow)])
def test_killed_in_the_middle_of_a_round_and_started_again_it_computes_the_same(shared: Federation, name: str) -> None:
    training = replace(SGD if name == "scaffold" else TRAINING, rounds=8)
    config = ExperimentConfig(training=training, algorithm=CASES[name])
    reference = dict(federated_averaging(config, shared.clips(), lambda *_: None))
    experiment = submit(shared.handle, config, f"{name}, killed", SUPERB_KS)
    wait_until_trained(shared, "two", f"{name}, killed")
    shared.kill("director")
    shared.kill("two")
    shared.start_site("two")
    shared.start_director(shared.port)
    agree(finished(shared.handle.attach(experiment.name)), reference)
    assert "closes with one, three, two" in shared.log("director")  # which the first director's is not: it went on


def wait_until_trained(federation: Federation, site: str, name: str, seconds: float = 60) -> None:
    """Until the site's trainer has begun the second round or a later one."""
    deadline = time.monotonic() + seconds
    while not re.search(rf'round [23], task train: took .*experiment="{re.escape(name)}"', federation.log(site)):
        assert time.monotonic() < deadline, federation.log(site)
        time.sleep(0.02)


def test_an_operators_own_rule(shared: Federation) -> None:
    config = ExperimentConfig(training=replace(TRAINING, rounds=1), algorithm=Algorithm(rule="first"))
    real = finished(submit(shared.handle, config, "first", SUPERB_KS))
    first = min(SITES)  # by name
    alone = federated_averaging(replace(config, algorithm=Algorithm()), {first: shared.clips()[first]}, lambda *_: None)
    agree(real, dict(alone))


def test_what_is_refused_says_what_there_is(shared: Federation) -> None:
    config = ExperimentConfig(training=TRAINING, algorithm=Algorithm(rule="secnod"))
    with pytest.raises(SubmissionRefused, match=r"rule.name is 'secnod'; allowed: mean, .*scaffold, first"):
        submit(shared.handle, config, "refused", SUPERB_KS)
    config = replace(config, algorithm=Algorithm(rule="fedadam", trim=0.1, beta1=2.0))
    with pytest.raises(SubmissionRefused, match=r"(?s)algorithm.beta1 is 2.0; .*algorithm.trim is no number of this"):
        submit(shared.handle, config, "refused", SUPERB_KS)
    config = replace(config, algorithm=Algorithm(rule="krum"))
    with pytest.raises(SubmissionRefused, match=r"rule krum needs 5 sites in every round, and .* with 3"):
        submit(shared.handle, config, "refused", SUPERB_KS)
    config = replace(config, algorithm=Algorithm(rule="krum", byzantine=0, sites_per_round=2))
    with pytest.raises(SubmissionRefused, match=r"rule krum needs 3 sites in every round, and .* with 2"):
        submit(shared.handle, config, "refused", SUPERB_KS)
