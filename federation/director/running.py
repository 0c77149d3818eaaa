"""One experiment at the director, from its archive to its best model: its status, its readers' news, its end.

Mends, with the engine's file and line:

- component/director/experiment.py:220: the end of an experiment is polled for every 10 s. Here it is an event.
- component/director/experiment.py:130: a failed experiment is called finished. Here it is failed, and every reader is
  told why.
"""

import asyncio
import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from openfl.component import CutoffTimeBasedStragglerHandling
from openfl.component.assigner.custom_assigner import Assigner
from openfl.component.assigner.tasks import TrainTask, ValidateTask
from openfl.component.director.experiment import Experiment as EngineExperiment
from openfl.component.director.experiment import Status
from openfl.interface.aggregation_functions import Median, WeightedAverage

from federation.director.aggregator import RoundAggregator
from federation.director.state import ExperimentState
from federation.errors import (
    disk_problem,
)
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, RoundSchedule
from federation.wire import archives
from federation.wire.metadata import AGGREGATOR, SHORT

logger = logging.getLogger(__name__)

FAREWELL_SECONDS = 60.0
"""How long an experiment that is over still answers its sites' trainers."""


class MetricLog:
    """Takes the place of the aggregator's queue: metrics go to disk, where their readers find them."""

    def __init__(
        self, state: ExperimentState, notify: Callable[[], None], cannot_keep: Callable[[str, OSError], None]
    ) -> None:
        self._state = state
        self._notify = notify
        self._cannot_keep = cannot_keep
        self._lock = threading.Lock()  # sites report at the same time, and a line is whole

    def put(self, metric: dict[str, Any]) -> None:
        """Append one metric, and wake the readers."""
        with self._lock:
            try:
                self._state.add_metric(metric)
            except OSError as error:
                self._cannot_keep("a metric", error)
        self._notify()


class RunningExperiment(EngineExperiment):  # type: ignore[misc]
    """One submitted experiment from its archive to its best model."""

    def __init__(self, state: ExperimentState, on_change: Callable[[], None] = lambda: None) -> None:
        about, progress = state.about(), state.progress()
        super().__init__(
            name=about.name,
            archive_path=state.archive,
            collaborators=list(about.collaborators),
            users=[about.sender],
            sender=about.sender,
            init_tensor_dict=None,
        )
        self.state = state
        self.status = progress.status
        self.failure = progress.failure
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._on_change = on_change
        self.metrics = MetricLog(state, self.notify, self._cannot_keep)
        self.gone: set[str] = set()
        self.awaiting: dict[str, str] = {}  # sites whose owner has not approved the code yet, and its digest
        self.ask_again: set[str] = set()  # of those, who has worked on something else since
        self.begun = 0  # how often the running round was begun: what it told before is told again
        self.notices: list[str] = []  # what readers are told beside the metrics while the experiment goes on
        self.left = False
        self.started = False
        self._end: str | None = None  # how it ended, as long as that is not on disk

    @property
    def over(self) -> bool:
        """Whether nothing more will come from this experiment."""
        return self.status in (Status.FINISHED, Status.FAILED, Status.REJECTED)

    def notify(self) -> None:
        """Wake everyone who waits for news; callable from any thread."""
        self._loop.call_soon_threadsafe(self._wake)

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()
        self._on_change()

    async def news(self) -> None:
        """Return when something has changed: a metric, a round, the end."""
        await self._changed.wait()

    def fail(self, reason: str) -> None:
        """End the experiment with a reason that its readers are given; the first reason stands."""
        if not self.over:
            self._ends(Status.FAILED, reason)
            if self.aggregator:
                self.aggregator.stop()
            self.notify()

    def _ends(self, status: str, failure: str | None = None) -> None:
        """Put the end on disk, then let the readers know of it."""
        self.failure, self._end = failure, status
        self.state.forget_updates()
        self.keep_end()
        self.status = status

    def keep_end(self) -> None:
        """Put on disk how it ended, unless it is there; a disk that is full is asked again later."""
        if self._end:
            with suppress(OSError):
                self.state.end(self._end, self.failure)
                self._end = None

    def leave(self) -> None:
        """Tell the readers that the director is leaving; what is on disk stays as it is, to go on from."""
        self.keep_end()
        if not self.over:
            self.failure = (
                f"the director was stopped in the middle of {self.name}, which goes on when it is started again"
            )
            self.status, self.left = Status.FAILED, True
            if self.aggregator:
                self.aggregator.release()
            self.notify()

    def prepare(self) -> None:
        """Make the aggregator as described, at the round that comes next; `failure` tells when that fails."""
        try:
            self.aggregator = self._build_aggregator()
        except Exception as error:
            logger.exception("experiment %s: it cannot be run", self.name, extra={"experiment": self.name})
            self.fail(f"the director cannot run {self.name}: {type(error).__name__}: {error}")

    @property
    def gives_way(self) -> bool:
        """Whether it runs, and does nothing but wait for an owner without whom its first round cannot close."""
        if self.status != Status.IN_PROGRESS or not self.aggregator or not self.awaiting:
            return False
        others = [site for site in self.aggregator.authorized_cols if site not in self.awaiting]
        in_time = len(others) >= self.aggregator.minimum_sites and self._round_ends_by_itself
        return self.aggregator.round_number == 0 and not in_time

    @property
    def _round_ends_by_itself(self) -> bool:
        policy = self.aggregator.straggler_handling_policy
        return bool(math.isfinite(getattr(policy, "straggler_cutoff_time", math.inf)))

    def give_way(self) -> None:
        """Leave the sites to others until the owners have decided; the first round is begun anew then."""
        logger.info(
            "experiment %s: leaves its sites to others while it waits for approval at %s",
            self.name, ", ".join(sorted(self.awaiting)), extra={"experiment": self.name},
        )  # fmt: skip
        left, self.aggregator = self.aggregator, None
        left.on_round = left.on_change = lambda: None
        left.on_failure = lambda reason: None
        left.stop()
        self.status, self.started = Status.PENDING, False
        self.begun += 1
        with suppress(OSError):  # after a restart it would start, and give way again
            self.state.drop_round()
            self.state.end(Status.PENDING)
        self.notify()

    def site_failed(self, site: str, reason: str) -> None:
        """Go on without a site where the experiment's policy allows it; otherwise fail."""
        self.awaiting.pop(site, None)
        if self.aggregator:
            self.aggregator.leave_out(site, reason)
            self.notify()
        else:
            self.fail(reason)
        if not self.over:
            self.notice(f"goes on without site {site}: {reason}")

    def await_approval(self, site: str, digest: str | None) -> bool:
        """A site waits for its owner to approve the code with this digest, or (None) waits no longer; is that news?"""
        self.ask_again.discard(site)
        waited_for = self.awaiting.pop(site, None)
        if digest:
            self.awaiting[site] = digest
            if digest != waited_for:
                self.notice(f"site {site} waits for its owner to approve the code (digest {digest[:SHORT]})")
        return digest != waited_for

    def notice(self, text: str) -> None:
        """Tell the readers something, once."""
        if text not in self.notices:
            logger.info("experiment %s: %s", self.name, text)
            self.notices.append(text)
            self.notify()

    async def start(self, last_heard: Callable[[str], float], **_: Any) -> None:
        """Run the experiment to its end; never raises, `failure` tells.

        last_heard: when the director heard of a site last, on the monotonic clock.
        """
        if self.over:  # cancelled while it waited
            return
        self.started = True
        logger.info("experiment %s: starts on %s", self.name, ", ".join(self.collaborators))
        try:
            self.state.end(Status.IN_PROGRESS)
        except OSError as error:
            self._cannot_keep("the start", error)
            return
        self.status = Status.IN_PROGRESS
        started = time.monotonic()
        if self.aggregator is None:
            self.prepare()
        self.notify()
        while self.status == Status.IN_PROGRESS and not (self.aggregator and self.aggregator.finished):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news(), timeout=1)
            self._leave_out_the_gone(last_heard)
        if self.status == Status.PENDING:  # it has given way to others
            return
        if not self.over:
            self._ends(Status.FINISHED)
        logger.info("experiment %s: %s after %.1f s", self.name, self.status, time.monotonic() - started)
        self._loop.call_later(FAREWELL_SECONDS, self._give_back)
        self.notify()

    def _give_back(self) -> None:
        """Keep no more in memory of an experiment that is over than what `list` tells."""
        self.aggregator = None
        self.awaiting.clear()

    def wants(self, site: str) -> bool:
        """Whether there is work for this site now, or will be once it is heard of again."""
        sites = self.aggregator.authorized_cols if self.aggregator else self.collaborators
        return bool(self.status == Status.IN_PROGRESS and (site in sites or site in self.gone))

    def welcome(self, site: str) -> None:
        """Count again on a site that was gone; one that failed stays out."""
        if self.status == Status.IN_PROGRESS and self.aggregator and site in self.gone:
            self.gone.remove(site)
            self.aggregator.readmit(site)

    def _leave_out_the_gone(self, last_heard: Callable[[str], float]) -> None:
        for site in tuple(self.aggregator.authorized_cols) if self.aggregator else ():
            silent = time.monotonic() - last_heard(site)  # a laptop that slept has not missed anybody
            if silent > self.aggregator.gone_seconds:
                self.gone.add(site)
                self.site_failed(site, f"site {site} is gone: the director has not heard of it for {silent:.0f} s")

    def _build_aggregator(self) -> Any:
        """The aggregator that the experiment's description asks for, ready for its collaborators."""
        description = archives.describe(archives.read(self.archive_path))
        rules = {"mean": WeightedAverage, "median": Median}
        if description.rule not in [{"name": name} for name in rules]:
            raise ValueError(f"rule: {dict(description.rule)}; allowed: {', '.join(rules)}, without numbers")
        policy, sites, rounds = description.policy, list(self.collaborators), description.rounds + 1
        tasks = {
            TRAIN: TrainTask(name=TRAIN, function_name=""),
            VALIDATE_LOCAL: ValidateTask(name=VALIDATE_LOCAL, function_name="", apply_local=True),
            VALIDATE_AGGREGATED: ValidateTask(name=VALIDATE_AGGREGATED, function_name=""),
        }
        aggregator = RoundAggregator(
            aggregator_uuid=AGGREGATOR,
            federation_uuid=description.id,
            authorized_cols=sites,
            init_state_path="",
            best_state_path="",
            last_state_path="",
            initial_tensor_dict={},  # the model stays on disk
            rounds_to_train=rounds,
            assigner=Assigner(
                assigner_function=RoundSchedule(description.rounds, tasks),
                aggregation_functions_by_task={TRAIN: rules[description.rule_name]()},
                authorized_cols=sites,
                rounds_to_train=rounds,
            ),
            straggler_handling_policy=CutoffTimeBasedStragglerHandling(
                straggler_cutoff_time=policy.round_seconds or math.inf, minimum_reporting=policy.minimum_sites
            ),
            best_metric=description.best_metric,
            best_direction=description.best_direction,
            scores=description.scores,
            minimum_sites=policy.minimum_sites or len(sites),
            gone_seconds=policy.gone_seconds,
        )
        aggregator.open(self.state.folder, self.state.progress())
        aggregator.experiment = self.name
        aggregator.metric_queue = self.metrics
        aggregator.on_round = self._save_round
        aggregator.on_change = self.notify
        aggregator.on_failure = self.fail
        return aggregator

    def _save_round(self) -> None:
        """Put the finished round on disk; called by the aggregator before it hands out the next one."""
        aggregator = self.aggregator
        try:
            self.state.save_round(
                next_round=aggregator.round_number,
                last_round=aggregator.last_round,
                best_round=aggregator.best_round,
                best_score=aggregator.best_model_score,
            )
        except OSError as error:
            self._cannot_keep(f"round {aggregator.round_number}", error)
        except Exception as error:
            logger.exception("experiment %s: round %d cannot be kept", self.name, aggregator.round_number)
            self.fail(f"the director cannot keep round {aggregator.round_number} of {self.name}: {error!r}")

    def _cannot_keep(self, what: str, error: OSError) -> None:
        """End the experiment: what is not on disk would be lost with the director, and nobody would know."""
        about = {"experiment": self.name}
        logger.error("experiment %s: cannot keep %s: %s", self.name, what, error, extra=about)
        self.fail(disk_problem(f"{what} of {self.name}", error))
