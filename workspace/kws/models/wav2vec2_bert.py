"""W2v-BERT 2.0 (Barrault et al. 2023)."""

from typing import Any

import torch

from kws.models.family import SpectrogramFamily


class Wav2Vec2Bert(SpectrogramFamily):
    """It eats mel spectrograms whose bands are standardised over time, so that padding must not be among it."""

    def default_extractor(self, config: Any) -> Any:
        """80 bands, two frames in one."""
        return self.extractor_class(stride=config.feature_projection_input_dim // 80)

    def inputs(self, config: Any, extractor: Any, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """The spectrogram of each clip's sound, padded to the length of the batch's clips, and the mask of it."""
        lengths = self.sound(config, waveforms).sum(dim=-1).tolist()
        clips = [clip[:length] for clip, length in zip(waveforms.cpu().numpy(), lengths, strict=True)]
        frames = self.frames(config, waveforms.shape[-1]) * extractor.stride
        made = extractor(
            clips, sampling_rate=extractor.sampling_rate, padding="max_length", max_length=frames, return_tensors="pt"
        )
        return {name: values.to(waveforms.device) for name, values in made.items()}

    def frames(self, config: Any, num_samples: int) -> int:
        """Windows of 25 ms every 10 ms, two in one."""
        return -(-((num_samples - 400) // 160 + 1) // 2)

    def misfit(self, config: Any, extractor: Any, num_samples: int) -> str | None:
        """A spectrogram of another size."""
        made, needed = extractor.feature_size * extractor.stride, config.feature_projection_input_dim
        return None if made == needed else f"its feature extractor makes {made} bands, its network needs {needed}"
