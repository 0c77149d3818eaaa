"""The small network that is trained from scratch."""

import math
from typing import Any

import torch
from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor

from kws.config import ModelRecipe
from kws.models.labels import label_maps
from kws.models.loading import head_settings, masking, network_class
from kws.models.registry import FAMILIES
from shard_descriptors.corpus import ClipFormat

PHASES = 4
"""Kernels per mel band in the first convolution."""


def tiny(recipe: ModelRecipe, form: ClipFormat) -> tuple[Any, Any]:
    """The network, untrained, and its feature extractor."""
    settings = head_settings(recipe) | masking(recipe)
    network = network_class(FAMILIES["wav2vec2"], recipe)(tiny_config(recipe, form, settings))
    start_from_mel_bands(network.wav2vec2.feature_extractor.conv_layers[0].conv, form.sample_rate)
    return network, Wav2Vec2FeatureExtractor(
        sampling_rate=form.sample_rate, do_normalize=True, return_attention_mask=False
    )


def tiny_config(recipe: ModelRecipe, form: ClipFormat, settings: dict[str, Any]) -> Wav2Vec2Config:
    """A network of 0.34 M parameters, small enough to be trained from scratch on a CPU within minutes.

    The first convolution sees 25 ms every 10 ms, as speech front ends do; the others bring that to one frame in 40 ms.
    """
    made: dict[str, Any] = {
        "conv_dim": (40 * PHASES, 96, 128),
        "conv_kernel": (400, 3, 3),
        "conv_stride": (160, 2, 2),
        "conv_bias": True,
        "feat_extract_norm": "layer",
        "feat_extract_activation": "relu",
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 8,
        "hidden_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 192,
        "do_stable_layer_norm": True,
        "initializer_range": 0.12,
        "use_weighted_layer_sum": True,
        "classifier_proj_size": 96,
        "hidden_dropout": recipe.dropout,
        "feat_proj_dropout": recipe.dropout / 2,
        "attention_dropout": 0.0,
        "activation_dropout": 0.0,
        "final_dropout": 0.0,
        "layerdrop": 0.0,
    }
    return Wav2Vec2Config(**made | settings | label_maps(form.labels))


def start_from_mel_bands(convolution: torch.nn.Conv1d, sample_rate: int) -> None:
    """Initialise a first convolution, in place, as windowed cosines on the mel scale, `PHASES` phases a band.

    Training from random kernels spends most of a small corpus on finding such filters: after 10 epochs of 2,410 clips
    the test accuracy was 0.67, and 0.79 from this start. Kernels as in Zeghidour et al. 2018 (Time-Domain
    Filterbanks), with real cosines in place of Gabor pairs.
    """
    channels, _, width = convolution.weight.shape
    bands = channels // PHASES
    edges = _from_mel(torch.linspace(_to_mel(60.0), _to_mel(0.45 * sample_rate), bands + 2))
    time = (torch.arange(width) - (width - 1) / 2) / sample_rate
    length = (4 / (edges[2:] - edges[:-2])).clamp(0.004, width / sample_rate)[:, None]  # narrow bands need long windows
    window = torch.where(time.abs() < length / 2, 0.5 + 0.5 * torch.cos(2 * math.pi * time / length), 0.0)
    phases = 2 * math.pi * torch.arange(PHASES) / PHASES
    carrier = torch.cos(2 * math.pi * edges[1:-1, None] * time + phases[:, None, None])
    kernels = torch.nn.functional.normalize((window * carrier).reshape(channels, width), dim=1)
    with torch.no_grad():
        convolution.weight.copy_(kernels[:, None])
        if convolution.bias is not None:
            convolution.bias.zero_()


def _to_mel(hertz: float) -> float:
    return 2595 * math.log10(1 + hertz / 700)


def _from_mel(mel: torch.Tensor) -> torch.Tensor:
    return 700 * (10 ** (mel / 2595) - 1)
