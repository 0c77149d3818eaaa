"""What a family of networks is to us: the few things in which its classes in Transformers differ from the others'."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import Wav2Vec2FeatureExtractor

from kws.sound import sound_mask, standardise


class ModelError(ValueError):
    """A model that cannot be built or loaded; says what was given and what to do."""


@dataclass(frozen=True)
class Family:
    """Networks that hear the waveform through a stack of convolutions, as Wav2Vec2 does; others override.

    library: the class in Transformers that `AutoModelForAudioClassification` gives for this model type.
    encoder: the attribute of that class that holds the pretrained network.
    dropouts: the names in its configuration of what `ModelRecipe.dropout` sets.
    """

    library: str
    encoder: str
    dropouts: tuple[str, ...] = (
        "hidden_dropout",
        "attention_dropout",
        "activation_dropout",
        "feat_proj_dropout",
        "final_dropout",
    )

    def extractor(self, config: Any) -> Any:
        """The feature extractor for a checkpoint that comes without one."""
        return Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=config.feat_extract_norm == "layer")

    def inputs(self, extractor: Any, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network eats: from raw waveforms, float32 (batch, num_samples), what the extractor makes of them."""
        mask = sound_mask(waveforms) if extractor.return_attention_mask else None
        values = standardise(waveforms, mask) if extractor.do_normalize else waveforms
        return {"input_values": values} if mask is None else {"input_values": values, "attention_mask": mask}

    def feature_encoder(self, network: Any) -> torch.nn.Module:
        """What stands before the transformer and is frozen by default."""
        found: torch.nn.Module = getattr(network, self.encoder).feature_extractor
        return found

    def pool(self, network: Any, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Mean over time, as the library's class takes it: (batch, frames, hidden) -> (batch, hidden)."""
        if mask is None:
            return hidden.mean(dim=1)
        valid = network._get_feature_vector_attention_mask(hidden.shape[1], mask).unsqueeze(-1)
        mean: torch.Tensor = (hidden * valid).sum(dim=1) / valid.sum(dim=1)
        return mean
