"""What is trained travels; what does not is the same everywhere, or refused."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from small_families import CONFIGS, checkpoint
from small_network import Tones, plain, small_recipe
from transformers import AutoModelForAudioClassification

from federation.wire.models import Packed, Piece
from kws.config import TRAINED, ExperimentConfig, ModelRecipe
from kws.model import (
    Classifier,
    ModelError,
    build_model,
    check_frozen,
    frozen_digest,
    load_weights,
    save_adapter,
    save_pretrained,
    trained_tensors,
    trained_weights,
)
from kws.models.loading import head_settings, network_class
from kws.models.registry import FAMILIES
from kws.models.trained import merged_state, train_only
from kws.training import build_optimizer, train_round
from lab.simulation import federated_averaging
from rules.in_memory import begin, next_state
from rules.mean import Mean
from shard_descriptors.corpus import SUPERB_KS, ClipFormat

CLIPS = torch.from_numpy(Tones.make(24).waveforms)
TENTH = ClipFormat(num_samples=1600)
every_family = pytest.mark.parametrize("kind", CONFIGS)


@torch.inference_mode()
def logits_of(model: Classifier, clips: torch.Tensor = CLIPS) -> torch.Tensor:
    return model.eval()(clips)


def trained_a_round(model: Classifier, seed: int = 0) -> Classifier:
    settings = plain(learning_rate=1e-2)
    train_round(model, build_optimizer(model, settings), Tones.make(24, seed), settings, 0)
    return model


# LoRA


@every_family
def test_lora_starts_as_the_network_without_it(kind: str, tmp_path: Path) -> None:
    checkpoint(kind, tmp_path)
    plainly, adapted = (build_model(ModelRecipe(str(tmp_path), trained=t), 0, TENTH) for t in ("all", "lora"))
    torch.testing.assert_close(logits_of(adapted), logits_of(plainly))
    travels = trained_weights(adapted)
    assert not any("lora_A" in name for name in travels)
    encoder = [name for name in travels if name.startswith(FAMILIES[kind].encoder + ".")]
    assert len(encoder) == 2 * 2, "two maps in each of two layers"
    assert all("lora_B" in name for name in encoder)


@every_family
def test_the_mean_of_the_matrices_is_the_mean_of_the_models(kind: str, tmp_path: Path) -> None:
    """What plain averaging of A and B does not give (Sun et al. 2024): W + mean(B) A = mean(W + B A) for one A."""
    checkpoint(kind, tmp_path)
    recipe = ModelRecipe(str(tmp_path), trained="lora", lora_rank=2)
    sites = [trained_a_round(build_model(recipe, 0, TENTH), seed) for seed in (1, 2)]
    states = [merged_state(model.network) for model in sites]
    averaged = build_model(recipe, 0, TENTH)
    sent = [trained_weights(model) for model in sites]
    load_weights(averaged, next_state(Mean(), begin(sent[0]), sent, [1, 3]).model)
    for name, tensor in merged_state(averaged.network).items():
        if tensor.is_floating_point():
            expected = (states[0][name] + 3 * states[1][name]) / 4
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)
    changed = [name for name in states[0] if not torch.equal(states[0][name], states[1][name])]
    assert len([name for name in changed if name.startswith(FAMILIES[kind].encoder + ".")]) >= 2 * 2


@every_family
@pytest.mark.parametrize("head", ["own", "adapter"])
def test_lora_is_saved_merged_and_alone(kind: str, head: str, tmp_path: Path) -> None:
    checkpoint(kind, tmp_path / "base")
    recipe = ModelRecipe(str(tmp_path / "base"), trained="lora", head=head)
    model = trained_a_round(build_model(recipe, 0, TENTH))
    expected = logits_of(model)
    before = trained_weights(model)

    save_pretrained(model, tmp_path / "merged")
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))
    merged = build_model(ModelRecipe(str(tmp_path / "merged"), head=head), 5, TENTH)
    torch.testing.assert_close(logits_of(merged), expected, rtol=1e-4, atol=1e-4)
    if head == "own":
        AutoModelForAudioClassification.from_pretrained(tmp_path / "merged")

    save_adapter(model, tmp_path / "alone")
    base = build_model(ModelRecipe(str(tmp_path / "base"), head=head), 5, TENTH)
    assert not torch.allclose(logits_of(base), expected, atol=1e-3)
    base.network = PeftModel.from_pretrained(base.network, str(tmp_path / "alone"))
    with torch.inference_mode():
        found = base.network.eval()(**model.inputs(CLIPS)).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    assert all(np.array_equal(before[name], array) for name, array in trained_weights(model).items())
    trained_a_round(model)  # saving has left it as it was


@pytest.mark.parametrize(("head", "trained"), [("weighted_sum", "lora"), ("own", "head")])
def test_what_cannot_be_saved_alone_says_so(head: str, trained: str, tmp_path: Path) -> None:
    model = build_model(ModelRecipe(str(checkpoint("hubert", tmp_path)), head=head, trained=trained), 0, TENTH)
    with pytest.raises(ModelError, match="use save_pretrained"):
        save_adapter(model, tmp_path / "alone")


def test_more_layers_than_there_are(tmp_path: Path) -> None:
    recipe = ModelRecipe(str(checkpoint("hubert", tmp_path)), trained="top_layers", top_layers=3)
    with pytest.raises(ModelError, match=r"top_layers is 3; .* has 2 layers"):
        build_model(recipe, 0, TENTH)


@every_family
def test_the_top_layers_are_the_last_ones(kind: str, tmp_path: Path) -> None:
    model = build_model(ModelRecipe(str(checkpoint(kind, tmp_path)), trained="top_layers", top_layers=1), 0, TENTH)
    family = FAMILIES[kind]
    encoder = {name for name in trained_weights(model) if name.startswith(f"{family.encoder}.")}
    assert encoder
    assert all(name.startswith(f"{family.encoder}.{family.layers}.1.") for name in encoder)


@every_family
def test_biases_and_norms_are_no_matrices_and_travel_as_one(kind: str, tmp_path: Path) -> None:
    recipe = ModelRecipe(str(checkpoint(kind, tmp_path)), trained="biases_and_norms")
    model = trained_a_round(build_model(recipe, 0, TENTH))
    prefix = f"{FAMILIES[kind].encoder}."
    trained = {n: w for n, w in model.network.named_parameters() if w.requires_grad and n.startswith(prefix)}
    assert all(weights.ndim == 1 for weights in trained.values())
    assert {name.rsplit(".", 1)[1] for name in trained} == {"bias", "weight"}
    travels = trained_weights(model)
    assert not any(name.startswith(prefix) for name in travels)
    other = build_model(recipe, 0, TENTH)
    load_weights(other, travels)
    assert torch.equal(logits_of(other), logits_of(model))
    for name, weights in trained.items():
        assert torch.equal(other.network.get_parameter(name), weights), name
    with pytest.raises(ModelError, match=r"biases_and_norms has shape \(3,\)"):
        load_weights(other, travels | {"biases_and_norms": np.zeros(3, np.float32)})


# What is frozen behaves as in evaluation


def test_what_is_frozen_has_no_dropout(tmp_path: Path) -> None:
    checkpoint("hubert", tmp_path)

    def differs(**changes: object) -> bool:
        model = build_model(ModelRecipe(str(tmp_path), dropout=0.4, **changes), 0, TENTH).train()
        with torch.no_grad():
            return not torch.equal(model(CLIPS), model(CLIPS))

    assert not differs(trained="head")
    for trained in ("all", "top_layers", "lora", "biases_and_norms"):
        assert differs(trained=trained), trained


# The digest of what does not travel


@every_family
@pytest.mark.parametrize("trained", ["head", "lora", "biases_and_norms", "all_but_feature_encoder"])
def test_the_digest_is_of_what_does_not_travel(kind: str, trained: str, tmp_path: Path) -> None:
    checkpoint(kind, tmp_path)
    recipe = ModelRecipe(str(tmp_path), trained=trained)
    model = build_model(recipe, 0, TENTH)
    before = frozen_digest(model)
    trained_a_round(model)
    assert frozen_digest(model) == before, "training does not change it"
    other = build_model(recipe, 0, TENTH)
    load_weights(other, trained_weights(model))
    check_frozen(other, before)
    travels = {name for name, weights in model.network.named_parameters() if weights.requires_grad}
    for name, tensor in model.network.state_dict().items():
        statistics = "running" in name and name.rsplit(".", 1)[0] + ".weight" in travels
        if name in travels or statistics or not tensor.is_floating_point():
            continue
        kept = tensor.reshape(-1)[0].item()
        tensor.reshape(-1)[0] = kept + 1e-3
        assert frozen_digest(model) != before, name
        tensor.reshape(-1)[0] = kept
    assert frozen_digest(model) == before


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("config.json", {"hidden_act": "relu"}),
        ("config.json", {"do_stable_layer_norm": True}),
        ("preprocessor_config.json", {"do_normalize": False}),
        ("preprocessor_config.json", {"return_attention_mask": True}),
    ],
)
def test_settings_do_not_travel_either(file: str, change: dict[str, object], tmp_path: Path) -> None:
    for site in ("a", "b", "c"):
        small_recipe(tmp_path / site)
    path = tmp_path / "b" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    a, b, c = (frozen_digest(build_model(ModelRecipe(str(tmp_path / site)), 0, SUPERB_KS)) for site in ("a", "b", "c"))
    assert a == c, "the same files in another folder"
    assert a != b


def test_another_front_end_at_one_site_is_refused(tmp_path: Path) -> None:
    for site in ("a", "b"):
        small_recipe(tmp_path / site)
    path = tmp_path / "b" / "model.safetensors"
    state = load_file(path)
    state["wav2vec2.feature_extractor.conv_layers.0.conv.weight"] *= 1.01
    save_file(state, path, metadata={"format": "pt"})
    expected = frozen_digest(build_model(ModelRecipe(str(tmp_path / "a")), 0, SUPERB_KS))
    theirs = build_model(ModelRecipe(str(tmp_path / "b")), 0, SUPERB_KS)
    with pytest.raises(ModelError) as caught:
        check_frozen(theirs, expected)
    for text in (expected, frozen_digest(theirs), str(tmp_path / "b"), "Copy the same files", "model.revision"):
        assert text in str(caught.value)


# What a batch norm learns


def test_running_statistics_travel_and_come_home(tmp_path: Path) -> None:
    recipe = ModelRecipe(str(checkpoint("wav2vec2-conformer", tmp_path)), trained="all")
    config = ExperimentConfig(recipe, plain(rounds=2, learning_rate=1e-2))
    sites = {"one": Tones.make(24, 1), "two": Tones.make(24, 2)}
    told = federated_averaging(config, sites, lambda *_: None)
    statistics = [name for name in told if "running" in name]
    assert len(statistics) == 2 * 2
    home = build_model(recipe, 0, TENTH)
    fresh = trained_weights(home)
    assert all(not np.array_equal(fresh[name], told[name]) for name in statistics)
    load_weights(home, told)
    for name in statistics:
        assert np.array_equal(home.network.get_buffer(name).numpy(), told[name])
    elsewhere = copy.deepcopy(home)
    trained_a_round(elsewhere)
    load_weights(elsewhere, told)
    assert torch.equal(logits_of(elsewhere), logits_of(home)), "nothing of the round is left over"


@pytest.mark.parametrize("trained", ["head", "lora"])
def test_running_statistics_of_a_frozen_norm_stay_as_they_are(tmp_path: Path, trained: str) -> None:
    recipe = ModelRecipe(str(checkpoint("wav2vec2-conformer", tmp_path)), trained=trained)
    model = build_model(recipe, 0, TENTH)
    assert not any("running" in name for name in trained_tensors(model))
    before = {name: buffer.clone() for name, buffer in model.network.named_buffers()}
    trained_a_round(model)
    assert all(torch.equal(buffer, before[name]) for name, buffer in model.network.named_buffers())


def test_a_variance_is_never_below_zero(tmp_path: Path) -> None:
    recipe = ModelRecipe(str(checkpoint("wav2vec2-conformer", tmp_path)), trained="all")
    model = build_model(recipe, 0, TENTH)
    weights = {n: np.full_like(a, -0.1) if "running_var" in n else a for n, a in trained_weights(model).items()}
    load_weights(model, weights)
    assert logits_of(model).isfinite().all()


# Bytes


BASES: dict[str, dict[str, object]] = {
    "wav2vec2": {},
    "wavlm": {},
    "wav2vec2-conformer": {"position_embeddings_type": "rotary"},
    "whisper": {"d_model": 512, "encoder_layers": 6, "encoder_attention_heads": 8, "encoder_ffn_dim": 2048},
    "audio-spectrogram-transformer": {},
}


@pytest.mark.parametrize("head", ["own", "weighted_sum"])
@pytest.mark.parametrize("trained", TRAINED)
@pytest.mark.parametrize("kind", BASES)
def test_a_round_takes_the_bytes_of_what_is_trained(kind: str, trained: str, head: str) -> None:
    recipe = ModelRecipe("base", trained=trained, head=head)
    made = network_class(FAMILIES[kind], recipe)
    config = made.config_class(**BASES[kind] | {"num_labels": 12})
    config.update(head_settings(recipe))
    with torch.device("meta"):
        network = made(config)
        train_only(network, FAMILIES[kind], recipe, 0)
    network.to_empty(device="cpu")  # memory that nobody touches
    travels = trained_tensors(Classifier(network, None))
    size = sum(array.nbytes for array in travels.values())
    statistics = 4 * sum(buffer.numel() for name, buffer in network.named_buffers() if "running" in name)
    trained_bytes = 4 * sum(weights.numel() for weights in network.parameters() if weights.requires_grad)
    assert trained_bytes <= size <= trained_bytes + statistics
    packed = Packed({name: Piece.of(array) for name, array in travels.items()})
    assert packed.size <= 1.01 * size
