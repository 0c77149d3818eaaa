import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_network import Tones, classifier, plain, small_recipe
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from kws.config import ModelRecipe
from kws.model import Classifier, ModelError, build_model, load_weights, save_pretrained, trained_weights
from kws.training import build_optimizer, train_round
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.labels import LABELS

CLIPS = torch.from_numpy(Tones.make(24).waveforms)


@torch.inference_mode()
def logits_of(model: Classifier, clips: torch.Tensor = CLIPS) -> torch.Tensor:
    return model.eval()(clips)


def test_the_seed_decides_what_is_not_pretrained() -> None:
    recipe = ModelRecipe("tiny")
    first, same, other = (trained_weights(build_model(recipe, seed, SUPERB_KS)) for seed in (0, 0, 1))
    assert all(np.array_equal(first[name], same[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)
    assert all(tensor.dtype == np.float32 for tensor in first.values())


def test_tiny_knows_the_labels_and_trains_its_front_end() -> None:
    model = build_model(ModelRecipe("tiny"), 0, SUPERB_KS)
    assert model.labels == LABELS
    assert logits_of(model).shape == (24, 12)
    before = trained_weights(model)
    train_round(model, build_optimizer(model, plain()), Tones.make(24), plain(), 0, 1)
    after = trained_weights(model)
    front_end = [name for name in before if "feature_extractor" in name]
    assert front_end
    for name in [*front_end, "classifier.weight", "projector.weight"]:
        assert not np.array_equal(before[name], after[name]), name


def test_a_saved_folder_loads_everywhere_with_the_same_scores(tmp_path: Path) -> None:
    model = classifier()
    save_pretrained(model, tmp_path)
    expected = torch.softmax(logits_of(model), dim=-1)

    again = build_model(ModelRecipe(str(tmp_path)), 5, SUPERB_KS)
    assert torch.equal(logits_of(again), logits_of(model))

    network = AutoModelForAudioClassification.from_pretrained(tmp_path)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path)
    values = extractor(list(CLIPS.numpy()), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        torch.testing.assert_close(network(**values).logits, logits_of(model), rtol=1e-3, atol=1e-4)

    spotter = pipeline("audio-classification", model=str(tmp_path))
    for clip, scores in zip(CLIPS[:3].numpy(), expected, strict=False):
        answers = spotter({"raw": clip, "sampling_rate": 16_000}, top_k=len(LABELS))
        assert {each["label"]: each["score"] for each in answers} == pytest.approx(
            dict(zip(LABELS, scores.tolist(), strict=True)), abs=1e-4
        )


def test_padding_does_not_count_where_the_extractor_asks_for_a_mask(tmp_path: Path) -> None:
    masked, unmasked = classifier(norm="layer", mask=True), classifier(norm="layer", mask=False)
    unmasked.load_state_dict(masked.state_dict())
    sound = CLIPS[:3, :1000] + 0.2  # an offset, as cheap microphones have
    padded = torch.nn.functional.pad(sound, (0, 600))
    torch.testing.assert_close(logits_of(masked, padded), logits_of(masked, sound), rtol=1e-4, atol=1e-4)
    assert (logits_of(unmasked, padded) - logits_of(unmasked, sound)).abs().max() > 1e-2

    save_pretrained(masked, tmp_path)  # whoever loads the folder gets the same scores for the clip without padding
    values = AutoFeatureExtractor.from_pretrained(tmp_path)(
        list(sound.numpy()), sampling_rate=16_000, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = AutoModelForAudioClassification.from_pretrained(tmp_path)(**values).logits
    torch.testing.assert_close(logits_of(masked, padded), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("norm", "mask"), [("group", False), ("layer", True)])
def test_digital_silence_has_finite_scores(norm: str, mask: bool) -> None:
    clips = torch.cat([torch.zeros(1, 1600), CLIPS[:1]])
    assert logits_of(classifier(norm=norm, mask=mask), clips).isfinite().all()


def test_a_frozen_encoder_neither_travels_nor_changes(tmp_path: Path) -> None:
    small_recipe(tmp_path)
    model = build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)
    travelling = trained_weights(model)
    frozen = {n: t.clone() for n, t in model.network.state_dict().items() if "feature_extractor" in n}
    assert frozen
    assert not frozen.keys() & travelling.keys()
    train_round(model, build_optimizer(model, plain()), Tones.make(24), plain(), 0, 1)
    after = model.network.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in frozen.items())
    assert not np.array_equal(trained_weights(model)["classifier.weight"], travelling["classifier.weight"])

    thawed = build_model(ModelRecipe(str(tmp_path), trained="all"), 0, SUPERB_KS)
    everything = {name for name, _ in thawed.network.named_parameters()}
    assert trained_weights(thawed).keys() == everything - {"wav2vec2.masked_spec_embed"}, "which nothing reads"


def test_weights_go_from_one_model_to_another_exactly(tmp_path: Path) -> None:
    recipe = small_recipe(tmp_path)
    trained, fresh = build_model(recipe, 0, SUPERB_KS), build_model(recipe, 0, SUPERB_KS)
    train_round(trained, build_optimizer(trained, plain()), Tones.make(24), plain(), 0, 1)
    weights = trained_weights(trained)
    before = {name: tensor.copy() for name, tensor in weights.items()}
    load_weights(fresh, weights)
    assert torch.equal(logits_of(fresh), logits_of(trained))
    train_round(fresh, build_optimizer(fresh, plain()), Tones.make(24), plain(), 1, 1)
    assert all(np.array_equal(weights[name], before[name]) for name in weights), "the copies must not follow the model"


def test_weights_of_another_model_are_refused() -> None:
    model = classifier()
    weights = trained_weights(model)
    with pytest.raises(ModelError, match=r"classifier\.bias"):
        load_weights(model, {name: tensor for name, tensor in weights.items() if name != "classifier.bias"})
    with pytest.raises(ModelError, match=r"classifier\.extra"):
        load_weights(model, weights | {"classifier.extra": np.zeros(1, np.float32)})
    with pytest.raises(ModelError, match=r"classifier\.bias has shape \(11,\).*\(12,\)"):
        load_weights(model, weights | {"classifier.bias": np.zeros(11, np.float32)})


def test_a_hub_name_without_the_hub_says_how_to_get_the_weights(tmp_path: Path) -> None:
    code = (
        "from kws.config import ModelRecipe; from kws.model import ModelError, build_model\n"
        "from shard_descriptors.corpus import SUPERB_KS\n"
        "try: build_model(ModelRecipe('facebook/wav2vec2-base'), 0, SUPERB_KS)\n"
        "except ModelError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    for text in ("facebook/wav2vec2-base", "hf download", "model.name", "'tiny'"):
        assert text in done.stdout


@pytest.mark.parametrize("name", ["/no/such/folder", "./models/mine", "models/mine/base"])
def test_a_folder_that_is_not_there(name: str) -> None:
    with pytest.raises(ModelError, match=f"there is no folder {name} on this machine; every site .*Copy it there"):
        build_model(ModelRecipe(name), 0, SUPERB_KS)


def test_another_sampling_rate_is_refused(tmp_path: Path) -> None:
    small_recipe(tmp_path)
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sampling_rate": 8000}))
    with pytest.raises(ModelError, match=r"8000 Hz.*16000 Hz"):
        build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)


@pytest.mark.parametrize("weighs", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_what_is_computed_once_gives_the_same_logits(weighs: bool, mask: bool) -> None:
    model = classifier(norm="layer", mask=mask, weighs=weighs)
    clips = torch.nn.functional.pad(CLIPS[:4, :1200], (0, 400))
    inputs = model.inputs(clips)
    pooled, features = model.pooled(inputs), model.conv_features(inputs)
    assert pooled.shape == (4, 2 if weighs else 1, 16)
    with torch.inference_mode():
        torch.testing.assert_close(model.logits_from_pooled(pooled), model.logits(inputs))
        torch.testing.assert_close(model.logits_from_conv(features, inputs.get("attention_mask")), model.logits(inputs))
        if mask:
            lengths = inputs["attention_mask"].sum(dim=1, keepdim=True)
            torch.testing.assert_close(model.logits_from_conv(features, lengths), model.logits(inputs))
