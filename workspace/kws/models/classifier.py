"""The classifier: a network of one of the families together with the preparation it expects."""

from collections.abc import Mapping
from typing import Any

import torch

from kws.models.family import Family, ModelError
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

    def inputs(self, waveforms: torch.Tensor) -> dict[str, torch.Tensor]:
        """Raw waveforms float32 (batch, num_samples) -> what the network eats, by name; the batch comes first."""
        return self.family.inputs(self.extractor, waveforms)

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
        """
        encoder = getattr(self.network, self.family.encoder)
        training = encoder.training
        encoder.eval()
        try:
            outputs = encoder(**inputs, output_hidden_states=self._weighs)
        finally:
            encoder.train(training)
        states = outputs.hidden_states if self._weighs else (outputs.last_hidden_state,)
        mask = inputs.get("attention_mask")
        return torch.stack([self.family.pool(self.network, state, mask) for state in states], dim=1)

    def logits_from_pooled(self, pooled: torch.Tensor) -> torch.Tensor:
        """What `pooled` gave -> logits float32 (batch, num_labels), as `logits` up to rounding.

        Raises:
            ModelError: the head is not linear up to the mean over time.
        """
        if self.network.config.__dict__.get("head") == "adapter":
            raise ModelError("model.head is 'adapter', which works on every frame; its answer needs more than the mean")
        mixed = pooled[:, 0]
        if self._weighs:
            mixed = (pooled * self.network.layer_weights.softmax(-1).unsqueeze(-1)).sum(dim=1)
        logits: torch.Tensor = self.network.classifier(self.network.projector(mixed))
        return logits

    @torch.no_grad()
    def conv_features(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What the frozen feature encoder makes of the inputs: float32 (batch, frames, channels)."""
        features: torch.Tensor = self.family.feature_encoder(self.network)(inputs["input_values"])
        return features.transpose(1, 2)

    def logits_from_conv(self, features: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """What `conv_features` gave -> logits float32 (batch, num_labels).

        mask: the inputs' attention_mask (batch, num_samples), or the number of ones in each row (batch, 1), which says
        the same; None where the inputs have none.
        """
        encoder = self.family.feature_encoder(self.network)
        encoder.forward = lambda _: features.transpose(1, 2)
        try:
            masked = {} if mask is None else {"attention_mask": mask}
            return self.logits({"input_values": features} | masked)
        finally:
            del encoder.forward

    @property
    def _weighs(self) -> bool:
        return bool(self.network.config.use_weighted_layer_sum)
