"""Made-up answers of models, for the tests beside it."""

import numpy as np

from kws.metrics import Evaluation
from lab.predictions import Predictions

LABELS = ("yes", "no", "up", "_silence_")


def answered(labels: np.ndarray, right: np.ndarray, sharpness: float = 3.0) -> Evaluation:
    """An evaluation of these labels, right where it is said; else the answer is the next label."""
    answers = np.where(right, labels, (labels + 1) % len(LABELS))
    return Evaluation(labels, sharpness * np.eye(len(LABELS), dtype=np.float32)[answers])


def predictions(
    generator: np.random.Generator,
    speakers: int = 28,
    silence: int = 50,
    models: tuple[str, ...] = ("federated", "pooled"),
) -> Predictions:
    """Some 26 clips of each speaker and some of nobody; a speaker is easy or difficult for every model.

    The models' ability has means of 1.5, 1.7, 1.9... in logits; among speakers it has a standard deviation of 1 that is
    common to all models, and one of 0.5 of each model's own. Silence is right 9 times of 10.
    """
    speaker = np.repeat(np.arange(speakers), generator.integers(12, 40, speakers))
    labels = np.concatenate([generator.integers(0, 3, len(speaker)), np.full(silence, 3)])
    common = generator.normal(0, 1, speakers)
    evaluations = {}
    for number, model in enumerate(models):
        ability = 1.5 + 0.2 * number + common + 0.5 * generator.normal(0, 1, speakers)
        chance = np.concatenate([(1 / (1 + np.exp(-ability)))[speaker], np.full(silence, 0.9)])
        evaluations[model] = answered(labels, generator.random(len(labels)) < chance)
    names = (*(f"speaker{number}" for number in speaker), *[None] * silence)
    clips = tuple((f"{number}.wav", 0) for number in range(len(labels)))
    return Predictions(evaluations, names, LABELS, clips, ("test",) * len(labels))
