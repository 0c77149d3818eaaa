"""The models of the benchmark: wav2vec2-base's tensors, whole or cut down."""

from functools import cache

SIZES = {"tiny": 0.5, "base": None}
"""Megabytes of a named size; None for the whole model."""


@cache
def wav2vec2_base() -> dict[str, tuple[int, ...]]:
    """Shapes of facebook/wav2vec2-base with a head for twelve labels: 215 tensors, 94.57 M parameters."""
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    with torch.device("meta"):  # shapes without numbers
        network = Wav2Vec2ForSequenceClassification(Wav2Vec2Config(num_labels=12))
    return {name: tuple(parameter.shape) for name, parameter in network.named_parameters()}


def shapes(size: str) -> dict[str, tuple[int, ...]]:
    """The tensors of a size: "base", "tiny", or megabytes.

    Below the full size every tensor is cut to the same part of its first axis, so that there are always 215.

    Raises:
        ValueError: no such size.
    """
    whole = wav2vec2_base()
    try:
        megabytes = SIZES[size] if size in SIZES else float(size)
    except ValueError:
        raise ValueError(f"size {size!r}: give {', '.join(SIZES)}, or megabytes") from None
    if megabytes is None:
        return whole
    total = sum(_parameters(shape) for shape in whole.values()) * 4 / 1e6
    if not 0 < megabytes <= total:
        raise ValueError(f"size {size} MB: give more than 0 and at most {total:.0f} MB (base)")
    return {name: _cut(shape, megabytes / total) for name, shape in whole.items()}


def _parameters(shape: tuple[int, ...]) -> int:
    count = 1
    for axis in shape:
        count *= axis
    return count


def _cut(shape: tuple[int, ...], part: float) -> tuple[int, ...]:
    return (max(1, round(shape[0] * part)), *shape[1:])
