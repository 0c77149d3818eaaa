"""The queue of experiments: asks `federation.director.turns` who may start, and tells each site what to work on."""

import asyncio
from collections import Counter
from collections.abc import Collection

from federation.director.registry import ExperimentsRegistry
from federation.director.running import RunningExperiment
from federation.director.state import IN_PROGRESS, PENDING
from federation.director.turns import Entry, turns


class Queue:
    """Experiments by name, in the order of their submission, seen as a queue.

    `changed` is set when it may be another one's turn.
    """

    def __init__(self, experiments: ExperimentsRegistry) -> None:
        self._experiments = experiments
        self._slots: dict[str, int] = {}
        self._passed: Counter[str] = Counter()
        self.changed = asyncio.Event()

    def next(self) -> list[RunningExperiment]:
        """The experiments that start now; those that give way to them have stopped."""
        waiting = self._waiting()
        resumed = [each for each in waiting if each.status == IN_PROGRESS and not each.started]
        decided = turns([self._entry(each) for each in waiting], self._slots)
        for name in decided.stop:
            self._experiments[name].give_way()
        names = {each.name for each in waiting}
        self._passed = Counter({name: self._passed[name] + decided.passed.get(name, 0) for name in names})
        return resumed + [self._experiments[name] for name in decided.start]

    def hear(self, site: str, slots: int) -> None:
        """Note how many experiments a site works on at a time."""
        if self._slots.get(site, 1) != slots:
            self._slots[site] = slots
            self.changed.set()

    def work(self, site: str, in_hand: Collection[str] = ()) -> str:
        """What a site should work on besides what it has in hand; "" for nothing."""
        wanted = (each.name for each in self._waiting() if each.name not in in_hand and each.wants(site))
        return next(wanted, "")

    def is_over(self, name: str, site: str) -> bool:
        """Whether a site that has an experiment in hand should let it go; it is told of it again if need be.

        One that has given way to others goes on only where the site's owner has yet to decide: it takes no slot there.
        """
        experiment = self._experiments.get(name)
        undecided = experiment and experiment.status == PENDING and site in experiment.awaiting
        return not (experiment and (undecided or experiment.wants(site)))

    def holds(self, name: str, site: str) -> bool:
        """Whether an experiment may still want a site, although it does not now."""
        experiment = self._experiments.get(name)
        return bool(experiment and experiment.holds(site))

    def status(self, experiment: RunningExperiment) -> str:
        """The engine's status; of one that waits also for which sites' owners, or for how many experiments."""
        if not experiment.over and experiment.awaiting:
            return f"{experiment.status}, waiting for approval at {', '.join(sorted(experiment.awaiting))}"
        if experiment.status != PENDING:
            return str(experiment.status)
        sites, waiting = set(experiment.collaborators), self._waiting()
        earlier = [each for each in waiting[: waiting.index(experiment)] if not each.awaiting]
        running = [each for each in waiting if each.status == IN_PROGRESS and each not in earlier]
        before = [each for each in earlier + running if sites & set(each.collaborators)]
        return f"{PENDING}, {len(before)} before it"

    def _waiting(self) -> list[RunningExperiment]:
        return self._experiments.live()

    def _entry(self, experiment: RunningExperiment) -> Entry:
        runs = experiment.status == IN_PROGRESS
        return Entry(
            experiment.name,
            frozenset(site for site in experiment.collaborators if not runs or experiment.holds(site)),
            runs,
            experiment.gives_way,
            waits_for_owner=bool(experiment.awaiting) and not runs,
            passed=self._passed[experiment.name],
        )
