"""What several of these tests share: a network of some 5,000 weights, clips made of tones, and plain settings."""

from dataclasses import dataclass, fields
from pathlib import Path

import matplotlib
import numpy as np
import torch
from hypothesis import settings
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from kws.config import Augmentation, ModelRecipe, Training
from kws.model import Classifier, save_pretrained
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.labels import LABELS

matplotlib.use("Agg")
torch.set_num_threads(1)

quick = settings(max_examples=50, deadline=None)
UNCHANGED = Augmentation(**{each.name: 0.0 for each in fields(Augmentation)})


def classifier(
    labels: tuple[str, ...] = LABELS, norm: str = "group", mask: bool = False, weighs: bool = False
) -> Classifier:
    """An untrained Wav2Vec2 with one layer of 16, with weights large enough to tell clips apart."""
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        conv_dim=(8, 16),
        conv_kernel=(20, 10),
        conv_stride=(10, 10),
        feat_extract_norm=norm,
        do_stable_layer_norm=norm == "layer",
        num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
        use_weighted_layer_sum=weighs,
        initializer_range=0.3,
        layerdrop=0.0,
        apply_spec_augment=False,
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
    )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=mask)
    return Classifier(Wav2Vec2ForSequenceClassification(config), extractor).eval()


def small_recipe(folder: Path) -> ModelRecipe:
    """A recipe of that network, saved in the folder; all of it is trained."""
    save_pretrained(classifier(), folder)
    return ModelRecipe(str(folder), trained="all")


@dataclass(frozen=True)
class Tones:
    """Clips of a tenth of a second in memory: each label has a pitch of its own, and silence is faint noise."""

    waveforms: np.ndarray
    labels: np.ndarray
    format = ClipFormat(num_samples=1600)

    @classmethod
    def make(cls, count: int, seed: int = 0) -> "Tones":
        generator = np.random.default_rng(seed)
        labels = np.arange(count) % len(LABELS)
        time = np.arange(1600) / 16_000
        pitch = 200 * 1.3 ** labels[:, None]
        tones = 0.3 * np.sin(2 * np.pi * (pitch * time + generator.random((count, 1))))
        tones[labels == LABELS.index("_silence_")] = 0
        noisy = tones + generator.normal(0, 0.01, tones.shape)
        return cls(noisy.astype(np.float32), labels)

    def __len__(self) -> int:
        return len(self.labels)

    def read(self, numbers: np.ndarray, generator: np.random.Generator | None = None) -> np.ndarray:
        return self.waveforms[np.asarray(numbers)]


def plain(**changes: object) -> Training:
    """Two rounds without augmentation or smoothing."""
    values: dict[str, object] = {
        "rounds": 2, "batch_size": 8, "learning_rate": 3e-3, "label_smoothing": 0.0, "augmentation": UNCHANGED,
    }  # fmt: skip
    return Training(**(values | changes))
