"""One experiment at the director, from its archive to its best model: its status, its readers' news, its end.

Mends, with the engine's file and line:

- component/director/experiment.py:220: the end of an experiment is polled for every 10 s. Here it is an event.
- component/director/experiment.py:130: a failed experiment is called finished. Here it is failed, and every reader is
  told why.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from openfl.component.director.experiment import Experiment as EngineExperiment
from openfl.component.director.experiment import Status

from federation.director.batches import Batches
from federation.director.conductor import Conductor
from federation.director.room import Room
from federation.director.state import ExperimentState
from federation.director.uploads import IDLE_SECONDS
from federation.errors import disk_problem
from federation.wire import archives
from federation.wire.metadata import SHORT

logger = logging.getLogger(__name__)

FAREWELL_SECONDS = 60.0
"""How long an experiment that is over still answers its sites' trainers."""


@dataclass
class House:
    """What all experiments of a director share.

    run: calls a function in a thread, where it may wait for the disk. uploads: room for what the sites send. heard:
    told which site was heard of. changed: told which sites may have something else to do now; nothing of a metric.
    """

    run: Callable[..., Awaitable[Any]] = asyncio.to_thread
    uploads: Room = field(default_factory=Room)
    heard: Callable[[str], None] = lambda site: None
    changed: Callable[[Iterable[str]], None] = lambda sites: None
    idle_seconds: float = IDLE_SECONDS


class MetricLog:
    """Puts metrics on disk, where their readers find them: many at a time, and in order."""

    def __init__(
        self,
        house: House,
        state: ExperimentState,
        notify: Callable[[], None],
        cannot_keep: Callable[[str, OSError], None],
    ) -> None:
        self._state, self._cannot_keep = state, cannot_keep
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = []
        self._batches = Batches(house.run, lambda _: self.flush(), self._failed, lambda _: notify())

    def put(self, metrics: Sequence[dict[str, Any]]) -> None:
        """Append metrics, and wake the readers when they are on disk."""
        self._waiting += metrics
        self._batches.put(len(metrics))

    async def kept(self) -> None:
        """Return when all metrics are on disk."""
        await self._batches.finished()

    def flush(self) -> None:
        """Put on disk what is not there yet; callable from any thread.

        Raises:
            OSError: the disk does not take it.
        """
        with self._lock:
            metrics, self._waiting = self._waiting, []
            if metrics:
                self._state.add_metrics(metrics)

    def drop(self) -> None:
        """Forget what is not on disk yet."""
        with self._lock:
            self._waiting = []

    def _failed(self, error: Exception) -> None:
        self._cannot_keep("a metric", error if isinstance(error, OSError) else OSError(str(error)))


class RunningExperiment(EngineExperiment):  # type: ignore[misc]
    """One submitted experiment from its archive to its best model."""

    def __init__(self, state: ExperimentState, house: House | None = None) -> None:
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
        self.house = house or House()
        self.conductor: Conductor | None = None
        self._metrics: MetricLog | None = None
        self._loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self.awaiting: dict[str, str] = {}  # sites whose owner has not approved the code yet, and its digest
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
        """Wake those who follow this experiment."""
        self._changed.set()
        self._changed = asyncio.Event()

    def _stands_otherwise(self) -> None:
        """Wake those who follow this experiment, and its sites: they may have something else to do."""
        self.notify()
        self.house.changed(self.collaborators)

    async def news(self) -> None:
        """Return when something has changed: a metric, a round, the end."""
        await self._changed.wait()

    def fail(self, reason: str) -> None:
        """End the experiment with a reason that its readers are given; the first reason stands."""
        if not self.over:
            self._ends(Status.FAILED, reason)
            if self.conductor:
                self.conductor.end(reason)
            self._stands_otherwise()

    def _ends(self, status: str, failure: str | None = None) -> None:
        """Put the end on disk, then let the readers know of it."""
        self.failure, self._end = failure, status
        with suppress(OSError):  # of an upload that is being written there is something left, until the next start
            self.state.forget_updates()
        with suppress(OSError):
            if self._metrics:
                self._metrics.flush()
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
            if self.conductor:
                self.conductor.release()
            self.notify()

    def prepare(self) -> None:
        """Begin to conduct, as described, at the round that comes next; `failure` tells when that cannot be."""
        try:
            self.conductor = self._conducted()
        except Exception as error:
            logger.exception("experiment %s: it cannot be run", self.name, extra={"experiment": self.name})
            self.fail(f"the director cannot run {self.name}: {type(error).__name__}: {error}")

    @property
    def gives_way(self) -> bool:
        """Whether it runs, and does nothing but wait for an owner without whom its first round cannot close."""
        runs = self.status == Status.IN_PROGRESS and self.conductor is not None
        return bool(runs and self.conductor and self.conductor.waits_only_for(self.awaiting))

    def give_way(self) -> None:
        """Leave the sites to others until the owners have decided; the first round is begun anew then."""
        logger.info(
            "experiment %s: leaves its sites to others while it waits for approval at %s",
            self.name, ", ".join(sorted(self.awaiting)), extra={"experiment": self.name},
        )  # fmt: skip
        self.status, self.started = Status.PENDING, False
        self.begun += 1
        left, self.conductor = self.conductor, None
        if left:
            left.abandon()
        if self._metrics:
            self._metrics.drop()
        with suppress(OSError):  # after a restart it would start, and give way again
            self.state.drop_round()
            self.state.end(Status.PENDING)
        self._stands_otherwise()

    def site_failed(self, site: str, reason: str, for_good: bool = True) -> None:
        """Go on without a site where the experiment's policy allows it; otherwise fail."""
        self.awaiting.pop(site, None)
        if self.conductor:
            self.conductor.leave_out(site, reason, for_good)
            self.house.changed((site,))
            self.notify()
        elif self.status == Status.PENDING:  # it has given way: the site says so again when it is told of it again
            self.notice(f"site {site}: {reason}")
            return
        else:
            self.fail(reason)
        if not self.over:
            self.notice(f"goes on without site {site}: {reason}")

    def await_approval(self, site: str, digest: str | None) -> bool:
        """A site waits for its owner to approve the code with this digest, or (None) waits no longer; is that news?"""
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
        if self.conductor is None:
            self.prepare()
        self._stands_otherwise()
        looked = time.monotonic()
        while self.status == Status.IN_PROGRESS and not (self.conductor and self.conductor.finished):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news(), timeout=1)
            if time.monotonic() > looked + 1:
                self._leave_out_the_gone(last_heard)
                looked = time.monotonic()
        if self.status == Status.PENDING:  # it has given way to others
            return
        if not self.over:
            self._ends(Status.FINISHED)
        logger.info("experiment %s: %s after %.1f s", self.name, self.status, time.monotonic() - started)
        self._loop.call_later(FAREWELL_SECONDS, self._give_back)
        self._stands_otherwise()

    def _give_back(self) -> None:
        """Keep no more in memory of an experiment that is over than what `list` tells."""
        self.conductor = self._metrics = None
        self.awaiting.clear()

    def wants(self, site: str) -> bool:
        """Whether there is work for this site now, or will be once it is heard of again."""
        if self.status != Status.IN_PROGRESS:
            return False
        return self.conductor.needs(site) if self.conductor else site in self.collaborators

    def holds(self, site: str) -> bool:
        """Whether it may still want this site, in this round or in a later one that asks it."""
        if self.status != Status.IN_PROGRESS:
            return False
        return self.conductor.may_need(site) if self.conductor else site in self.collaborators

    def welcome(self, site: str) -> None:
        """Count again on a site that was gone; one that failed stays out."""
        if self.status == Status.IN_PROGRESS and self.conductor and site in self.conductor.sites:
            self.conductor.heard(site)

    def _leave_out_the_gone(self, last_heard: Callable[[str], float]) -> None:
        if not self.conductor or self.over:
            return
        for site in self.conductor.book.present:
            silent = time.monotonic() - last_heard(site)  # a laptop that slept has not missed anybody
            if silent > self.conductor.gone_seconds and not self.over:
                reason = f"site {site} is gone: the director has not heard of it for {silent:.0f} s"
                self.site_failed(site, reason, for_good=False)

    def _conducted(self) -> Conductor:
        """The conductor of the rounds that the experiment's description asks for."""
        metrics = self._metrics = MetricLog(self.house, self.state, self.notify, self._cannot_keep)
        return Conductor(
            self.name,
            archives.describe(archives.read(self.archive_path)),
            self.collaborators,
            self.state,
            tell=metrics.put,
            told=metrics.kept,
            run=self.house.run,
            uploads=self.house.uploads,
            on_heard=self.house.heard,
            on_change=self.notify,
            on_failure=self.fail,
            on_notice=self.notice,
            on_asked=self.house.changed,
            idle_seconds=self.house.idle_seconds,
        )

    def _cannot_keep(self, what: str, error: OSError) -> None:
        """End the experiment: what is not on disk would be lost with the director, and nobody would know."""
        about = {"experiment": self.name}
        logger.error("experiment %s: cannot keep %s: %s", self.name, what, error, extra=about)
        self.fail(disk_problem(f"{what} of {self.name}", error))
