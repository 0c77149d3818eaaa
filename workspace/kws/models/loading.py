"""From a name on the hub, or a folder, to a network and its feature extractor."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

from kws.config import ModelRecipe
from kws.models.family import ModelError
from kws.models.labels import label_maps
from shard_descriptors.corpus import ClipFormat


def pretrained(
    recipe: ModelRecipe, form: ClipFormat
) -> tuple[Wav2Vec2ForSequenceClassification, Wav2Vec2FeatureExtractor]:
    """The network of a recipe with a head for these labels, and what prepares its inputs.

    Raises:
        ModelError: the weights cannot be had, or are not whole; says what to do.
    """
    labels = form.labels
    names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    try:
        kind = Wav2Vec2Config.get_config_dict(recipe.name)[0].get("model_type")
        if kind is None:
            raise ValueError("no config.json that names a model_type")
        if kind != Wav2Vec2Config.model_type:
            raise ModelError(f"{recipe.name} holds a model of type {kind!r}; this workspace trains 'wav2vec2'")
        extractor = Wav2Vec2FeatureExtractor.from_pretrained(recipe.name)
        config = Wav2Vec2Config.from_pretrained(recipe.name, **dict.fromkeys(names, recipe.dropout), layerdrop=0.0)
        published = config.id2label
        same_labels = sorted(published.values()) == sorted(labels)
        if not same_labels:
            config.update(label_maps(labels))
        network, loaded = Wav2Vec2ForSequenceClassification.from_pretrained(
            recipe.name, config=config, ignore_mismatched_sizes=not same_labels, output_loading_info=True
        )
        absent = sorted(set(loaded["missing_keys"]) & set(_encoder_tensors(network)))
        if absent:  # the library would train on with random numbers in their place
            raise ValueError(f"{len(absent)} of its tensors are missing, {absent[0]} for one")
    except ModelError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds for what can be wrong with a file
        if Path(recipe.name).is_dir():
            raise ModelError(
                f"{recipe.name} does not hold a whole Wav2Vec2 model ({_first_line(error)}); it needs "
                f"config.json, preprocessor_config.json and model.safetensors. Copy it again, or change model.name"
            ) from error
        if _is_path(recipe.name):
            raise ModelError(
                f"there is no folder {recipe.name} on this machine; every site and the notebook need the model under "
                f"the path that model.name gives. Copy it there, or give a hub name or 'tiny'"
            ) from error
        raise ModelError(
            f"the weights of {recipe.name!r} cannot be had: no such local folder, and the hub did not give them. "
            f"On a machine with the internet, run `hf download {recipe.name} --local-dir FOLDER`, copy FOLDER to "
            f"every site and give its path as model.name; or give 'tiny', which needs no download."
        ) from error
    if extractor.sampling_rate != form.sample_rate:
        raise ModelError(
            f"{recipe.name} was made for {extractor.sampling_rate} Hz; these clips have {form.sample_rate} Hz; "
            f"set sample_rate in every envoy.yaml to the model's"
        )
    if same_labels:
        _reorder_labels(network, [published[number] for number in range(len(labels))], labels)
    else:  # a head for as many other labels would be taken over, row by row
        torch.nn.init.normal_(network.classifier.weight, std=config.initializer_range)
        torch.nn.init.zeros_(network.classifier.bias)
    return network, extractor


def _encoder_tensors(network: Wav2Vec2ForSequenceClassification) -> list[str]:
    """What pretrained weights must hold; a head may be new, and the embedding for masked frames is not used here."""
    return [name for name in network.state_dict() if name.startswith("wav2vec2.") and "masked_spec_embed" not in name]


def _is_path(name: str) -> bool:
    """Whether a name can only be meant as a path: on the hub it has one slash at most."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__


def _reorder_labels(network: Wav2Vec2ForSequenceClassification, old: Sequence[str], new: Sequence[str]) -> None:
    """Sort the rows of a trained head so that each label keeps its own; projects number the labels differently."""
    rows = [old.index(name) for name in new]
    with torch.no_grad():
        network.classifier.weight.copy_(network.classifier.weight[rows].clone())
        network.classifier.bias.copy_(network.classifier.bias[rows].clone())
    network.config.update(label_maps(new))
