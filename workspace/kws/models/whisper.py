"""Whisper's encoder (Radford et al. 2022)."""

from typing import Any

import torch
from transformers import WhisperFeatureExtractor

from kws.models.family import ModelError, SpectrogramFamily

RATE, HOP = 16_000, 160
"""Samples a second, and samples between two frames of the spectrogram; two frames share a position."""


class Whisper(SpectrogramFamily):
    """It pads every clip to 30 s, 1,500 positions, and takes the mean over all of them.

    Cut to the clip, it does a thirtieth of the work on one second, and the mean is over the clip alone. That is another
    network than the published one, which has always seen silence behind a short clip: with its encoder frozen the
    accuracy may change either way, so measure it.
    """

    def default_extractor(self, config: Any) -> Any:
        """As long as the positions."""
        return _extractor(config, config.max_source_positions * 2 * HOP // RATE)

    def least_samples(self, config: Any) -> int:
        """Anything is padded."""
        return 1

    def misfit(self, config: Any, extractor: Any, num_samples: int) -> str | None:
        """A spectrogram of another size, or a clip of which the end would be cut off."""
        if (extractor.feature_size, extractor.nb_max_frames) != (config.num_mel_bins, 2 * config.max_source_positions):
            return (
                f"its feature extractor makes {extractor.feature_size} x {extractor.nb_max_frames}, its network needs "
                f"{config.num_mel_bins} x {2 * config.max_source_positions}"
            )
        if num_samples > extractor.n_samples:
            return f"it hears {extractor.n_samples / RATE:g} s, and the clips have {num_samples / RATE:g} s"
        return None

    def cut_positions(self, network: Any, num_samples: int) -> Any:
        """Keep as many positions as the clip has, in whole seconds, which is what the feature extractor can be told."""
        seconds = -(-num_samples // RATE)
        positions = seconds * RATE // (2 * HOP)
        encoder, config = network.encoder, network.config
        if positions > config.max_source_positions:
            raise ModelError(f"it has {config.max_source_positions} positions, 50 a second; the clips have {seconds} s")
        kept = encoder.embed_positions.weight[:positions].clone()
        encoder.embed_positions = torch.nn.Embedding(positions, config.d_model, _weight=kept, _freeze=True)
        config.max_source_positions = encoder.max_source_positions = positions
        return _extractor(config, seconds)


def _extractor(config: Any, seconds: int) -> Any:
    return WhisperFeatureExtractor(feature_size=config.num_mel_bins, chunk_length=seconds)
