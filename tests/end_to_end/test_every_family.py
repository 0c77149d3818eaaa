"""Every family through real processes: trained by two sites, one of them killed, brought home, loaded by others.

One director and two envoys serve the whole file; each site has the model under a path of its own, `~/models`.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from processes import HOUSE, PYTHON, Processes, write_site
from safetensors.torch import load_file, save_file
from small_families import CONFIGS, checkpoint
from small_network import UNCHANGED
from transformers import AutoModelForAudioClassification, pipeline

from federation.errors import ExperimentFailed
from federation.notebook.handle import FederationHandle
from kws.config import ExperimentConfig, ModelRecipe, Training
from kws.model import save_pretrained
from kws.training import evaluate
from lab.simulation import federated_averaging
from lab.submission import best_model, submit, wait_for_shards
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.schemes import Speakers
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.utterances import Utterance

SITES = {"one": 1, "two": 2}
FAST = ("wav2vec2-conformer", "whisper", "hubert")
"""One with a batch norm, one that eats spectrograms, one that is like most others."""

RECIPES = {
    "hubert": {"head": "adapter", "trained": "lora"},
    "whisper": {"head": "weighted_sum", "trained": "head", "cut_positions": True},
    "wav2vec2": {"trained": "biases_and_norms", "spec_augment": True},
    "wavlm": {"trained": "lora"},
    "sew": {"trained": "top_layers"},
}
"""What is trained, and with which head, where it is not the default."""

RESTARTED = ("wav2vec2-conformer",)
"""One site is killed in the first of two rounds."""


class Federation(Processes):
    """A director and two envoys, whose home folders differ."""

    def __init__(self, folder: Path, corpus: Path) -> None:
        super().__init__(folder)
        self.corpus = corpus
        self.start("director", HOUSE / "director" / "start_director.sh", "--port", "0", "--state", folder / "state")
        self.port = int(self.wait_for("director", r"listening on .*:(\d+)")[1])
        for name in SITES:
            self.start_site(name)
        wait_for_shards(FederationHandle("localhost", self.port), 60)

    def start_site(self, name: str) -> None:
        params = {"data_path": str(self.corpus), "shard": SITES[name], "of": 2, "seed": 3}
        path = write_site(self.logs, name, self.port, "shard_descriptors.superb_ks.SuperbKsShardDescriptor", params)
        environment = {"HOME": str(self.home(name)), "HF_HOME": str(self.logs / "hf"), "OMP_NUM_THREADS": "1"}
        self.start(name, PYTHON, "-m", "federation.envoy", "--config", path, env=environment)

    def home(self, name: str) -> Path:
        return self.logs / "homes" / name

    def shards(self) -> dict[str, list[Utterance]]:
        utterances = load(self.corpus).utterances
        assigned = assign(utterances, Speakers(), 2, 3)
        return {name: list(shard_of(utterances, assigned, number)) for name, number in SITES.items()}


@pytest.fixture(scope="module")
def sites(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    federation = Federation(tmp_path_factory.mktemp("families"), tiny_corpus)
    yield federation
    federation.stop()


@pytest.fixture(autouse=True)
def one_thread(sites: Federation, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("HOME", str(sites.home("notebook")))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(kind: str, rounds: int) -> ExperimentConfig:
    recipe = ModelRecipe(f"~/models/{kind}", dropout=0.0, **RECIPES.get(kind, {}))
    training = Training(rounds=rounds, batch_size=16, learning_rate=1e-3, augmentation=UNCHANGED)
    return ExperimentConfig(recipe, training)


def everywhere(sites: Federation, kind: str) -> None:
    for name in ("notebook", *SITES):
        longest = {"max_source_positions": 1500} if kind == "whisper" else {}
        checkpoint(kind, sites.home(name) / "models" / kind, **longest)


@pytest.mark.parametrize("kind", [k if k in FAST else pytest.param(k, marks=pytest.mark.slow) for k in CONFIGS])
def test_a_family_is_trained_by_real_processes(sites: Federation, kind: str, tmp_path: Path) -> None:
    everywhere(sites, kind)
    killed = kind not in RESTARTED
    config = config_of(kind, rounds=1 if killed else 2)
    experiment = submit(FederationHandle("localhost", sites.port), config, kind, SUPERB_KS)
    scores = {}
    for metric in experiment.metrics():
        if not killed and metric.task == "train" and metric.site == "two":
            killed = True
            sites.kill("two")
            sites.start_site("two")
        if metric.task == "validate_global" and metric.metric == "accuracy":
            scores[metric.round, metric.site] = metric.value
    assert killed

    shards = sites.shards()
    own = {name: ClipSet([u for u in rows if u.split == "train"]) for name, rows in shards.items()}
    reference = federated_averaging(config, own, lambda *_: None)
    real = experiment.last_weights()
    assert real.keys() == reference.keys()
    for name in real:
        np.testing.assert_allclose(real[name], reference[name], rtol=1e-4, atol=1e-5, err_msg=name)

    model = best_model(experiment, config, SUPERB_KS)
    validation = [ClipSet([u for u in rows if u.split == "validation"]) for rows in shards.values()]
    at_home = [evaluate(model, clips).accuracy for clips in validation]
    rounds = {number for number, _ in scores}
    assert at_home in [[pytest.approx(scores[number, site]) for site in SITES] for number in rounds], "what came home"

    save_pretrained(model, tmp_path / "model")
    ours = config.model.head == "adapter"
    network = AutoModelForAudioClassification.from_pretrained(tmp_path / "model", trust_remote_code=ours)
    assert tuple(network.config.id2label.values()) == SUPERB_KS.labels
    clip = validation[0].read([0])
    spotter = pipeline("audio-classification", model=str(tmp_path / "model"), trust_remote_code=ours)
    answers = spotter({"raw": clip[0], "sampling_rate": 16_000}, top_k=12)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(clip))[0].softmax(-1)
    assert {each["label"]: each["score"] for each in answers} == pytest.approx(
        dict(zip(SUPERB_KS.labels, expected.tolist(), strict=True)), abs=1e-3
    )


def test_another_front_end_at_one_site_is_told_in_the_notebook(sites: Federation) -> None:
    everywhere(sites, "wavlm")
    path = sites.home("two") / "models" / "wavlm" / "model.safetensors"
    state = load_file(path)
    name = next(name for name in state if "feature_extractor" in name)
    save_file(state | {name: state[name] * 1.01}, path, metadata={"format": "pt"})
    experiment = submit(FederationHandle("localhost", sites.port), config_of("wavlm", 1), "differs", SUPERB_KS)
    with pytest.raises(ExperimentFailed) as caught:
        list(experiment.metrics())
    told = str(caught.value)
    for words in ("two", "the frozen part of the model is not the experimenter's", "Copy the same files to"):
        assert words in told
    assert len(set(re.findall(r"\b[0-9a-f]{64}\b", told))) == 2, "both digests"
    assert os.fspath(sites.home("two")) not in told  # a path stays at its site
    assert os.fspath(sites.home("two")) in sites.log("two")
