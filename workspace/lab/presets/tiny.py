"""The small network that is trained from scratch; DECISIONS.md, 7, says how it was found."""

from kws.config import ExperimentConfig, ModelRecipe, Training


def experiment(model: str) -> ExperimentConfig:
    """Thirty rounds; synthetic speech is learned in ten (`lab.asked.SYNTHETIC_ROUNDS`)."""
    return ExperimentConfig(ModelRecipe(model), Training(rounds=30))
