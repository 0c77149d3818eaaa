"""The classifier: a network of one of the families together with the preparation it expects."""

from collections.abc import Mapping
from typing import Any

import torch

from kws.models.family import Family, ModelError
from kws.models.heads import encoder_of, mean_over_time
from kws.models.registry import FAMILIES


class Classifier(torch.nn.Module):
    """Waveforms to logits. `network` is a module of Transformers, `extractor` its feature extractor."""

    def __init__(self, network: Any, extractor: Any) -> None:
        super().__init__()
        self.network = network
        self.extractor = extractor

    @property
    def family(self) -> Family:
        """In what the network differs from the others."""
        return FAMILIES[self.network.config.model_type]

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names by id."""
        names: Mapping[int, str] = self.network.config.id2label
        return tuple(names[number] for number in sorted(names))

    def train(self, mode: bool = True) -> "Classifier":
        """Training mode, but for what is frozen: it behaves as it does in evaluation, without dropout."""
        super().train(mode)
        if mode:
            for module in self.network.modules():
                weights = list(module.parameters())
                if weights and not any(each.requires_grad for each in weights):
                    module.eval()
        return self

    def inputs(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw waveforms float32 (batch, num_samples) -> what the network eats, by name; the batch comes first."""
        return self.family.inputs(self.network.config, self.extractor, waveforms)

    def logits(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What `inputs` gave -> logits float32 (batch, num_labels)."""
        logits: torch.Tensor = self.network(**inputs).logits
        return logits

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        """Raw waveforms float32 (batch, num_samples) -> logits float32 (batch, num_labels)."""
        return self.logits(self.inputs(waveforms))

    @torch.no_grad()
    def pooled(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The mean over time of the hidden states that the head reads: float32 (batch, states, hidden).

        Of all of them (the embedding and every layer) where the head weighs them, else of the last. Without dropout,
        whatever mode the model is in, and without gradients.

        Raises:
            ModelError: the head is not linear up to the mean over time.
        """
        self._refuse_adapter()
        training = self.training
        self.network.eval()
        try:
            outputs = encoder_of(self.network)(**inputs, output_hidden_states=self._weighs)
        finally:
            self.train(training)
        states = outputs.hidden_states if self._weighs else (outputs.last_hidden_state,)
        mask = inputs.get("attention_mask")
        return torch.stack([mean_over_time(self.network, state, mask) for state in states], dim=1)

    def logits_from_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """What `pooled` gave -> logits float32 (batch, num_labels), as `logits` up to rounding.

        Raises:
            ModelError: the head is not linear up to the mean over time.
        """
        self._refuse_adapter()
        mixed = pooled[:, 0]
        if self._weighs:
            mixed = (pooled * self.network.layer_weights.softmax(-1).unsqueeze(-1)).sum(dim=1)
        projected = self.network.projector(mixed) if hasattr(self.network, "projector") else mixed
        logits: torch.Tensor = self.network.classifier(projected)
        return logits

    @torch.no_grad()
    def conv_features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What is the same for a clip as long as the feature encoder is frozen: float32, the batch first.

        Its output (batch, frames, channels); of families that eat spectrograms, the spectrogram as it comes.
        """
        values = inputs[self.network.main_input_name]
        if not self.family.hears_waveforms:
            return values
        features: torch.Tensor = encoder_of(self.network).feature_extractor(values)
        return features.transpose(1, 2)

    def logits_from_conv(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What `conv_features` gave -> logits float32 (batch, num_labels).

        mask: the inputs' attention_mask. Of families that hear waveforms the number of ones in each of its rows will
        do, int64 (batch, 1). None where the inputs have none.
        """
        inputs = {self.network.main_input_name: features} | ({} if mask is None else {"attention_mask": mask})
        if not self.family.hears_waveforms:
            return self.logits(inputs)
        front = encoder_of(self.network).feature_extractor
        front.forward = lambda _: features.transpose(1, 2)  # hides the method of its class for this one call
        try:
            return self.logits(inputs)
        finally:
            del front.forward

    @property
    def _weighs(self) -> bool:
        return bool(getattr(self.network.config, "use_weighted_layer_sum", False))

    def _refuse_adapter(self) -> None:
        if hasattr(self.network, "adapter"):
            raise ModelError("model.head is 'adapter', which works on every frame: the mean over time is not enough")
