"""The test that guards the whole engine: a federation of real processes computes what one page of FedAvg computes."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import PYTHON, Processes, write_site

from federation.notebook.handle import FederationHandle
from kws.config import ExperimentConfig, Training
from kws.model import build_model, load_weights
from kws.training import evaluate
from lab.simulation import federated_averaging
from lab.submission import submit, wait_for_shards
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.schemes import Speakers
from shard_descriptors.sources.speech_commands import load

HOUSE = PYTHON.parents[2]
SITES = {"one": 1, "two": 2}


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("keep_optimizer", [True, False])
def test_real_processes_compute_what_the_reference_computes(
    processes: Processes, tiny_corpus: Path, tmp_path: Path, keep_optimizer: bool
) -> None:
    config = ExperimentConfig(training=Training(rounds=3, batch_size=8, seed=7, keep_optimizer=keep_optimizer))
    environment = os.environ | {"DATA": ""}
    processes.start(
        "director",
        HOUSE / "director" / "start_director.sh",
        "--port",
        "0",
        "--state",
        tmp_path / "state",
        env=environment,
    )
    port = int(processes.wait_for("director", r"listening on .*:(\d+)")[1])
    for name, number in SITES.items():
        params = {"data_path": str(tiny_corpus), "shard": number, "of": 2, "seed": 3}
        path = write_site(tmp_path, name, port, "shard_descriptors.superb_ks.SuperbKsShardDescriptor", params)
        processes.start(name, PYTHON, "-m", "federation.envoy", "--config", path)
    federation = FederationHandle("localhost", port)
    wait_for_shards(federation, 60)
    experiment = submit(federation, config, "reference", SUPERB_KS)
    lines = {(m.round, m.site, m.task, m.metric): m.value for m in experiment.metrics()}
    real = experiment.last_weights()

    reported: dict[tuple[int, str, str, str], float] = {}

    def report(round_number: int, site: str, task: str, values: dict[str, float]) -> None:
        reported.update({(round_number, site, task, metric): value for metric, value in values.items()})

    utterances = load(tiny_corpus).utterances
    assigned = assign(utterances, Speakers(), 2, 3)
    own = {
        name: (number, ClipSet([u for u in shard_of(utterances, assigned, number) if u.split == "train"]))
        for name, number in SITES.items()
    }
    reference = federated_averaging(config, own, report)

    assert real.keys() == reference.keys()
    for name in real:
        np.testing.assert_allclose(real[name], reference[name], rtol=1e-5, atol=1e-6, err_msg=name)
    for key, value in reported.items():
        assert lines[key] == pytest.approx(value, rel=1e-5), key

    # What the director says of the average is one evaluation of it on all sites' validation clips, to single precision.
    model = build_model(config.model, config.training.seed, SUPERB_KS)
    load_weights(model, real)
    everyone = ClipSet([utterance for utterance in utterances if utterance.split == "validation"])
    for metric, value in evaluate(model, everyone).scalars().items():
        assert lines[3, "aggregator", "validate_global", metric] == pytest.approx(value, rel=1e-5), metric
