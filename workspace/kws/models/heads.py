"""Heads that the library has not. This file needs torch and transformers only, and is saved beside the weights.

A folder with such a head loads with `from_pretrained(folder, trust_remote_code=True)`; without it the library takes its
own class, which has another head, says that this one is new, and guesses.
"""

import functools
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput


def encoder_of(network: Any) -> Any:
    """The pretrained network inside a classifier of the library."""
    kind = network.config.model_type
    return getattr(network, "encoder" if kind == "whisper" else kind.replace("-", "_"))


def mean_over_time(network: Any, hidden: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """The mean that the library's class takes: (batch, frames, hidden) -> (batch, hidden).

    Over the frames of sound where there is a mask; the spectrogram transformer has two tokens for it instead.
    """
    if network.config.model_type == "audio-spectrogram-transformer":
        return (hidden[:, 0] + hidden[:, 1]) / 2
    if mask is None or not hasattr(network, "_get_feature_vector_attention_mask"):
        return hidden.mean(dim=1)
    valid = network._get_feature_vector_attention_mask(hidden.shape[1], mask).unsqueeze(-1)
    mean: torch.Tensor = (hidden * valid).sum(dim=1) / valid.sum(dim=1)
    return mean


class WithHead:
    """A class of the library with another head in the place of its own; `config.head` says which."""

    config: Any

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        for own in ("projector", "classifier", "layer_weights"):
            if hasattr(self, own):
                delattr(self, own)
        hidden, middle, labels = config.hidden_size, config.classifier_proj_size, config.num_labels
        if config.head == "adapter":
            narrow, dropout = config.adapter_hidden_size, nn.Dropout(config.head_dropout)
            self.adapter = nn.Sequential(nn.Linear(hidden, narrow), nn.ReLU(), dropout, nn.Linear(narrow, hidden))
            self.classifier: nn.Module = nn.Sequential(
                nn.Linear(hidden, middle), nn.ReLU(), dropout, nn.Linear(middle, labels)
            )
        else:
            states = config.num_hidden_layers + 1
            self.layer_weights = nn.Parameter(torch.ones(states) / states)
            self.projector = nn.Linear(hidden, middle)
            self.classifier = nn.Linear(middle, labels)
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self,
        input_values: torch.Tensor | None = None,
        input_features: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutput:
        """As the library's classes: inputs, mask and labels (batch,) to loss and logits (batch, num_labels)."""
        values = input_features if input_values is None else input_values
        weighs = self.config.head == "weighted_sum"
        outputs = encoder_of(self)(values, attention_mask=attention_mask, output_hidden_states=weighs)
        if weighs:
            mixed = torch.stack(outputs.hidden_states, dim=-1) @ self.layer_weights.softmax(-1)
            logits = self.classifier(self.projector(mean_over_time(self, mixed, attention_mask)))
        else:
            frames = self.adapter(outputs.last_hidden_state)
            logits = self.classifier(mean_over_time(self, frames, attention_mask))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@functools.cache
def __getattr__(name: str) -> Any:
    """The class of the library with that name, with another head; named alike, since `pipeline` looks at the name."""
    library = getattr(transformers, name, None) if name.endswith("Classification") else None
    if library is None:
        raise AttributeError(name)
    made = type(name, (WithHead, library), {"__module__": __name__, "__doc__": WithHead.__doc__})
    made.register_for_auto_class("AutoModelForAudioClassification")  # type: ignore[attr-defined]
    return made
