"""The experiments that a director knows.

The engine looks every 10 s whether one of them is to be started (component/director/experiment.py:347). Here that is an
event (`federation.director.queueing`).
"""

from federation.director.conductor import Conductor
from federation.director.running import RunningExperiment


class ExperimentsRegistry(dict[str, RunningExperiment]):
    """Experiments by name, in the order of their submission (the engine's interface, without its polling)."""

    def __init__(self) -> None:
        super().__init__()
        self._live: dict[str, RunningExperiment] = {}
        self._by_id: dict[str, RunningExperiment] = {}

    def add(self, experiment: RunningExperiment) -> None:
        """Take an experiment."""
        self[experiment.name] = self._live[experiment.name] = experiment

    def remove(self, name: str) -> None:
        """Forget an experiment."""
        self.pop(name, None)

    def get_user_experiments(self, user: str) -> list[RunningExperiment]:
        """Experiments that this user submitted."""
        return [experiment for experiment in self.values() if user in experiment.users]

    def live(self) -> list[RunningExperiment]:
        """Those that are not over; the others, of which there may be many, are not looked at again."""
        self._live = {name: each for name, each in self._live.items() if not each.over and self.get(name) is each}
        return list(self._live.values())

    def conductor_of(self, experiment_id: str) -> Conductor | None:
        """Who conducts the experiment with this id, or None."""
        experiment = self._by_id.get(experiment_id)
        if experiment is None or experiment.conductor is None or experiment.conductor.id != experiment_id:
            conducted = {each.conductor.id: each for each in self.values() if each.conductor}
            self._by_id = conducted
            experiment = conducted.get(experiment_id)
        return experiment.conductor if experiment else None
