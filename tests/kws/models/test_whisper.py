"""Whisper with its positions cut to the clip: what that is, what it saves, and that others load it."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from corpora import BESIDE_THE_REPO
from safetensors.torch import load_file
from small_families import CONFIGS, checkpoint
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, WhisperFeatureExtractor, pipeline

from kws.config import ModelRecipe
from kws.model import ModelError, build_model, save_pretrained
from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.labels import LABELS

SECOND = torch.linspace(0, 400, 16_000).sin()[None] * 0.1


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return checkpoint("whisper", tmp_path / "whisper", max_source_positions=1500)


@pytest.mark.parametrize(("samples", "positions"), [(16_000, 100), (32_000, 150), (24_000, 150), (800, 100)])
def test_the_positions_are_those_of_the_clip_and_a_second_behind_it(folder: Path, samples: int, positions: int) -> None:
    form = ClipFormat(num_samples=samples)
    whole = build_model(ModelRecipe(str(folder)), 0, form)
    cut = build_model(ModelRecipe(str(folder), cut_positions=True), 0, form)
    clip = SECOND.repeat(1, 2)[:, :samples]
    assert whole.inputs(clip)["input_features"].shape == (1, 80, 3000)
    assert cut.inputs(clip)["input_features"].shape == (1, 80, 2 * positions)
    assert cut.network.encoder.embed_positions.weight.shape == (positions, 16)
    kept = whole.network.encoder.embed_positions.weight[:positions]
    assert torch.equal(cut.network.encoder.embed_positions.weight, kept)
    assert not cut.network.encoder.embed_positions.weight.requires_grad
    with torch.inference_mode():
        assert cut.eval()(clip).shape == (1, 12)


def test_it_is_the_same_network_on_a_shorter_spectrogram(folder: Path) -> None:
    """By hand: convolutions and the first positions, then the layers, all as in the whole network."""
    whole = build_model(ModelRecipe(str(folder)), 0, SUPERB_KS).eval()
    cut = build_model(ModelRecipe(str(folder), cut_positions=True), 0, SUPERB_KS).eval()
    spectrogram = WhisperFeatureExtractor(chunk_length=2)(SECOND[0].numpy(), sampling_rate=16_000, return_tensors="pt")
    with torch.inference_mode():
        encoder = whole.network.encoder
        hidden = torch.nn.functional.gelu(encoder.conv1(spectrogram["input_features"]))
        hidden = torch.nn.functional.gelu(encoder.conv2(hidden)).transpose(1, 2) + encoder.embed_positions.weight[:100]
        for layer in encoder.layers:
            hidden = layer(hidden, None)
        mean = encoder.layer_norm(hidden).mean(dim=1)
        expected = whole.network.classifier(whole.network.projector(mean))
        torch.testing.assert_close(cut(SECOND), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(whole(SECOND), expected, rtol=1e-2, atol=1e-2), "the mean over 30 s is another one"


@pytest.mark.parametrize("head", ["own", "weighted_sum"])
def test_others_load_what_was_cut(folder: Path, tmp_path: Path, head: str) -> None:
    model = build_model(ModelRecipe(str(folder), cut_positions=True, head=head), 0, SUPERB_KS)
    save_pretrained(model, tmp_path / "out")
    with torch.inference_mode():
        expected = model.eval()(SECOND)
        network = AutoModelForAudioClassification.from_pretrained(tmp_path / "out")
        extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
        values = extractor(SECOND[0].numpy(), sampling_rate=16_000, return_tensors="pt")
        torch.testing.assert_close(network(**values).logits, expected, rtol=1e-4, atol=1e-5)
    spotter = pipeline("audio-classification", model=str(tmp_path / "out"))
    answers = spotter({"raw": SECOND[0].numpy(), "sampling_rate": 16_000}, top_k=12)
    assert {each["label"]: each["score"] for each in answers} == pytest.approx(
        dict(zip(LABELS, expected[0].softmax(-1).tolist(), strict=True)), abs=1e-5
    )
    for cut_positions in (False, True):  # it goes on as it is, and cutting again changes nothing
        recipe = ModelRecipe(str(tmp_path / "out"), cut_positions=cut_positions, head=head)
        with torch.inference_mode():
            assert torch.equal(build_model(recipe, 3, SUPERB_KS).eval()(SECOND), expected)
    without = tmp_path / "out" / "preprocessor_config.json"
    assert json.loads(without.read_text())["chunk_length"] == 2
    without.unlink()
    with torch.inference_mode():
        assert torch.equal(
            build_model(ModelRecipe(str(tmp_path / "out"), head=head), 3, SUPERB_KS).eval()(SECOND), expected
        )
    with pytest.raises(ModelError, match=r"it hears 2 s, and the clips have 3 s"):
        build_model(ModelRecipe(str(tmp_path / "out"), cut_positions=True), 0, ClipFormat(num_samples=48_000))
    with pytest.raises(ModelError, match=r"it hears 2 s, and the clips have 3 s"):
        build_model(ModelRecipe(str(tmp_path / "out")), 0, ClipFormat(num_samples=48_000))


@pytest.mark.parametrize("kind", sorted(CONFIGS.keys() - {"whisper"}))
def test_there_is_nothing_to_cut_elsewhere(tmp_path: Path, kind: str) -> None:
    with pytest.raises(ModelError, match="cut_positions is for Whisper"):
        build_model(ModelRecipe(str(checkpoint(kind, tmp_path)), cut_positions=True), 0, ClipFormat(num_samples=8000))


@pytest.fixture(scope="session")
def real_whisper() -> str:
    """A real encoder in half precision: in the folder WHISPER, or beside the repository."""
    for root in (os.environ.get("WHISPER"), BESIDE_THE_REPO / "whisper_tiny_en"):
        if root and Path(root).is_dir():
            return str(root)
    pytest.skip("no real encoder here")


def test_a_real_encoder_tells_words_apart(real_whisper: str, real_corpus: Path) -> None:
    """Without any training: the nearest of ten train clips a word, by the mean of the last layer; chance is a tenth."""
    from shard_descriptors.clips.clip_set import ClipSet
    from shard_descriptors.sources.speech_commands import load

    model = build_model(ModelRecipe(real_whisper, trained="head", cut_positions=True), 0, SUPERB_KS)
    stored = load_file(Path(real_whisper) / "model.safetensors")
    name = "encoder.layers.3.fc1.weight"
    assert stored[name].dtype == torch.float16
    assert torch.equal(model.network.get_parameter(name), stored[name].float())

    utterances = load(real_corpus).utterances
    words = [label for label in LABELS if not label.startswith("_")]

    def some(split: str, each: int) -> tuple[np.ndarray, np.ndarray]:
        rows = [u for word in words for u in [u for u in utterances if (u.split, u.label) == (split, word)][:each]]
        clips = ClipSet(rows)
        waveforms = torch.from_numpy(clips.read(np.arange(len(rows))))
        return torch.nn.functional.normalize(model.pooled(model.inputs(waveforms))[:, -1], dim=-1).numpy(), clips.labels

    known, labels = some("train", 10)
    asked, truth = some("test", 6)
    centre = known.mean(axis=0)
    answers = labels[((asked - centre) @ (known - centre).T).argmax(axis=1)]
    accuracy = (answers == truth).mean()
    assert accuracy > 0.8
