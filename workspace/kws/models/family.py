"""What a family of networks is to us: the few things in which its classes in Transformers differ from the others'."""

from dataclasses import dataclass
from typing import Any

import torch
import transformers

from kws.batches import sound_mask, standardise

DROPOUTS = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")


class ModelError(ValueError):
    """A model that cannot be built or loaded; says what was given and what to do."""


@dataclass(frozen=True)
class Family:
    """Networks that hear the waveform through a stack of convolutions, as Wav2Vec2 does; others override.

    library:  the class in Transformers that `AutoModelForAudioClassification` gives for this model type.
    encoder:  where that class has the pretrained network; the rest is the head.
    front:    where the encoder has its feature encoder, which stands before the transformer and is frozen by default.
    layers:   where the encoder has its transformer layers.
    behind:   what of the encoder stands behind the last hidden state; a weighted sum of the states does not read it.
    unread:   what of the encoder is not read at all.
    lora:     the linear maps, by the end of their names, that LoRA adds to.
    dropouts: the names in the configuration of what `ModelRecipe.dropout` sets.
    masks:    whether the classifier has SpecAugment.
    extractor: its feature extractor's class.
    prefix:   what the names of the encoder's tensors begin with, where the library has that wrong.
    """

    library: str
    encoder: str
    front: tuple[str, ...] = ("feature_extractor",)
    layers: str = "encoder.layers"
    behind: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()
    lora: tuple[str, ...] = ("q_proj", "v_proj")
    dropouts: tuple[str, ...] = DROPOUTS
    masks: bool = True
    prefix: str | None = None
    extractor: str = "Wav2Vec2FeatureExtractor"

    @property
    def extractor_class(self) -> Any:
        """The class of its feature extractor."""
        return getattr(transformers, self.extractor)

    @property
    def hears_waveforms(self) -> bool:
        """Whether the network eats waveforms, not spectrograms."""
        return "feature_extractor" in self.front

    def default_extractor(self, config: Any) -> Any:
        """The feature extractor of a checkpoint that comes without one, 16 kHz."""
        mask = getattr(config, "feat_extract_norm", "layer") == "layer"
        return self.extractor_class(do_normalize=True, return_attention_mask=mask)

    def inputs(self, config: Any, extractor: Any, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the network eats: from raw waveforms, float32 (batch, num_samples), what the extractor makes of them."""
        if not extractor.return_attention_mask:
            return {"input_values": standardise(waveforms) if extractor.do_normalize else waveforms}
        mask = self.sound(config, waveforms)
        return {
            "input_values": standardise(waveforms, mask) if extractor.do_normalize else waveforms,
            "attention_mask": mask,
        }

    def sound(self, config: Any, waveforms: torch.Tensor) -> torch.Tensor:
        """1 for sound, 0 for the padding behind it; a clip with less sound than the network needs counts as a whole."""
        mask = sound_mask(waveforms)
        return mask.masked_fill(mask.sum(dim=-1, keepdim=True) < self.least_samples(config), 1)

    def frames(self, config: Any, num_samples: int) -> int:
        """Frames that the transformer gets for a clip."""
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            num_samples = (num_samples - kernel) // stride + 1
        return num_samples

    def least_samples(self, config: Any) -> int:
        """The shortest clip that the network can hear."""
        length = int(getattr(config, "squeeze_factor", 1))  # SEW joins so many frames before its transformer
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            length = (length - 1) * stride + kernel
        return length

    def not_read(self, config: Any) -> tuple[str, ...]:
        """What of the encoder the classifier passes by, by the start of the names: it cannot be trained."""
        masked = () if getattr(config, "apply_spec_augment", False) else ("masked_spec_embed",)
        if not getattr(config, "use_weighted_layer_sum", False):
            return self.unread + masked
        last_norm = ("encoder.layer_norm.",) if getattr(config, "do_stable_layer_norm", False) else ()
        return self.unread + masked + self.behind + last_norm

    def misfit(self, config: Any, extractor: Any, num_samples: int) -> str | None:
        """Why extractor, network and clips of this length do not go together, or None where they do."""
        return None

    def cut_positions(self, network: Any, num_samples: int) -> Any:
        """Cut the network, in place, to clips of this length; returns the feature extractor that goes with it.

        Raises:
            ModelError: the network has nothing to cut.
        """
        raise ModelError("model.cut_positions is for Whisper, which pads every clip to 30 s; leave it out")


class SpectrogramFamily(Family):
    """Networks that eat spectrograms, made by their own feature extractor."""

    def inputs(self, config: Any, extractor: Any, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """What the extractor makes of each waveform."""
        clips = list(waveforms.cpu().numpy())
        made = extractor(clips, sampling_rate=extractor.sampling_rate, return_tensors="pt")
        return {name: values.to(waveforms.device) for name, values in made.items()}

    def least_samples(self, config: Any) -> int:
        """One window of 25 ms."""
        return 400
