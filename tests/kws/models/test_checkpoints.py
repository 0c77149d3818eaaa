"""Checkpoints as people have them: right, or refused when the model is built, with what to do."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_families import CONFIGS, checkpoint, forget
from small_network import Tones, classifier, plain, small_recipe
from transformers import AutoModelForAudioClassification

from kws.config import ModelRecipe
from kws.model import Classifier, ModelError, build_model, save_pretrained, trained_weights
from kws.models.registry import FAMILIES
from kws.training import build_optimizer, train_round
from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.labels import LABELS

CLIPS = torch.from_numpy(Tones.make(24).waveforms)
HALF = ClipFormat(num_samples=8000)


@torch.inference_mode()
def logits_of(model: Classifier, clips: torch.Tensor = CLIPS) -> torch.Tensor:
    return model.eval()(clips)


def encoder_state(folder: Path | str, kind: str) -> dict[str, torch.Tensor]:
    network = build_model(ModelRecipe(str(folder)), 0, HALF).network
    return {name: tensor for name, tensor in network.state_dict().items() if name.startswith(FAMILIES[kind].encoder)}


def half(folder: Path, kind: torch.dtype) -> None:
    state = load_file(folder / "model.safetensors")
    saved = {name: tensor.to(kind) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    save_file(saved, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text()) | {"dtype": str(kind).removeprefix("torch.")}
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_is_trained_in_float32(tmp_path: Path, kind: torch.dtype) -> None:
    small_recipe(tmp_path)
    half(tmp_path, kind)
    model = build_model(ModelRecipe(str(tmp_path), trained="all"), 0, SUPERB_KS)
    assert {tensor.dtype for tensor in model.network.state_dict().values()} == {torch.float32}
    stored = load_file(tmp_path / "model.safetensors")
    key = "wav2vec2.encoder.layers.0.attention.q_proj.weight"
    assert torch.equal(model.network.state_dict()[key], stored[key].float())
    train_round(model, build_optimizer(model, plain()), Tones.make(24), plain(), 0)
    assert {array.dtype for array in trained_weights(model).values()} == {np.dtype(np.float32)}


def as_pickle(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def sharded(folder: Path, name: str = "model-{:05}-of-00002.safetensors") -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    where = {key: name.format(1 + (number > len(names) // 2)) for number, key in enumerate(names)}
    for file in set(where.values()):
        save_file({key: state[key] for key in names if where[key] == file}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def old_weight_norm(folder: Path) -> None:
    """Before PyTorch 2.1, and in most checkpoints on the hub: weight_g and weight_v."""
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = load_file(folder / "model.safetensors")
    assert any(new in key for key in state for new in old)
    for new, before in old.items():
        state = {key.replace(new, before): tensor for key, tensor in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def without_extractor(folder: Path) -> None:
    (folder / "preprocessor_config.json").unlink()


FORMS: dict[str, Callable[[Path], object]] = {
    "only .bin": as_pickle,
    "sharded": sharded,
    "old weight norm": old_weight_norm,
    "no extractor": without_extractor,
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "sew", "unispeech-sat", "wav2vec2-conformer"])
def test_other_forms_of_the_same_checkpoint(tmp_path: Path, kind: str, form: str) -> None:
    expected = encoder_state(checkpoint(kind, tmp_path / "a"), kind)
    FORMS[form](checkpoint(kind, tmp_path / "b"))
    found = encoder_state(tmp_path / "b", kind)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("kind", CONFIGS)
def test_without_a_feature_extractor_the_familys_own_is_taken(tmp_path: Path, kind: str) -> None:
    model = build_model(ModelRecipe(str(checkpoint(kind, tmp_path, with_extractor=False))), 0, HALF)
    assert logits_of(model, torch.randn(2, 8000)).isfinite().all()
    with pytest.raises(ModelError, match="made for 16000 Hz; these clips have 8000 Hz"):
        build_model(ModelRecipe(str(tmp_path)), 0, ClipFormat(sample_rate=8000))


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("wav2vec2", "Wav2Vec2Model"), ("wav2vec2", "Wav2Vec2ForPreTraining"), ("hubert", "HubertModel"),
        ("wav2vec2-conformer", "Wav2Vec2ConformerForPreTraining"), ("sew-d", "SEWDForCTC"), ("whisper", "WhisperModel"),
        ("unispeech", "UniSpeechForCTC"), ("whisper", "WhisperForAudioClassification"),
    ],
)  # fmt: skip
def test_the_encoder_comes_from_whatever_class_it_was_saved_from(tmp_path: Path, kind: str, source: str) -> None:
    checkpoint(kind, tmp_path, source=source)
    stored = load_file(tmp_path / "model.safetensors")
    found = encoder_state(tmp_path, kind)
    whole = [tensor for name, tensor in found.items() if "masked_spec_embed" not in name]
    for tensor in whole:
        assert any(tensor.shape == other.shape and torch.equal(tensor, other) for other in stored.values())


def test_what_is_masked_is_initialised_from_the_seed(tmp_path: Path) -> None:
    """facebook/wav2vec2-base-960h has no such tensor, and the library leaves it as memory had it."""
    forget(checkpoint("wav2vec2", tmp_path), "masked_spec_embed")
    recipe = ModelRecipe(str(tmp_path), spec_augment=True)
    first, same, other = (trained_weights(build_model(recipe, seed, HALF)) for seed in (0, 0, 1))
    embedding = first["wav2vec2.masked_spec_embed"]
    assert embedding.min() >= 0
    assert embedding.max() <= 1
    assert embedding.std() > 0.1
    assert np.array_equal(embedding, same["wav2vec2.masked_spec_embed"])
    assert not np.array_equal(embedding, other["wav2vec2.masked_spec_embed"])


# The labels of a trained head


def test_labels_go_by_name_never_by_position(tmp_path: Path) -> None:
    published = (*LABELS[6:], *LABELS[:6])
    theirs = classifier(published)
    save_pretrained(theirs, tmp_path)
    ours = build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)
    assert ours.labels == LABELS
    assert ours.network.config.label2id == {name: number for number, name in enumerate(LABELS)}
    expected = logits_of(theirs)[:, [published.index(name) for name in LABELS]]
    torch.testing.assert_close(logits_of(ours), expected)


def test_labels_that_are_only_written_differently_are_the_same(tmp_path: Path) -> None:
    published = tuple(label.strip("_").upper() for label in reversed(LABELS))
    theirs = classifier(published)
    save_pretrained(theirs, tmp_path)
    ours = build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)
    torch.testing.assert_close(logits_of(ours), logits_of(theirs).flip(-1))


def test_labels_that_the_head_knows_keep_their_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    published = ("bed", *LABELS[:10], "cat")
    theirs = classifier(published)
    save_pretrained(theirs, tmp_path)
    with caplog.at_level(logging.WARNING):
        first, same, other = (build_model(ModelRecipe(str(tmp_path)), seed, SUPERB_KS) for seed in (0, 0, 1))
    torch.testing.assert_close(logits_of(first)[:, :10], logits_of(theirs)[:, 1:11])
    rows = [model.network.classifier.weight[10:] for model in (first, same, other)]
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])
    assert "its head knows 10 of the labels; new are _silence_, _unknown_" in caplog.text


@pytest.mark.parametrize("published", [("cat",), ("cat", "dog"), tuple(f"emotion {n}" for n in range(12))])
def test_other_labels_get_a_new_head_and_keep_the_encoder(tmp_path: Path, published: tuple[str, ...]) -> None:
    theirs = classifier(published)
    save_pretrained(theirs, tmp_path)
    first, same, other = (build_model(ModelRecipe(str(tmp_path)), seed, SUPERB_KS) for seed in (0, 0, 1))
    assert first.labels == LABELS
    assert logits_of(first).shape == (24, 12)
    for part in ("projector", "classifier"):
        heads = [getattr(model.network, part).weight for model in (first, same, other)]
        assert torch.equal(heads[0], heads[1])
        assert not torch.equal(heads[0], heads[2])
        old = getattr(theirs.network, part).weight
        assert heads[0].shape != old.shape or not torch.equal(heads[0], old)
    encoder = theirs.network.wav2vec2.state_dict()
    for name, tensor in first.network.wav2vec2.state_dict().items():
        assert torch.equal(tensor, encoder[name]), name


def test_one_of_our_labels_is_enough_for_a_head(tmp_path: Path) -> None:
    form = ClipFormat(labels=("yes", "no"))
    save_pretrained(classifier(("no",)), tmp_path)
    model = build_model(ModelRecipe(str(tmp_path)), 0, form)
    assert model.labels == ("yes", "no")
    assert logits_of(model).shape == (24, 2)
    torch.testing.assert_close(logits_of(model)[:, 1:], logits_of(classifier(("no",))))


# What is not whole


def encoder_cut(folder: Path) -> None:
    forget(folder, "encoder")


def of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 32}))


def deeper(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))


def pickled_nonsense(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin").write_bytes(b"nonsense" * 100)


def without_a_shard(folder: Path) -> None:
    sharded(folder)
    (folder / "model-00002-of-00002.safetensors").unlink()


def not_numbers(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    state["wav2vec2.encoder.layer_norm.weight"][3] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


class Harmful:
    """What a pickle must not be able to do when it is loaded."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return (open, (self.path, "w"))


def harmful(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Harmful(str(folder / "harm"))}, folder / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:1000]), ""),
    "no file": (lambda f: [path.unlink() for path in f.iterdir()], "no config.json"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
    "not JSON": (lambda f: (f / "config.json").write_text("{"), "config.json"),
    "a list": (lambda f: (f / "config.json").write_text("[]"), ""),
    "extractor not JSON": (lambda f: (f / "preprocessor_config.json").write_text("{"), "preprocessor_config.json"),
    "half the tensors": (encoder_cut, "tensors are missing or of another size, wav2vec2.encoder."),
    "of another size": (of_another_size, "of another size, wav2vec2."),
    "a layer more": (deeper, "are missing or of another size, wav2vec2.encoder.layers.1."),
    "pickled nonsense": (pickled_nonsense, ""),
    "a pickle that does harm": (harmful, ""),
    "a shard missing": (without_a_shard, "model-00002-of-00002.safetensors"),
    "not numbers": (not_numbers, "wav2vec2.encoder.layer_norm.weight holds values that are no numbers"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_named_with_the_cause(tmp_path: Path, damage: str) -> None:
    small_recipe(tmp_path)
    do, words = DAMAGES[damage]
    do(tmp_path)
    with pytest.raises(ModelError, match=r"does not hold a whole model .*Copy it again") as caught:
        build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)
    assert words in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "no such local folder" not in str(caught.value)
    assert "hf download" not in str(caught.value)
    assert not (tmp_path / "harm").exists()


@pytest.mark.parametrize("kind", CONFIGS)
def test_layers_that_the_configuration_does_not_name_are_not_left_out(tmp_path: Path, kind: str) -> None:
    path = checkpoint(kind, tmp_path) / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"encoder_layers" if kind == "whisper" else "num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"by its config.json it has 1 layers"):
        build_model(ModelRecipe(str(tmp_path)), 0, HALF)


def test_a_family_that_is_none_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelError, match=r"type 'bert'; this workspace trains .*wav2vec2.*whisper"):
        build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("whisper", {"feature_size": 128}, "makes 128 x 200, its network needs 80 x 200"),
        ("whisper", {"chunk_length": 30}, "makes 80 x 3000, its network needs 80 x 200"),
        ("audio-spectrogram-transformer", {"max_length": 1024}, "makes 128 x 1024, its network needs 128 x 98"),
        ("wav2vec2-bert", {"stride": 1}, "makes 80 bands, its network needs 160"),
    ],
)
def test_an_extractor_of_another_model_is_refused(
    tmp_path: Path, kind: str, changes: dict[str, int], words: str
) -> None:
    path = checkpoint(kind, tmp_path) / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(ModelError, match=f"does not go with these clips: its feature extractor {words}"):
        build_model(ModelRecipe(str(tmp_path)), 0, HALF)


@pytest.mark.parametrize("kind", ["whisper", "audio-spectrogram-transformer"])
def test_a_clip_of_which_the_end_would_not_be_heard_is_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="it hears"):
        build_model(ModelRecipe(str(checkpoint(kind, tmp_path))), 0, ClipFormat(num_samples=32_001))


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_recipe(tmp_path / "models" / "mine")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert build_model(ModelRecipe("~/models/mine"), 0, SUPERB_KS).labels == LABELS
    with pytest.raises(ModelError, match=f"there is no folder {tmp_path}/models/other on this machine"):
        build_model(ModelRecipe("~/models/other"), 0, SUPERB_KS)


def test_a_folder_has_no_revision(tmp_path: Path) -> None:
    small_recipe(tmp_path)
    with pytest.raises(ModelError, match="revision is for models of the hub"):
        build_model(ModelRecipe(str(tmp_path), revision="abc"), 0, SUPERB_KS)


def test_a_revision_of_the_hub_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the hub's cache, as `hf download --revision` leaves it."""
    cache = tmp_path / "models--me--mine"
    for commit, seed in (("1" * 40, 1), ("2" * 40, 2)):
        torch.manual_seed(seed)
        save_pretrained(classifier(), cache / "snapshots" / commit)
        state = load_file(cache / "snapshots" / commit / "model.safetensors")
        state["wav2vec2.encoder.layer_norm.bias"].fill_(seed)
        save_file(state, cache / "snapshots" / commit / "model.safetensors", metadata={"format": "pt"})
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("2" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for revision, expected in ((None, 2.0), ("1" * 40, 1.0), ("main", 2.0)):
        model = build_model(ModelRecipe("me/mine", revision=revision), 0, SUPERB_KS)
        assert model.network.wav2vec2.encoder.layer_norm.bias[0] == expected
    with pytest.raises(ModelError, match=r"'me/mine' at revision 'other' cannot be had"):
        build_model(ModelRecipe("me/mine", revision="other"), 0, SUPERB_KS)


def test_code_that_lies_beside_weights_is_never_run(tmp_path: Path) -> None:
    small_recipe(tmp_path)
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'harm')!r}, 'w')\nclass Evil: pass\n")
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForAudioClassification"), "evil.Evil")
    (tmp_path / "config.json").write_text(json.dumps(config))
    model = build_model(ModelRecipe(str(tmp_path)), 0, SUPERB_KS)
    assert not (tmp_path / "harm").exists()
    save_pretrained(model, tmp_path / "out")
    assert "auto_map" not in json.loads((tmp_path / "out" / "config.json").read_text())
    assert AutoModelForAudioClassification.from_pretrained(tmp_path / "out") is not None
