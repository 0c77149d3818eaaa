"""Every family, with tiny random weights: inputs, outputs, what is computed once, and what others load."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_families import CONFIGS, checkpoint, digests, forget
from small_network import Tones, plain
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, pipeline

from kws.config import HEADS, TRAINED, ExperimentConfig, ModelRecipe
from kws.model import Classifier, ModelError, build_model, load_weights, save_pretrained, trained_weights
from kws.models.registry import FAMILIES
from kws.tasks import ClassifierProvider, ShardData, TrainedTensors, train, validate
from kws.training import build_optimizer, train_round
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.labels import LABELS

HALF = ClipFormat(num_samples=8000)
"""Clips of half a second."""

GENERATOR = torch.Generator().manual_seed(7)
CLIPS = torch.randn(3, 8000, generator=GENERATOR) * 0.1
CLIPS[1, 5000:] = 0  # padded
CLIPS[2] = 0  # digital silence

every_family = pytest.mark.parametrize("kind", CONFIGS)


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    made: dict[str, str] = {}

    def get(kind: str) -> str:
        if kind not in made:
            made[kind] = str(checkpoint(kind, tmp_path_factory.mktemp(kind)))
        return made[kind]

    return get


class HalfSeconds(Tones):
    """Tones of half a second."""

    format = HALF

    @classmethod
    def made(cls, count: int, seed: int = 0) -> "HalfSeconds":
        short = Tones.make(count, seed)
        return cls(np.tile(short.waveforms, (1, 5)), short.labels)


def with_path() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}


@torch.inference_mode()
def logits_of(model: Classifier, clips: torch.Tensor = CLIPS) -> torch.Tensor:
    return model.eval()(clips)


def test_the_registry_holds_what_the_library_classifies_audio_with() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES

    assert {kind: family.library for kind, family in FAMILIES.items()} == MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES
    assert FAMILIES.keys() == CONFIGS.keys()


@every_family
def test_the_inputs_are_those_of_the_librarys_extractor(kind: str, folder_of: Callable[[str], str]) -> None:
    model = build_model(ModelRecipe(folder_of(kind)), 0, HALF)
    extractor = AutoFeatureExtractor.from_pretrained(folder_of(kind))
    ours = model.inputs(CLIPS[:1])
    theirs = extractor(list(CLIPS[:1].numpy()), sampling_rate=16_000, return_tensors="pt")
    assert ours.keys() == theirs.keys()
    exact = not FAMILIES[kind].hears_waveforms  # ours standardises a batch at once, theirs clip by clip
    for name, values in theirs.items():
        torch.testing.assert_close(ours[name], values, rtol=0, atol=0 if exact else 1e-5, check_dtype=exact)
    together = model.inputs(CLIPS)
    for name, values in ours.items():
        torch.testing.assert_close(together[name][:1], values, rtol=1e-5, atol=1e-5)
    assert all(values.isfinite().all() for values in together.values())


@every_family
def test_padding_is_masked_as_the_library_masks_it(kind: str, folder_of: Callable[[str], str]) -> None:
    model = build_model(ModelRecipe(folder_of(kind)), 0, HALF)
    if "attention_mask" not in model.inputs(CLIPS):
        pytest.skip("this family hears the padding")
    clips = [CLIPS[0].numpy(), CLIPS[1, :5000].numpy()]
    values = model.extractor(clips, sampling_rate=16_000, padding=True, return_tensors="pt")
    with torch.inference_mode():
        theirs = model.eval().network(**values).logits
    torch.testing.assert_close(logits_of(model)[:2], theirs, rtol=1e-4, atol=1e-4)


@every_family
@pytest.mark.parametrize("head", HEADS)
def test_every_tensor_that_travels_is_trained(kind: str, head: str, folder_of: Callable[[str], str]) -> None:
    frozen_somewhere = {}
    for trained in TRAINED:
        model = build_model(ModelRecipe(folder_of(kind), head=head, head_size=8, trained=trained), 0, HALF).train()
        torch.nn.functional.cross_entropy(model(CLIPS), torch.tensor([0, 1, 2])).backward()
        for name, weights in model.network.named_parameters():
            if weights.requires_grad:
                assert weights.grad is not None, (trained, name)
                assert weights.grad.abs().sum() > 0, (trained, name)
            else:
                assert weights.grad is None, (trained, name)
        frozen_somewhere[trained] = sum(each.size for each in trained_weights(model).values())
        assert logits_of(model).isfinite().all()
    sizes = frozen_somewhere
    assert sizes["head"] < min(size for name, size in sizes.items() if name != "head")
    assert max(sizes["top_layers"], sizes["lora"], sizes["biases_and_norms"]) < sizes["all"]
    assert sizes["all_but_feature_encoder"] <= sizes["all"]
    assert (sizes["all_but_feature_encoder"] == sizes["all"]) == (not FAMILIES[kind].front)


@every_family
@pytest.mark.parametrize("head", ["own", "weighted_sum"])
def test_what_is_computed_once_gives_the_same_logits(kind: str, head: str, folder_of: Callable[[str], str]) -> None:
    model = build_model(ModelRecipe(folder_of(kind), head=head, trained="head"), 0, HALF).train()
    if head == "weighted_sum":
        with torch.no_grad():
            model.network.layer_weights.copy_(torch.tensor([0.5, -1.0, 2.0]))
    inputs = model.inputs(CLIPS)
    pooled, features = model.pooled(inputs), model.conv_features(inputs)
    assert pooled.shape == (3, {"own": 1, "weighted_sum": 3}[head], pooled.shape[-1])
    with torch.no_grad():
        expected = model.logits(inputs)  # in training mode: a frozen encoder has no dropout
        torch.testing.assert_close(expected, logits_of(model))
        torch.testing.assert_close(model.logits_from_pooled(pooled), expected, rtol=1e-4, atol=1e-4)
        mask = inputs.get("attention_mask")
        torch.testing.assert_close(model.logits_from_conv(features, mask), expected)
        if mask is not None and FAMILIES[kind].hears_waveforms:
            torch.testing.assert_close(model.logits_from_conv(features, mask.sum(dim=1, keepdim=True)), expected)


def test_a_head_on_every_frame_needs_more_than_the_mean(folder_of: Callable[[str], str]) -> None:
    model = build_model(ModelRecipe(folder_of("hubert"), head="adapter"), 0, HALF)
    with pytest.raises(ModelError, match="'adapter', which works on every frame"):
        model.pooled(model.inputs(CLIPS))
    with pytest.raises(ModelError, match="'adapter', which works on every frame"):
        model.logits_from_pooled(torch.zeros(1, 1, 32))


@every_family
def test_a_trained_model_goes_where_others_load_it(kind: str, folder_of: Callable[[str], str], tmp_path: Path) -> None:
    model = build_model(ModelRecipe(folder_of(kind)), 0, HALF)
    clips, training = HalfSeconds.made(16), plain(learning_rate=1e-2)
    before = trained_weights(model)
    train_round(model, build_optimizer(model, training), clips, training, 0)
    assert any(not np.array_equal(before[name], array) for name, array in trained_weights(model).items())
    save_pretrained(model, tmp_path / "out")
    expected = logits_of(model)

    again = build_model(ModelRecipe(str(tmp_path / "out")), 5, HALF)
    assert torch.equal(logits_of(again), expected)
    assert again.labels == LABELS

    network = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    with torch.inference_mode():
        values = extractor(list(CLIPS[:1].numpy()), sampling_rate=16_000, return_tensors="pt")
        torch.testing.assert_close(network(**values).logits, expected[:1], rtol=1e-3, atol=1e-4)
    spotter = pipeline("audio-classification", model=str(tmp_path / "out"))
    answers = spotter({"raw": CLIPS[0].numpy(), "sampling_rate": 16_000}, top_k=len(LABELS))
    assert {each["label"]: each["score"] for each in answers} == pytest.approx(
        dict(zip(LABELS, expected[0].softmax(-1).tolist(), strict=True)), abs=1e-4
    )


def test_two_processes_build_the_same_model_to_the_bit(tmp_path: Path) -> None:
    for kind in CONFIGS:
        forget(checkpoint(kind, tmp_path / kind), "masked_spec_embed")  # as facebook/wav2vec2-base-960h, for one
    code = f"from small_families import digests; print(*digests({str(tmp_path)!r}), sep='\\n')"
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=with_path())
    here = digests(str(tmp_path))
    assert len(here) == 3 * len(CONFIGS)
    assert other.communicate()[0].splitlines() == here


@every_family
def test_the_shortest_clip_that_the_network_hears(kind: str, folder_of: Callable[[str], str]) -> None:
    family = FAMILIES[kind]
    config = build_model(ModelRecipe(folder_of(kind)), 0, HALF).network.config
    least = family.least_samples(config)
    assert least == {"whisper": 1, "sew": 720, "sew-d": 720}.get(kind, 400)
    model = build_model(ModelRecipe(folder_of(kind)), 0, ClipFormat(num_samples=least))
    assert logits_of(model, CLIPS[:, :least]).isfinite().all()
    if least > 1:
        with pytest.raises(ModelError, match=rf"the clips have {least - 1} samples; .* needs {least} at least"):
            build_model(ModelRecipe(folder_of(kind)), 0, ClipFormat(num_samples=least - 1))


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if family.masks])
def test_masking_is_on_where_the_recipe_says_so_and_fits_the_clip(kind: str, folder_of: Callable[[str], str]) -> None:
    def changed(spec_augment: bool) -> bool:
        recipe = ModelRecipe(folder_of(kind), dropout=0.0, spec_augment=spec_augment, mask_time_prob=0.5)
        model = build_model(recipe, 0, HALF)
        names = {name for name in trained_weights(model) if "masked_spec_embed" in name}
        assert bool(names) == spec_augment
        np.random.seed(0)
        for module in model.train().modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        with torch.no_grad():
            return not torch.allclose(model(CLIPS), logits_of(model), atol=1e-5)

    assert changed(True)
    assert not changed(False)
    short = ClipFormat(num_samples=2000)
    with pytest.raises(ModelError, match=r"mask_time_length is 10; .* has \d frames .*spec_augment to false"):
        build_model(ModelRecipe(folder_of(kind), spec_augment=True), 0, short)
    fits = ModelRecipe(folder_of(kind), spec_augment=True, mask_time_length=2)
    build_model(fits, 0, short).train()(CLIPS[:, :2000])
    with pytest.raises(ModelError, match=r"mask_feature_length is 40; .* has 32 dimensions"):
        build_model(
            ModelRecipe(folder_of(kind), spec_augment=True, mask_feature_prob=0.1, mask_feature_length=40), 0, HALF
        )


@pytest.mark.parametrize("kind", [kind for kind, family in FAMILIES.items() if not family.masks])
def test_masking_is_refused_where_the_classifier_has_none(kind: str, folder_of: Callable[[str], str]) -> None:
    with pytest.raises(ModelError, match="spec_augment: the library's classifier"):
        build_model(ModelRecipe(folder_of(kind), spec_augment=True), 0, HALF)


@every_family
def test_checkpointing_costs_time_and_changes_nothing(kind: str, folder_of: Callable[[str], str]) -> None:
    def gradients(gradient_checkpointing: bool) -> tuple[int, dict[str, torch.Tensor]]:
        recipe = ModelRecipe(folder_of(kind), trained="all", gradient_checkpointing=gradient_checkpointing)
        model = build_model(recipe, 0, HALF).train()
        torch.manual_seed(1)
        loss = torch.nn.functional.cross_entropy(model(CLIPS), torch.tensor([0, 1, 2]))
        calls = []
        layers = model.network.get_submodule(f"{FAMILIES[kind].encoder}.{FAMILIES[kind].layers}")
        layers[-1].register_forward_pre_hook(lambda *_: calls.append(1))
        loss.backward()
        return len(calls), {name: weights.grad for name, weights in model.network.named_parameters()}

    (without, expected), (again, found) = gradients(False), gradients(True)
    assert (without, again) == (0, 1), "the layers are computed a second time in the backward pass"
    torch.testing.assert_close(found, expected)


@every_family
def test_the_dropouts_are_those_of_the_family(kind: str, folder_of: Callable[[str], str]) -> None:
    def differs(dropout: float) -> bool:
        model = build_model(ModelRecipe(folder_of(kind), trained="all", dropout=dropout), 0, HALF)
        for module in model.train().modules():
            if isinstance(module, torch.nn.BatchNorm1d):
                module.eval()
        assert all(getattr(model.network.config, name) == dropout for name in FAMILIES[kind].dropouts)
        with torch.no_grad():
            return not torch.equal(model(CLIPS), model(CLIPS))

    assert differs(0.3)
    assert not differs(0.0), "there is a dropout, or layers left out, that the recipe does not set"


@every_family
def test_the_tasks_that_the_engine_runs(kind: str, folder_of: Callable[[str], str]) -> None:
    """As in a federation of two sites for one round, in one process, through OpenFL's interfaces."""
    config = ExperimentConfig(ModelRecipe(folder_of(kind)), plain(rounds=1))
    updates = []
    for shard in (1, 2):
        provider = ClassifierProvider(config, HALF)
        model, data = provider.provide_model(), ShardData(config)
        data.shard, data.train_clips = shard, HalfSeconds.made(12, shard)
        data.validation_clips = HalfSeconds.made(4, 9)
        told = train(model, data, "cpu", provider.provide_optimizer(), 0)
        assert np.isfinite(told["loss"])
        updates.append({name: array.copy() for name, array in TrainedTensors.get_tensor_dict(model).items()})
    mean = {name: (array + updates[1][name]) / 2 for name, array in updates[0].items()}
    TrainedTensors.set_tensor_dict(model, mean)
    assert all(np.isfinite(value) for value in validate(model, data, "cpu").values())
    home = build_model(config.model, 0, HALF)
    load_weights(home, mean)
    assert torch.equal(logits_of(home), logits_of(model.model)), "what comes home is what the sites validated"
