"""What of a network is trained, and therefore travels."""

from collections.abc import Mapping

import numpy as np
import torch

from kws.models.classifier import Classifier
from kws.models.family import ModelError


def trained_tensors(model: Classifier) -> dict[str, np.ndarray]:
    """The tensors that training changes, by name, float32. Only these are federated.

    On the CPU they are the model's own memory and change with it.
    """
    return {
        name: parameter.detach().cpu().numpy()
        for name, parameter in model.network.named_parameters()
        if parameter.requires_grad
    }


def trained_weights(model: Classifier) -> dict[str, np.ndarray]:
    """Copies of the trained tensors."""
    return {name: array.copy() for name, array in trained_tensors(model).items()}


def load_weights(model: Classifier, weights: Mapping[str, np.ndarray]) -> None:
    """Put trained tensors into the model, in place.

    Raises:
        ModelError: names or shapes are not those of the model.
    """
    own = {name: parameter for name, parameter in model.network.named_parameters() if parameter.requires_grad}
    if own.keys() != weights.keys():
        raise ModelError(
            f"the tensors are not this model's; they differ in: {', '.join(sorted(own.keys() ^ weights.keys()))}"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            array = weights[name]  # read from disk now, if it is there
            if parameter.shape != array.shape:
                raise ModelError(f"{name} has shape {tuple(array.shape)}; this model's is {tuple(parameter.shape)}")
            parameter.copy_(torch.from_numpy(np.require(array, requirements=["C", "W"])))
