"""The classifier: from a recipe to a module, its trained tensors, and the folder that others load it from."""

from pathlib import Path

from transformers import set_seed

from kws.config import ModelRecipe
from kws.models.classifier import Classifier
from kws.models.family import ModelError
from kws.models.loading import pretrained
from kws.models.registry import FAMILIES
from kws.models.tiny import tiny
from kws.models.trained import (
    check_frozen,
    frozen_digest,
    load_weights,
    merged_state,
    packed,
    save_adapter,
    train_only,
    trained,
    trained_tensors,
    trained_weights,
    unpack,
)
from shard_descriptors.corpus import ClipFormat

__all__ = [
    "Classifier",
    "ModelError",
    "build_model",
    "check_frozen",
    "frozen_digest",
    "load_weights",
    "packed",
    "save_adapter",
    "save_pretrained",
    "trained",
    "trained_tensors",
    "trained_weights",
    "unpack",
]


def build_model(recipe: ModelRecipe, seed: int, form: ClipFormat) -> Classifier:
    """A classifier of such clips; what is not pretrained is initialised from the seed.

    Raises:
        ModelError: the weights cannot be had, or do not go with such clips; says what to do.
    """
    set_seed(seed)
    network, extractor = tiny(recipe, form) if recipe.name == "tiny" else pretrained(recipe, seed, form)
    family, config = FAMILIES[network.config.model_type], network.config
    if extractor.sampling_rate != form.sample_rate:
        raise ModelError(
            f"{recipe.name} was made for {extractor.sampling_rate} Hz; these clips have {form.sample_rate} Hz; "
            f"set sample_rate in every envoy.yaml to the model's"
        )
    if recipe.cut_positions:
        extractor = family.cut_positions(network, form.num_samples)
    if reason := family.misfit(config, extractor, form.num_samples):
        raise ModelError(f"{recipe.name} does not go with these clips: {reason}")
    if form.num_samples < family.least_samples(config):
        least = family.least_samples(config)
        raise ModelError(
            f"the clips have {form.num_samples} samples; {recipe.name} needs {least} at least ("
            f"{least / form.sample_rate:g} s). Give every envoy.yaml longer clips, or take another model"
        )
    _check_masks(recipe, network, form)
    train_only(network, family, recipe, seed)
    if recipe.gradient_checkpointing:
        network.gradient_checkpointing_enable()
    return Classifier(network, extractor)


def save_pretrained(model: Classifier, folder: Path) -> None:
    """Write the model so that `AutoModelForAudioClassification` and `pipeline("audio-classification")` load it.

    What LoRA has trained is put into the weights that it was added to (`save_adapter` writes it alone). With a head of
    ours the code of the head lies beside the weights, and both need `trust_remote_code=True`. README.md says how the
    model is loaded, and what happens otherwise.
    """
    model.network.save_pretrained(folder, state_dict=merged_state(model.network))
    model.extractor.save_pretrained(folder)
    (folder / "README.md").write_text(_card(model), encoding="utf-8")


def _card(model: Classifier) -> str:
    """What one who finds the folder has to know, in the form of the hub's model cards."""
    ours = getattr(model.network.config, "head", None)
    argument = ", trust_remote_code=True" if ours else ""
    warning = f"""
**With `trust_remote_code=True` only.** The head ({ours}) is not one of the library's; its code is `heads.py` in this
folder, some hundred lines. Without the argument the library says at most that some weights are MISSING, puts a new head
in their place, and answers at random.
"""
    return f"""---
library_name: transformers
pipeline_tag: audio-classification
---

# A keyword spotter, trained by a federation

It hears clips at {model.extractor.sampling_rate} Hz and answers one of: {", ".join(model.labels)}.
{warning if ours else ""}
```python
from transformers import pipeline

spotter = pipeline("audio-classification", model="THIS FOLDER"{argument})
spotter({{"raw": waveform, "sampling_rate": {model.extractor.sampling_rate}}})  # waveform: float32, in [-1, 1]
```
"""


def _check_masks(recipe: ModelRecipe, network: object, form: ClipFormat) -> None:
    """The library finds out in the first step of training that a mask is longer than the clip."""
    if not recipe.spec_augment:
        return
    config = network.config  # type: ignore[attr-defined]
    family = FAMILIES[config.model_type]
    if not family.masks:
        raise ModelError(f"model.spec_augment: the library's classifier for {config.model_type} has none; leave it out")
    frames = family.frames(config, form.num_samples)
    for share, length, there, what in (
        ("mask_time_prob", "mask_time_length", frames, "frames"),
        ("mask_feature_prob", "mask_feature_length", config.hidden_size, "dimensions"),
    ):
        if getattr(recipe, share) > 0 and getattr(recipe, length) > there:
            raise ModelError(
                f"model.{length} is {getattr(recipe, length)}; {recipe.name} has {there} {what} for such a clip: set "
                f"it to {there} at most, model.{share} to 0, or model.spec_augment to false"
            )
