"""The model of an experiment on a site's device, and what its tasks do with it.

The engine's task runner keeps a second copy of what it has loaded, loads it for each task, and gathers the optimizer's
state whatever becomes of it. Here the model holds what was loaded last, and nothing else is kept.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from federation.errors import FederationError
from federation.experiment import Experiment, Task

MAX_METRICS = 1000
NAME_CHARACTERS = 200


class Worker:
    """Trains and validates.

    An adapter that has `save_local_state` and `load_local_state` (`federation.site.local_state`) lets the optimizer's
    state outlive this process.
    """

    def __init__(self, experiment: Experiment, device: str = "cpu") -> None:
        self._experiment, self._device = experiment, device
        self._model = experiment.model.provide_model()
        self._optimizer = experiment.model.provide_optimizer()
        self._held: Mapping[str, np.ndarray] | None = None

    @property
    def examples(self) -> tuple[int, int]:
        """How many examples this site trains on, and how many it validates on."""
        data = self._experiment.data
        return int(data.get_train_data_size()), int(data.get_valid_data_size())

    @property
    def has_state(self) -> bool:
        """Whether the optimizer's state can be kept in a file."""
        return hasattr(self._experiment.adapter, "save_local_state")

    def holds(self, tensors: Mapping[str, np.ndarray]) -> bool:
        """Whether the model is this one, the object that was loaded or trained."""
        return tensors is self._held

    def train(self, tensors: Mapping[str, np.ndarray], done: int) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Train from these tensors, after `done` rounds; the trained ones (the model's own, not copied) and metrics."""
        self._load(tensors)
        metrics = self._run(self._experiment.train, self._experiment.data.get_train_loader(), done)
        trained = dict(self._experiment.adapter.get_tensor_dict(self._model))
        self._held = trained
        return trained, metrics

    def validate(self, tensors: Mapping[str, np.ndarray], done: int) -> dict[str, float]:
        """The metrics of a model with these tensors."""
        self._load(tensors)
        return self._run(self._experiment.validate, self._experiment.data.get_valid_loader(), done)

    def forget_state(self) -> None:
        """Begin anew with the optimizer."""
        self._optimizer = self._experiment.model.provide_optimizer()

    def save_state(self, path: Path) -> None:
        """Write the optimizer's state into a file."""
        self._experiment.adapter.save_local_state(self._model, self._optimizer, path)

    def load_state(self, path: Path) -> None:
        """Go on with the optimizer's state from a file."""
        self._experiment.adapter.load_local_state(self._model, self._optimizer, path, self._device)

    def own_tensors(self) -> dict[str, np.ndarray]:
        """What is the site's own and never travels."""
        adapter = self._experiment.adapter
        return dict(adapter.own_tensors(self._model)) if hasattr(adapter, "own_tensors") else {}

    def _load(self, tensors: Mapping[str, np.ndarray]) -> None:
        if not self.holds(tensors):
            self._experiment.adapter.set_tensor_dict(self._model, tensors, device=self._device)
            self._held = tensors

    def _run(self, task: Task, loader: Any, done: int) -> dict[str, float]:
        returned = task(
            model=self._model, data_loader=loader, device=self._device, optimizer=self._optimizer, round_num=done
        )
        return _numbers(returned)


def _numbers(returned: Any) -> dict[str, float]:
    """What a task has returned, as numbers by name."""
    if not isinstance(returned, Mapping) or len(returned) > MAX_METRICS:
        raise FederationError(
            f"the task returned {type(returned).__name__}; it has to return up to 1000 metrics by name"
        )
    metrics = {}
    for name, value in returned.items():
        if not isinstance(name, str) or not 0 < len(name) <= NAME_CHARACTERS:
            raise FederationError(
                f"the task named a metric {str(name)[:60]!r}; allowed: up to {NAME_CHARACTERS} characters"
            )
        try:
            metrics[name] = float(value)
        except (TypeError, ValueError):
            raise FederationError(f"metric {name} is {type(value).__name__}; a task returns numbers by name") from None
    return metrics
