"""What a frozen network makes of a clip never changes: it is computed once and kept, and only the rest is trained.

"probe" keeps the mean over time of the hidden states that the head reads, which a linear head may as well take before
it as after it; "conv" keeps the feature encoder's output, or the spectrogram of a family that eats those. Both in half
precision, beside the site's packed clips.
"""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from kws.batches import Heard, Inputs
from kws.clips import Clips, Keys, Numbers
from kws.config import Augmentation, Training
from kws.model import Classifier
from kws.models.heads import encoder_of
from kws.sound import changed_at_random, drawn, scattered
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.clips.features import Features

VERSION = 1  # raise it with any change to what is kept: it names the files

HEAD_ONLY = ("id2label", "label2id", "classifier_proj_size", "head", "head_dropout", "adapter_hidden_size")
ABOUT_FILES = ("_name_or_path", "architectures", "auto_map", "dtype", "transformers_version")
"""What a network's configuration says of other things than the hidden states."""

DIGIT = 1024


@dataclass(frozen=True, kw_only=True)
class Pooled(Heard):
    """Clips as their hidden states' means: `copies` of each, changed at random, of which training takes one."""

    features: Features
    copies: int

    def inputs(self, numbers: Numbers, keys: Keys | None = None) -> Inputs:
        """`pooled`: float16 (batch, states, hidden)."""
        copy = 0 if keys is None else (drawn(keys, 1)[:, 0] * self.copies).astype(np.int64)
        return {"pooled": torch.from_numpy(self.features.read(numbers * self.copies + copy))}

    def logits(self, model: Classifier, inputs: Inputs) -> torch.Tensor:
        """The head's answers: float32 (batch, num_labels)."""
        return model.logits_from_pooled(inputs["pooled"].float())


@dataclass(frozen=True, kw_only=True)
class Convolved(Heard):
    """Clips as the feature encoder's output, of `shape`, with the mask of the sound if it has a width.

    A mask is ones, then zeros; kept are two digits of the number of ones, since half precision counts to 2,048 only.
    """

    features: Features
    shape: tuple[int, ...]
    mask_width: int

    def inputs(self, numbers: Numbers, keys: Keys | None = None) -> Inputs:
        """`features`: float16 (batch, frames, channels); `mask`: int64 (batch, mask_width), if there is one."""
        rows = torch.from_numpy(self.features.read(numbers))
        size = math.prod(self.shape)
        features = {"features": rows[:, :size].reshape(-1, *self.shape)}
        if not self.mask_width:
            return features
        ones = rows[:, size:].long() @ torch.tensor([[DIGIT], [1]])
        return features | {"mask": (torch.arange(self.mask_width) < ones).long()}

    def logits(self, model: Classifier, inputs: Inputs) -> torch.Tensor:
        """The answers of what stands behind the feature encoder: float32 (batch, num_labels)."""
        return model.logits_from_conv(inputs["features"].float(), inputs.get("mask"))


def heard_by(model: Classifier, clips: Clips, training: Training, changed: bool = False) -> Heard:
    """Clips as the model hears them, from what `training.cache` keeps; what is not there yet is computed now.

    changed: at random, as training hears them.

    FeatureError where it cannot be kept for its size or its values.
    """
    augmentation = training.augmentation if changed else Augmentation.none()
    if training.cache == "none":
        return Heard(clips, augmentation)
    if not isinstance(clips, ClipSet):
        raise TypeError(f"training.cache={training.cache} keeps what comes from a ClipSet, not from {clips!r}")
    if training.cache == "conv":
        return _convolved(model, clips)
    return _pooled(model, clips, augmentation, max(1, training.cached_copies) if changed else 1, training.seed)


def _pooled(model: Classifier, clips: ClipSet, augmentation: Augmentation, copies: int, seed: int) -> Pooled:
    @torch.inference_mode()
    def compute(rows: Numbers) -> npt.NDArray[np.float32]:
        numbers, copy = np.divmod(rows, copies)
        if augmentation.changes:
            keys = scattered(scattered(clips.keys[numbers] + np.uint64(seed)) + copy.astype(np.uint64))
            waveforms = changed_at_random(clips, numbers, keys, augmentation)
        else:
            waveforms = torch.from_numpy(clips.read(numbers))
        return model.pooled(_inputs(model, waveforms)).cpu().numpy()

    shape = model.pooled(_example(model, clips)).shape[1:]
    changes = repr((copies, seed, augmentation)) if augmentation.changes else "as they are"
    made_by = f"{_digest(model, encoder_of(model.network))}, {changes}"
    features = Features(clips, made_by, shape, copies * len(clips), compute, "hidden states' means")
    features.prepare()
    return Pooled(clips, features=features, copies=copies)


def _convolved(model: Classifier, clips: ClipSet) -> Convolved:
    @torch.inference_mode()
    def compute(numbers: Numbers) -> npt.NDArray[np.float32]:
        inputs = _inputs(model, torch.from_numpy(clips.read(numbers)))
        parts = [model.conv_features(inputs).flatten(1)]
        if "attention_mask" in inputs:
            ones = inputs["attention_mask"].sum(1, keepdim=True)
            parts += [ones // DIGIT, ones % DIGIT]
        return torch.cat(parts, dim=1).cpu().numpy()

    example = _example(model, clips)
    shape = model.conv_features(example).shape[1:]
    mask_width = example["attention_mask"].shape[1] if "attention_mask" in example else 0
    front = encoder_of(model.network).feature_extractor if model.family.hears_waveforms else torch.nn.Module()
    row = (math.prod(shape) + (2 if mask_width else 0),)
    what = f"feature encoder's output, {' x '.join(map(str, shape))},"
    features = Features(clips, f"{_digest(model, front)}, {shape}", row, len(clips), compute, what)
    features.prepare()
    return Convolved(clips, features=features, shape=shape, mask_width=mask_width)


def _inputs(model: Classifier, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
    return model.inputs(waveforms.to(next(model.parameters()).device))


def _example(model: Classifier, clips: ClipSet) -> dict[str, torch.Tensor]:
    return _inputs(model, torch.ones(1, clips.format.num_samples))


def _digest(model: Classifier, module: torch.nn.Module) -> str:
    """Names a part of the network: its weights, and all settings but those of the head, of dropout and of files."""
    left_out = {*HEAD_ONLY, *ABOUT_FILES, *model.family.dropouts}
    settings = {name: value for name, value in model.network.config.to_dict().items() if name not in left_out}
    about = (VERSION, settings, model.extractor.to_dict())
    digest = hashlib.sha256(json.dumps(about, sort_keys=True, default=str).encode())
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()
