"""The Audio Spectrogram Transformer (Gong et al. 2021)."""

from typing import Any

from kws.models.family import SpectrogramFamily


class SpectrogramTransformer(SpectrogramFamily):
    """It cuts the spectrogram into patches and answers from two tokens that stand before them."""

    def default_extractor(self, config: Any) -> Any:
        """As large as the network's positions; mean and variance are AudioSet's, as the published ones have them."""
        return self.extractor_class(num_mel_bins=config.num_mel_bins, max_length=config.max_length)

    def misfit(self, config: Any, extractor: Any, num_samples: int) -> str | None:
        """A spectrogram of another size, or a clip of which the end would be cut off."""
        made, needed = (extractor.num_mel_bins, extractor.max_length), (config.num_mel_bins, config.max_length)
        if made != needed:
            return f"its feature extractor makes {made[0]} x {made[1]}, its network needs {needed[0]} x {needed[1]}"
        if self.frames(config, num_samples) > config.max_length:
            return f"it hears {config.max_length / 100:g} s, and the clips are longer"
        return None

    def frames(self, config: Any, num_samples: int) -> int:
        """Windows of 25 ms every 10 ms."""
        return (num_samples - 400) // 160 + 1
