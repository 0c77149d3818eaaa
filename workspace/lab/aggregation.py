"""How the sites' models become one: the plain reference version of each rule."""

from collections.abc import Mapping, Sequence

import numpy as np

Weights = Mapping[str, np.ndarray]
"""Trained tensors by name, float32."""


def weighted_mean(models: Sequence[Weights], sizes: Sequence[float]) -> dict[str, np.ndarray]:
    """FedAvg (McMahan et al. 2017, algorithm 1): the mean of the models, weighted by the sites' training utterances.

    Raises:
        ValueError: no models, or names that differ between them.
    """
    if not models or len(models) != len(sizes):
        raise ValueError(f"{len(models)} models and {len(sizes)} sizes; need as many of each, at least one")
    if any(model.keys() != models[0].keys() for model in models):
        raise ValueError("the models have tensors of different names and cannot be averaged")
    shares = [size / sum(sizes) for size in sizes]
    return {
        name: np.average([model[name] for model in models], weights=shares, axis=0).astype(np.float32)
        for name in models[0]
    }
