"""A saved model, ready to be asked, and what is none."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from kws.config import ModelRecipe
from kws.model import build_model, save_pretrained
from lab.product.spotter import SpotterError, TorchSpotter, load, probabilities
from shard_descriptors.corpus import SUPERB_KS, ClipFormat


def test_it_answers_as_the_model_that_was_saved(saved_model: Path, spotter: TorchSpotter) -> None:
    clips = np.random.default_rng(0).normal(size=(3, 16_000)).astype(np.float32) / 10
    model = build_model(ModelRecipe(), 3, SUPERB_KS).eval()
    with torch.inference_mode():
        expected = model(torch.from_numpy(clips)).numpy()
    for given in (saved_model, saved_model.parent):  # a run will do
        asked = load(str(given))
        np.testing.assert_array_equal(asked.logits(clips), expected)
        assert (asked.labels, asked.sample_rate, asked.window) == (SUPERB_KS.labels, 16_000, 16_000)
    np.testing.assert_allclose(probabilities(expected).sum(axis=1), 1, rtol=1e-6)


def test_the_length_of_a_clip_is_saved_with_the_model(tmp_path: Path) -> None:
    form = ClipFormat(("a", "b"), 8000, 12_000)
    save_pretrained(build_model(ModelRecipe(), 0, form), tmp_path)
    asked = load(str(tmp_path))
    assert (asked.labels, asked.sample_rate, asked.window) == (("a", "b"), 8000, 12_000)


def test_what_cannot_be_asked_says_why(saved_model: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    untrained = shutil.copytree(saved_model, tmp_path / "untrained")
    state = load_file(untrained / "model.safetensors")
    del state["classifier.weight"]
    save_file(state, untrained / "model.safetensors", metadata={"format": "pt"})
    broken = shutil.copytree(saved_model, tmp_path / "broken")
    (broken / "model.safetensors").write_bytes(b"broken")
    other = shutil.copytree(saved_model, tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    foreign = shutil.copytree(saved_model, tmp_path / "foreign")
    (foreign / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForAudioClassification": "x.Y"}}))
    (foreign / "x.py").write_text("raise SystemExit('this must not run')\n")
    for folder, reason in {
        tmp_path / "none": "there is no folder",
        tmp_path / "empty": "holds no config.json",
        untrained: "whose classifier was never trained",
        broken: "cannot be loaded as a model that classifies audio",
        other: "a model of type 'bert'",
        foreign: "comes with Python code of its own, .* --trust-code",
    }.items():
        with pytest.raises(SpotterError, match=reason):
            load(str(folder))


def test_a_head_of_this_project_needs_no_trust(tmp_path: Path) -> None:
    save_pretrained(build_model(ModelRecipe(head="adapter"), 0, SUPERB_KS), tmp_path)
    (code,) = tmp_path.glob("*.py")
    code.write_text("raise SystemExit('what lies in the folder must not run')\n")
    assert load(str(tmp_path)).logits(np.ones((1, 16_000), np.float32)).shape == (1, 12)
