"""Choosing the best round outside the federation as the federation does: on the same clips, by the same metric."""

from collections.abc import Callable, Mapping

import torch

from kws.algorithms import Local
from kws.clips import Clips
from kws.config import ExperimentConfig
from kws.metrics import METRICS
from kws.model import Classifier, build_model
from kws.training import evaluate
from lab.joined import heard_by
from lab.simulation import Weights


class Selection:
    """Validates the model of every round, and keeps the best by `best_metric`; of equals the last.

    To be called with the number of rounds that are done, and the weights that they have made
    (`lab.simulation.federated_averaging`, `after_round`); says whether there was no better one for as many rounds as
    `training.patience` allows.

    Args:
        config: the experiment.
        validation: clips to choose by; as the model hears them they are made once.
        device: where to compute.
        report: told the rounds that are done, and their scores.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        validation: Clips,
        device: str,
        report: Callable[[int, Mapping[str, float]], None],
    ) -> None:
        self._config, self._report = config, report
        model = build_model(config.model, config.training.seed, validation.format).to(torch.device(device))
        self._local = Local(model, config.algorithm)  # where each site has a head of its own, this one has a new one
        self._heard = heard_by(model, validation, config.training)
        self._best: tuple[float, Weights] | None = None
        self.best_round = 0

    def __call__(self, done: int, weights: Weights) -> bool:
        """Validate these weights."""
        self._local.load(weights)
        scores = evaluate(self._local.model, self._heard, self._config.training).scalars()
        self._report(done, scores)
        score, metric = scores[self._config.best_metric], METRICS[self._config.best_metric]
        if self._best is None or metric.better(score, self._best[0]):
            self._best, self.best_round = (score, weights), done
        patience = self._config.training.patience
        return patience is not None and done - self.best_round >= patience

    @property
    def best(self) -> Weights:
        """The weights of the best round so far; at least one was validated."""
        assert self._best is not None
        return self._best[1]

    def best_model(self) -> Classifier:
        """A model with these weights, the same object each time."""
        self._local.load(self.best)
        return self._local.model
