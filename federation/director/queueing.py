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

    def work(self, site: str, at_work: Collection[str] = ()) -> str:
        """What a site should work on besides those that it is at work on; "" for nothing.

        An experiment that waits for the site's owner is asked about once after each other piece of work, since the
        owner may have decided meanwhile; otherwise it comes last.
        """
        others = [each for each in self._waiting() if each.name not in at_work]
        undecided = [each for each in others if each.status == PENDING and site in each.awaiting]
        again = [each for each in undecided if site in each.ask_again]
        wanted = [each for each in others if each.wants(site)]
        return next((each.name for each in (*again, *wanted, *undecided)), "")

    def tell(self, site: str, work: str) -> None:
        """Note what a site was told to work on."""
        for each in self._waiting():
            if each.name == work:
                each.ask_again.discard(site)
            elif work and site in each.awaiting:
                each.ask_again.add(site)

    def is_over(self, name: str, site: str, other_work: str) -> bool:
        """Whether a site that works on an experiment should stop; one whose turn is just coming has it go on."""
        experiment = self._experiments.get(name)
        if experiment is None:
            return True
        turn_comes = experiment.status == PENDING and not other_work
        return not (experiment.wants(site) or turn_comes)

    def status(self, experiment: RunningExperiment) -> str:
        """The engine's status; of one that waits also for which sites' owners, or for how many experiments."""
        if not experiment.over and experiment.awaiting:
            return f"{experiment.status}, waiting for approval at {', '.join(sorted(experiment.awaiting))}"
        if experiment.status != PENDING:
            return str(experiment.status)
        sites = set(experiment.collaborators)
        waiting = self._waiting()
        before = [each for each in waiting[: waiting.index(experiment)] if sites & set(each.collaborators)]
        return f"{PENDING}, {len(before)} before it"

    def _waiting(self) -> list[RunningExperiment]:
        return self._experiments.live()

    def _entry(self, experiment: RunningExperiment) -> Entry:
        runs = experiment.status == IN_PROGRESS
        return Entry(
            experiment.name,
            frozenset(site for site in experiment.collaborators if not runs or experiment.wants(site)),
            runs,
            experiment.gives_way,
            waits_for_owner=bool(experiment.awaiting) and not runs,
            passed=self._passed[experiment.name],
        )
