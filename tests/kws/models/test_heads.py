"""The heads: what they compute, and that a saved one needs nothing of this project."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from small_families import CONFIGS, checkpoint

from kws.config import ModelRecipe
from kws.model import Classifier, build_model, save_pretrained
from kws.models import heads
from shard_descriptors.corpus import ClipFormat

HALF = ClipFormat(num_samples=8000)
CLIP = torch.linspace(-1, 1, 8000).sin()[None]


@torch.inference_mode()
def logits_of(model: Classifier) -> torch.Tensor:
    return model.eval()(CLIP)


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_weighted_sum_by_hand(tmp_path: Path, kind: str) -> None:
    """SUPERB (Yang et al. 2021): softmax-weighted sum of all hidden states, linear, mean over time, linear."""
    recipe = ModelRecipe(str(checkpoint(kind, tmp_path)), head="weighted_sum", head_size=8)
    network = build_model(recipe, 0, HALF).eval().network
    with torch.no_grad():
        network.layer_weights.copy_(torch.tensor([0.3, -0.2, 1.0]))
    inputs = build_model(recipe, 0, HALF).inputs(CLIP)
    with torch.inference_mode():
        states = heads.encoder_of(network)(**inputs, output_hidden_states=True).hidden_states
        share = np.exp([0.3, -0.2, 1.0]) / np.exp([0.3, -0.2, 1.0]).sum()
        mixed = sum(float(each) * state for each, state in zip(share, states, strict=True))
        projected = mixed @ network.projector.weight.T + network.projector.bias
        tokens = projected[:, :2] if kind == "audio-spectrogram-transformer" else projected
        by_hand = tokens.mean(dim=1) @ network.classifier.weight.T + network.classifier.bias
        torch.testing.assert_close(network(**inputs).logits, by_hand, rtol=1e-4, atol=1e-5)
    assert network.projector.weight.shape[0] == 8


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_adapter_by_hand(tmp_path: Path, kind: str) -> None:
    recipe = ModelRecipe(str(checkpoint(kind, tmp_path)), head="adapter", head_size=8, adapter_hidden_size=4)
    model = build_model(recipe, 0, HALF).eval()
    inputs, network = model.inputs(CLIP), model.network
    narrow, _, _, wide = network.adapter
    first, _, _, last = network.classifier
    assert (narrow.out_features, wide.in_features, first.out_features) == (4, 4, 8)
    with torch.inference_mode():
        frames = heads.encoder_of(network)(**inputs).last_hidden_state
        frames = wide(narrow(frames).relu())
        mean = (frames[:, :2] if kind == "audio-spectrogram-transformer" else frames).mean(dim=1)
        torch.testing.assert_close(model.logits(inputs), last(first(mean).relu()), rtol=1e-4, atol=1e-5)
        loss = network(**inputs, labels=torch.tensor([3])).loss
        torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(model.logits(inputs), torch.tensor([3])))


def test_the_adapters_dropout_is_the_recipes(tmp_path: Path) -> None:
    checkpoint("hubert", tmp_path)

    def differs(dropout: float) -> bool:
        recipe = ModelRecipe(str(tmp_path), head="adapter", trained="head", dropout=dropout)
        model = build_model(recipe, 0, HALF).train()
        with torch.no_grad():
            return not torch.equal(model(CLIP), model(CLIP))

    assert differs(0.5)
    assert not differs(0.0)


FRESH = """
import json, sys
for name in ("kws", "lab", "federation", "shard_descriptors"):
    sys.modules[name] = None  # an import of this project's packages fails
import numpy, torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline
clip = torch.linspace(-1, 1, 8000).sin()
answers = {}
for folder in sys.argv[1:]:
    network = AutoModelForAudioClassification.from_pretrained(folder, trust_remote_code=True)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    with torch.inference_mode():
        logits = network(**extractor(clip.numpy(), sampling_rate=16000, return_tensors="pt")).logits
    spotter = pipeline("audio-classification", model=folder, trust_remote_code=True)
    scores = spotter({"raw": clip.numpy(), "sampling_rate": 16000}, top_k=12)
    answers[folder] = logits[0].tolist(), {each["label"]: each["score"] for each in scores}
print(json.dumps(answers))
"""


SOME = ("audio-spectrogram-transformer", "hubert", "whisper")


@pytest.mark.parametrize(
    "kinds", [SOME, pytest.param(tuple(CONFIGS.keys() - set(SOME)), marks=pytest.mark.slow)], ids=["some", "others"]
)
def test_a_saved_head_needs_nothing_of_this_project(tmp_path: Path, kinds: tuple[str, ...]) -> None:
    """In a fresh process elsewhere, without this project's packages."""
    models = {}
    for kind in kinds:
        checkpoint(kind, tmp_path / kind)
        for head in ("adapter", "weighted_sum"):
            model = build_model(ModelRecipe(str(tmp_path / kind), head=head), 0, HALF)
            folder = tmp_path / f"{kind}-{head}"
            save_pretrained(model, folder)
            models[str(folder)] = model
            ours = head == "adapter" or kind == "audio-spectrogram-transformer"
            assert (folder / "heads.py").exists() == ours, "the library has its own weighted sum"
    environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-I", "-c", FRESH, *models],
        cwd="/",
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "not supported" not in done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    for folder, model in models.items():
        logits, scores = answers[folder]
        expected = logits_of(model)[0]
        torch.testing.assert_close(torch.tensor(logits), expected, rtol=1e-3, atol=1e-4)
        assert [scores[label] for label in model.labels] == pytest.approx(expected.softmax(-1).tolist(), abs=1e-4)


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_head_goes_on_and_another_takes_its_place(tmp_path: Path, kind: str) -> None:
    checkpoint(kind, tmp_path / "a")
    model = build_model(ModelRecipe(str(tmp_path / "a"), head="adapter"), 0, HALF)
    save_pretrained(model, tmp_path / "b")
    again = build_model(ModelRecipe(str(tmp_path / "b"), head="adapter"), 9, HALF)
    assert torch.equal(logits_of(again), logits_of(model))
    own = build_model(ModelRecipe(str(tmp_path / "b"), head="weighted_sum"), 0, HALF)
    fresh = build_model(ModelRecipe(str(tmp_path / "a"), head="weighted_sum"), 0, HALF)
    assert torch.equal(logits_of(own), logits_of(fresh)), "the head is new, from the seed; the encoder is the same"
    own = build_model(ModelRecipe(str(tmp_path / "b")), 0, HALF)
    save_pretrained(own, tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    assert not {"auto_map", "head"} & config.keys()


def test_a_saved_model_says_how_it_is_loaded_and_what_happens_otherwise(tmp_path: Path) -> None:
    checkpoint("hubert", tmp_path / "hubert")
    for head, needed in (("own", False), ("adapter", True)):
        save_pretrained(build_model(ModelRecipe(str(tmp_path / "hubert"), head=head), 0, HALF), tmp_path / head)
        card = (tmp_path / head / "README.md").read_text()
        assert ("trust_remote_code=True" in card) == needed
        assert ("answers at random" in card) == needed
        for told in ("at 16000 Hz", "yes, no, up", "_silence_"):
            assert told in card


def test_a_new_head_is_no_report_in_a_notebook(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoint("hubert", tmp_path)
    verbosity, library = transformers.logging.get_verbosity(), logging.getLogger("transformers")
    library.addHandler(caplog.handler)  # it lets nothing through to others
    try:
        build_model(ModelRecipe(str(tmp_path), head="adapter", trained="head"), 0, HALF)
    finally:
        library.removeHandler(caplog.handler)
    assert not any(word in caplog.text for word in ("MISSING", "newly initialized", "UNEXPECTED")), caplog.text
    assert transformers.logging.get_verbosity() == verbosity
