"""The classifier: from a recipe to a module, its trained tensors, and the folder that others load it from."""

from pathlib import Path

from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification, set_seed

from kws.config import ModelRecipe
from kws.models.classifier import Classifier
from kws.models.family import ModelError
from kws.models.loading import pretrained
from kws.models.tiny import start_from_mel_bands, tiny_config
from kws.models.trained import load_weights, trained_tensors, trained_weights
from shard_descriptors.corpus import ClipFormat

__all__ = [
    "Classifier",
    "ModelError",
    "build_model",
    "load_weights",
    "save_pretrained",
    "trained_tensors",
    "trained_weights",
]


def build_model(recipe: ModelRecipe, seed: int, form: ClipFormat) -> Classifier:
    """A classifier of such clips; what is not pretrained is initialised from the seed.

    Raises:
        ModelError: the weights cannot be had; says how to get them.
    """
    set_seed(seed)
    if recipe.name == "tiny":
        network = Wav2Vec2ForSequenceClassification(tiny_config(recipe.dropout, form.labels))
        front_end = network.wav2vec2.feature_extractor
        start_from_mel_bands(front_end.conv_layers[0].conv, form.sample_rate)
        # Else the library computes a gradient for the waveform too, which nobody reads: a tenth of the time.
        front_end._requires_grad = False
        extractor = Wav2Vec2FeatureExtractor(
            sampling_rate=form.sample_rate, do_normalize=True, return_attention_mask=False
        )
    else:
        network, extractor = pretrained(recipe, form)
    if recipe.trains == "all_but_feature_encoder":
        network.freeze_feature_encoder()
    return Classifier(network, extractor)


def save_pretrained(model: Classifier, folder: Path) -> None:
    """Write the model so that `AutoModelForAudioClassification` and `pipeline("audio-classification")` load it."""
    model.network.save_pretrained(folder)
    model.extractor.save_pretrained(folder)
