"""What is computed once trains to the same as what is computed each time, for every family, and is found again."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from corpora import BESIDE_THE_REPO
from small_families import CONFIGS, checkpoint
from small_network import Tones, plain

from kws.batches import Heard
from kws.caching import Convolved, Pooled, heard_by
from kws.config import Augmentation, ModelRecipe, Training
from kws.model import Classifier, build_model, trained_weights
from kws.training import build_optimizer, evaluate, train_round
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.labels import LABELS
from shard_descriptors.utterances import Utterance

HALF = 2e-3
"""What half precision's rounding, 2^-11 of each value, may do to an answer of these networks."""

COUNT = 24


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> ClipSet:
    """Tones of a second, some of them shorter, in one recording; kept clips in a folder of their own."""
    folder = tmp_path_factory.mktemp("clips")
    tones = Tones.make(COUNT)
    soundfile.write(folder / "tones.wav", np.tile(tones.waveforms, 10).ravel(), 16_000)
    rows = [
        Utterance(
            f"{number}", str(folder / "tones.wav"), LABELS[label], "1", "train", 16_000 * number,
            9_000 if number % 3 == 0 else 16_000,
        )
        for number, label in enumerate(tones.labels)
    ]  # fmt: skip
    return ClipSet(rows, cache=folder / "cache")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family, made when it is asked for."""
    root = tmp_path_factory.mktemp("families")

    class Made(dict[str, Path]):
        def __missing__(self, kind: str) -> Path:
            self[kind] = checkpoint(kind, root / kind)
            return self[kind]

    return Made()


def model_of(folder: Path, **recipe: object) -> Classifier:
    cut = folder.name == "whisper"
    return build_model(ModelRecipe(str(folder), cut_positions=cut, **recipe), 0, SUPERB_KS)  # type: ignore[arg-type]


def probe(**changes: object) -> Training:
    return plain(cache="probe", **changes)


def losses(model: Classifier, clips: ClipSet | Heard, training: Training) -> list[float]:
    optimizer = build_optimizer(model, training)
    return [train_round(model, optimizer, clips, training, done)["loss"] for done in range(training.rounds)]


def kept(clips: ClipSet) -> set[Path]:
    return set(clips.folder.glob("*.float16"))


@pytest.mark.parametrize("head", ["own", "weighted_sum"])
@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_a_probe_answers_and_trains_as_the_whole_network_does(
    clips: ClipSet, folders: dict[str, Path], kind: str, head: str
) -> None:
    recipe = {"trained": "head", "head": head, "dropout": 0.2}
    whole, cached = (model_of(folders[kind], **recipe) for _ in range(2))
    heard = heard_by(cached, clips, probe())
    assert isinstance(heard, Pooled)
    numbers = np.arange(COUNT)
    whole.eval(), cached.eval()
    with torch.inference_mode():
        expected = whole(torch.from_numpy(clips.read(numbers)))
        answers = heard.logits(cached, heard.inputs(numbers))
    torch.testing.assert_close(answers, expected, rtol=HALF, atol=HALF * expected.abs().max().item())
    assert evaluate(cached, clips, probe()).loss == pytest.approx(evaluate(whole, clips).loss, rel=HALF)

    # Not Adam, which makes a step of full length of a gradient that is nothing but rounding.
    training = plain(batch_size=7, optimizer="sgd", learning_rate=1e-2)
    assert losses(cached, clips, replace(training, cache="probe")) == pytest.approx(
        losses(whole, clips, training), rel=HALF
    )
    for name, weights in trained_weights(whole).items():
        np.testing.assert_allclose(trained_weights(cached)[name], weights, rtol=0.01, atol=1e-3, err_msg=name)


@pytest.mark.parametrize("kind", sorted(CONFIGS))
def test_the_kept_output_of_the_feature_encoder_trains_as_the_whole_network_does(
    clips: ClipSet, folders: dict[str, Path], kind: str
) -> None:
    recipe = {"trained": "all_but_feature_encoder", "dropout": 0.1, "spec_augment": kind in ("hubert", "wav2vec2")}
    whole, cached = (model_of(folders[kind], **recipe) for _ in range(2))
    training = plain(batch_size=7, optimizer="sgd")
    kept_conv = replace(training, cache="conv")
    assert isinstance(heard_by(cached, clips, kept_conv), Convolved)
    assert evaluate(cached, clips, kept_conv).loss == pytest.approx(evaluate(whole, clips).loss, rel=HALF)
    # Dropout and masks are drawn alike, since the shapes behind the feature encoder are.
    assert losses(cached, clips, kept_conv) == pytest.approx(losses(whole, clips, training), rel=5 * HALF)


def test_what_is_there_is_not_computed_again(
    clips: ClipSet, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_of(folders["hubert"], trained="head", head="weighted_sum")
    heard_by(model, clips, probe())
    before = kept(clips)
    computed = []

    def counted(self: Classifier, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        computed.append(len(inputs["input_values"]))
        return pooled(self, inputs)

    pooled = Classifier.pooled
    monkeypatch.setattr(Classifier, "pooled", counted)
    again = model_of(folders["hubert"], trained="head", head="weighted_sum", head_size=8, dropout=0.3)
    for changed in (False, True):  # training and evaluation share what they can
        heard_by(again, clips, probe(seed=5), changed)
    assert computed == [1, 1]  # an example, for the shape
    assert kept(clips) == before


def test_other_weights_and_settings_are_computed_anew(clips: ClipSet, folders: dict[str, Path], tmp_path: Path) -> None:
    model = model_of(folders["hubert"], trained="head")
    heard_by(model, clips, probe())
    before = kept(clips)
    with torch.no_grad():
        next(model.network.hubert.parameters()).view(-1)[0] += 1e-3
    heard_by(model, clips, probe())
    assert len(kept(clips)) == len(before) + 1
    model.extractor.do_normalize = not model.extractor.do_normalize
    heard_by(model, clips, probe())
    assert len(kept(clips)) == len(before) + 2
    heard_by(model_of(folders["hubert"], trained="head", head="weighted_sum"), clips, probe())
    heard_by(model, clips, plain(cache="conv"))
    assert len(kept(clips)) >= len(before) + 3


COPIES = Augmentation(max_shift=0.2, max_speed=0.1, noise_probability=0.5)


def test_changed_copies(clips: ClipSet, folders: dict[str, Path]) -> None:
    model = model_of(folders["wav2vec2"], trained="head")
    training = probe(cached_copies=3, augmentation=COPIES)
    heard = heard_by(model, clips, training, changed=True)
    assert isinstance(heard, Pooled)
    every = heard.features.read(np.arange(3 * COUNT)).reshape(COUNT, 3, -1)
    assert len(np.unique(every.reshape(3 * COUNT, -1), axis=0)) == 3 * COUNT
    keys = np.random.default_rng(0).integers(2**63, size=3000).astype(np.uint64)
    numbers = np.arange(3000) % COUNT
    drawn = heard.inputs(numbers, keys)["pooled"].numpy().reshape(3000, -1)
    which = (every[numbers] == drawn[:, None]).all(-1).argmax(1)
    assert (every[numbers, which] == drawn).all()  # copies of that clip, and of no other
    assert np.bincount(which).tolist() == pytest.approx([1000, 1000, 1000], abs=120)
    plain_ones = heard_by(model, clips, training)  # evaluation hears clips as they are
    np.testing.assert_array_equal(
        plain_ones.inputs(np.arange(COUNT))["pooled"],
        heard_by(model, clips, probe()).inputs(np.arange(COUNT))["pooled"],
    )
    again = heard_by(model_of(folders["wav2vec2"], trained="head"), clips, training, changed=True)
    np.testing.assert_array_equal(again.inputs(numbers, keys)["pooled"].numpy().reshape(3000, -1), drawn)
    other = heard_by(model, clips, replace(training, seed=1), changed=True)
    assert isinstance(other, Pooled)
    assert not np.isin(other.features.read(np.arange(COUNT)), every).all()


def test_a_copy_is_what_the_network_makes_of_a_changed_clip(clips: ClipSet, folders: dict[str, Path]) -> None:
    """A change of nothing, by the way of changed copies."""
    model = model_of(folders["wav2vec2"], trained="head")
    shifted = Augmentation(max_shift=1e-9, max_speed=0.0, noise_probability=0.0)
    heard = heard_by(model, clips, probe(cached_copies=2, augmentation=shifted), changed=True)
    keys = np.arange(COUNT, dtype=np.uint64)
    expected = heard_by(model, clips, probe()).inputs(np.arange(COUNT))["pooled"]
    torch.testing.assert_close(heard.inputs(np.arange(COUNT), keys)["pooled"], expected, rtol=1e-2, atol=1e-2)


def test_without_a_place_to_keep_anything_training_is_the_same(
    clips: ClipSet, folders: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    nowhere = ClipSet(clips.utterances, cache=tmp_path / "file")
    for cache, trained in (("probe", "head"), ("conv", "all_but_feature_encoder")):
        one, other = (model_of(folders["hubert"], trained=trained) for _ in range(2))
        training = plain(cache=cache, rounds=1)
        assert losses(one, clips, training) == pytest.approx(losses(other, nowhere, training), rel=1e-4)
    assert "Set KWS_CACHE" in caplog.text


def test_only_a_set_of_clips_on_disk_can_be_kept(folders: dict[str, Path]) -> None:
    with pytest.raises(TypeError, match="ClipSet"):
        heard_by(model_of(folders["hubert"], trained="head"), Tones.make(12), probe())


WHISPER = BESIDE_THE_REPO / "whisper_tiny_en"


@pytest.mark.skipif(not WHISPER.is_dir(), reason="needs the encoder of whisper-tiny.en beside the project")
@pytest.mark.parametrize("head", ["own", "weighted_sum"])
def test_a_real_encoder(clips: ClipSet, head: str) -> None:
    model = build_model(ModelRecipe(str(WHISPER), head=head, trained="head", cut_positions=True), 0, SUPERB_KS).eval()
    numbers = np.arange(8)
    heard = heard_by(model, clips, probe())
    with torch.inference_mode():
        expected = model(torch.from_numpy(clips.read(numbers)))
        answers = heard.logits(model, heard.inputs(numbers))
    torch.testing.assert_close(answers, expected, rtol=HALF, atol=HALF * expected.abs().max().item())
