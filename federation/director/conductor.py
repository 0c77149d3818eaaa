"""Conducts the rounds of one experiment: hands out tasks, takes what the sites send, and makes the next model of it.

It takes the place of the engine's aggregator, task assigner and straggler policy, whose messages it speaks. What has
happened in a round, and when it closes, is in `federation.director.round`; how the next model is made, in `rules`; what
is on disk, in `federation.director.state`. Mends, with the engine's file and line:

- component/aggregator/aggregator.py:938: "best" compares every metric and takes the larger, so a loss of 5.0 beats an
  accuracy of 0.9, and what is no number is best for ever. Here one named metric with a direction decides.
- aggregator.py:314 and aggregator.py:487: idle collaborators sleep 10 s, missing tensors are polled every 5 s. Here a
  collaborator's question waits until there is an answer.
- aggregator.py:805: the average is turned into a delta and added back, which costs time and changes the last bits. Here
  the next round starts from the average itself.
- aggregator.py:646: what a site sends is averaged as it comes, NaN and all. Here names, shapes and values are checked.
- aggregator.py:775: every site's tensors are held in memory and stacked to be averaged. Here they are files
  (`federation.wire.models`), read block by block.
- aggregator.py:678: when the time of a round is up and too few sites are done, it goes on waiting. Here the experiment
  fails and says who is missing; and every round says who took part in it.
- aggregator.py:298: an experiment is over when every site has been told so, hence never when one is gone. Here it is
  over when its last round is.
"""

import asyncio
import logging
import math
import shutil
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from federation.director.batches import Batches
from federation.director.gathering import Gathering, Outgoing
from federation.director.results import Results
from federation.director.room import Room
from federation.director.round import Phase, Reply, RoundBook, Terms, Timer
from federation.director.state import ExperimentState
from federation.director.uploads import IDLE_SECONDS, Cut, Run
from federation.errors import disk_problem
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, finished_rounds, tasks_of
from federation.wire.description import Description
from federation.wire.metadata import AGGREGATOR
from federation.wire.models import updates_folder
from federation.wire.transfer import Address, RoundOver, UpdateLost
from rules import scores
from rules.registry import build

logger = logging.getLogger(__name__)

Job = tuple[Callable[[], None], Callable[[], None]]
"""What is to be done in a thread, and what then at the event loop."""

ASK_AGAIN_SECONDS = 20.0
"""Longest wait for work before a site has to ask again."""


@dataclass(frozen=True)
class Assignment:
    """What a site has to do now: tasks of a round, or nothing for so many seconds, or nothing any more."""

    tasks: tuple[str, ...]
    round: int
    pause: int = 0
    over: bool = False


class Conductor:
    """The rounds of one experiment, from the one that comes next; for one event loop.

    Args:
        name: the experiment's.
        description: what was submitted.
        sites: that take part.
        state: where the experiment is kept, made ready to go on.
        tell: told metrics, to be kept in this order before a round is.
        told: returns when they are kept.
        run: calls a function in a thread, where it may wait for the disk.
        uploads: room for those of all experiments.
        on_heard: told which site was heard of.
        on_change: told that the experiment has come to its next round, or to its end.
        on_failure: told why the experiment cannot go on.
        on_notice: told what the experiment's readers should hear of.
        on_asked: told which sites may have something else to do, as another round asks others.
    """

    def __init__(
        self,
        name: str,
        description: Description,
        sites: Sequence[str],
        state: ExperimentState,
        *,
        tell: Callable[[Sequence[dict[str, Any]]], None],
        told: Callable[[], Awaitable[None]],
        run: Run,
        uploads: Room,
        on_heard: Callable[[str], None] = lambda site: None,
        on_change: Callable[[], None] = lambda: None,
        on_failure: Callable[[str], None] = lambda reason: None,
        on_notice: Callable[[str], None] = lambda text: None,
        on_asked: Callable[[Collection[str]], None] = lambda sites: None,
        idle_seconds: float = IDLE_SECONDS,
    ) -> None:
        self.name, self.id, self.sites = name, description.id, tuple(sites)
        self.gone_seconds = description.policy.gone_seconds
        self._description, self._state = description, state
        self._rule = build(description.rule_name, description.rule_numbers)
        self._scores = scores.read(description.scores)
        self._tell, self._told, self._run, self._room, self._idle = tell, told, run, uploads, idle_seconds
        self._on_heard, self._on_change, self._on_failure = on_heard, on_change, on_failure
        self._on_notice, self._on_asked = on_notice, on_asked
        self._questions: dict[str, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._released = False
        self._closing: asyncio.Task[None] | None = None
        progress = state.progress()
        self._best_round, self._best_score = progress.best_round, progress.best_score
        self._last_round = progress.last_round
        self.book = RoundBook(
            Terms(
                sites=self.sites,
                last=description.rounds,
                minimum=description.policy.minimum_sites or len(self.sites),
                tasks=tasks_of,
                crux=lambda number, last: TRAIN if number < last else VALIDATE_AGGREGATED,
                seconds=description.policy.round_seconds,
                asked=self._asked,
            ),
            progress.next_round,
            progress.asked,
        )
        if progress.next_round:
            self._stop_early(progress.next_round - 1)
        self._adding = Batches(run, _do_all, self._cannot_add, _let_go)
        shutil.rmtree(updates_folder(state.folder), ignore_errors=True)
        self._begin(frozenset())

    @property
    def round(self) -> int:
        """The engine's number of the round that is on."""
        return self.book.number

    @property
    def finished(self) -> bool:
        """Whether every round, the last validation included, is done and kept."""
        return self.book.phase is Phase.FINISHED

    def needs(self, site: str) -> bool:
        """Whether there is work for a site in this round, or will be once it is heard of again."""
        return self.may_need(site) and not self.book.rests(site)

    def may_need(self, site: str) -> bool:
        """Whether there is work for a site in this round or may be in a later one."""
        return site in self.sites and not self.book.dismissed(site)

    def waits_only_for(self, sites: Sequence[str] | Mapping[str, str]) -> bool:
        """Whether the first round cannot close without one of these sites."""
        others = [site for site in self.book.present if site in self.book.asked and site not in sites]
        in_time = self.book.terms.seconds is not None and len(others) >= self.book.terms.minimum
        return bool(sites) and self.round == 0 and not in_time

    def heard(self, site: str) -> None:
        """Something has come of one of the sites: it is there, whichever of its processes speaks first."""
        self._on_heard(site)
        if self.book.back(site):
            logger.info("round %d: site %s is back", self.round + 1, site, extra=self._about(site))

    def leave_out(self, site: str, reason: str, for_good: bool) -> None:
        """Go on without a site, until it is heard of again or for good; the experiment fails when too few remain."""
        if self.book.leave(site, reason, for_good) and not self.book.over:
            logger.warning("round %d: goes on without site %s", self.round + 1, site, extra=self._about(site))
        if question := self._questions.get(site):
            _answer(question)
        self._go_on()

    def end(self, reason: str) -> None:
        """End the experiment early: every site that asks is told to quit."""
        self.book.end(reason)
        self._go_on()

    def abandon(self) -> None:
        """End without a word: the first round will be begun anew, by another conductor."""
        self._on_failure = lambda reason: None
        self._on_change = lambda: None
        self.end("its sites were left to other experiments")

    def release(self) -> None:
        """Let every site go that waits for work, without telling it to quit: the director is leaving."""
        self._released = True
        self._wake()

    async def settled(self) -> None:
        """Return when nothing that has come is still to be done."""
        await self._adding.finished()
        while self._closing:
            await asyncio.wait((self._closing,))

    async def assignment(self, site: str) -> Assignment:
        """What a site has to do; waits while there is nothing.

        One question of a site waits at a time: an earlier one is of a connection that has broken.
        """
        if earlier := self._questions.get(site):
            _answer(earlier)
        deadline = time.monotonic() + ASK_AGAIN_SECONDS
        while True:
            tasks, over = self.book.tasks_for(site, time.monotonic()), not self.needs(site)
            self._set_timer()
            left = deadline - time.monotonic()
            if tasks or over or left <= 0:
                return Assignment(tasks, self.round, over=over)
            if self._released:
                return Assignment((), self.round, pause=1)  # until the director is back
            question = self._questions[site] = asyncio.get_running_loop().create_future()
            try:
                await asyncio.wait((question,), timeout=left)
            finally:
                if last := self._questions.get(site) is question:
                    del self._questions[site]
            if not last:
                return Assignment((), self.round)

    def model_for(self, round_number: int, held: int) -> Outgoing:
        """The model that a round starts with, without the tensors that `held`'s model had already.

        Raises:
            RoundOver: it is another round's turn.
        """
        return self._expect(round_number).outgoing(has_the_last=held == round_number - 1)

    def received(self, address: Address) -> int:
        """How many bytes of an update have arrived.

        Raises:
            RoundOver: it is another round's turn.
        """
        return self._expect(address.round).uploads.received(address)

    async def receive(
        self, address: Address, messages: AsyncIterator[bytes], begin: Callable[[], Awaitable[None]]
    ) -> None:
        """Keep what a site has trained; see `Uploads.receive`.

        Raises:
            RoundOver: it is another round's turn, or the round goes on without this site.
            ValueError: it is not an update of this round's model; says which tensor.
            Replaced, Silent, Cut: see there.
            OSError: it cannot be kept.
        """
        site, number = address.site, address.round

        def check() -> None:
            self._expect(number)
            if self.book.expects(site, TRAIN, number) is Reply.LATE:
                raise RoundOver(f"round {number + 1} goes on without site {site}")

        async def heard() -> AsyncGenerator[bytes, None]:
            async for message in messages:
                self.heard(site)  # a site on a slow line may send one model for minutes
                yield message

        check()
        try:
            async with aclosing(heard()) as told:
                await self._expect(number).uploads.receive(address, told, check, begin)
        except ValueError as error:
            logger.error("site %s: its update was refused: %s", site, error, extra=self._about(site))
            raise
        except Cut as error:
            logger.info("site %s: %s", site, error, extra=self._about(site))
            raise
        except OSError as error:
            check()  # the round may have gone on, and its folder with it
            self.end(disk_problem(f"round {number + 1} of {self.name}", error))
            raise

    def take(self, results: Results) -> None:
        """Take the metrics of one site's task; what it has trained has come before, through `receive`.

        What was taken before, or comes too late, changes nothing.

        Raises:
            ValueError: nobody has asked for that, or a metric cannot be taken.
            UpdateLost: the trained model has not come, or came before the director was started.
        """
        site, task, number = results.site, results.task, results.round
        reply = self.book.expects(site, task, number)
        if reply is not Reply.TAKEN:
            logger.info("%s of site %s: %s, not counted", results.where, site, reply.value, extra=self._about(site))
            return
        if problem := results.problem:
            raise ValueError(problem)
        gathering = self._expect(number)
        if task == TRAIN and not gathering.uploads.has(site):
            raise UpdateLost("the trained model has not arrived")
        self.book.answer(site, task, number)
        gathering.take(results)
        own = scores.merge({site: results.metrics}, {site: results.examples}, self._scores)
        self._tell([self._line(task, name, value, site) for name, value in own.items() if not scores.is_sum(name)])
        if task == TRAIN:
            update, leave = gathering.uploads.freeze(site)
            self._adding.put((lambda: gathering.add(update, site, results.examples), leave))
        self._go_on()

    def _begin(self, unchanged: frozenset[str]) -> None:
        """Get ready for the round that is on; `unchanged` are tensors that the one before has left as they were."""
        self._stop_timer()
        self._gathering: Gathering | None = None
        if not self.book.over:
            self._gathering = Gathering(
                self._state.folder, self.round, self._last_round, self.book.tasks, self._rule, unchanged, self._run,
                self._room, self._idle, self._best_round,
            )  # fmt: skip
        self._go_on()

    def _go_on(self) -> None:
        """Do what follows from the book."""
        if self.book.phase is Phase.CLOSING and self._closing is None:
            self._closing = asyncio.create_task(self._close())
        if self.book.over:
            self._stop_timer()
            self._gathering = None  # and with it every file: its sites may ask for some time yet
            if self.book.failure is not None:
                self._on_failure(self.book.failure)
            self._wake()
            self._on_change()

    def _set_timer(self) -> None:
        timer = self.book.timer
        if timer and self._timer is None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(max(0.0, timer.at - time.monotonic()), self._time_up, timer)

    def _time_up(self, timer: Timer) -> None:
        self.book.time_up(timer)
        self._go_on()

    def _stop_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
        self._timer = None

    async def _close(self) -> None:
        """Make the outcome of the round that has closed, keep it on disk, and begin the next one."""
        try:
            unchanged = await self._outcome()
        except OSError as error:
            self.end(disk_problem(f"round {self.round + 1} of {self.name}", error))
            return
        except Exception as error:
            logger.exception("round %d of %s cannot be closed", self.round + 1, self.name, extra=self._about())
            self.end(self._unfit(error))
            return
        finally:
            self._closing = None
        if self.book.over:  # ended meanwhile
            return
        before = self.book.asked
        self.book.kept()
        self._begin(unchanged)
        self._wake()
        self._on_change()
        if others := before ^ self.book.asked:
            self._on_asked(others)

    async def _outcome(self) -> frozenset[str]:
        """Make what a closed round comes to, and put it on disk; the tensors that are as they were."""
        number, took_part, missing = self.round, self.book.took_part, self.book.missing
        gathering = self._expect(number)
        log = logger.warning if missing else logger.info
        log(
            "round %d: closes with %s; missing: %s", number + 1, ", ".join(took_part), ", ".join(missing) or "none",
            extra=self._about(),
        )  # fmt: skip
        if trains := TRAIN in self.book.tasks:
            about = self.sites if self._description.sampling is None else sorted(self.book.asked)
            self._tell([self._line("round", "took_part", float(site in took_part), site) for site in about])
        for task in self.book.tasks:
            merged = await self._run(gathering.merged, task, self._scores)
            shown = {n: v for n, v in merged.items() if task == VALIDATE_AGGREGATED or not scores.is_sum(n)}
            self._tell([self._line(task, name, value, AGGREGATOR) for name, value in shown.items()])
            if task == VALIDATE_AGGREGATED:
                self._keep_if_best(merged)
                if trains:
                    self._stop_early(number)
        unchanged, keeps = frozenset[str](), False
        if trains:
            await self._adding.finished()
            before = self._state.rule_file()
            unchanged, keeps = await self._run(gathering.next_model, TRAIN, self.sites, before)
            self._last_round = number + 1
        await self._told()
        await self._run(self._save, number + 1, keeps, self.book.choose(), gathering.folder)
        return unchanged

    def _asked(self, number: int, present: Collection[str]) -> Collection[str]:
        """Whom a round of training asks: those that the experiment's sampling draws."""
        sampling = self._description.sampling
        return sampling.draw(number, self.sites, present) if sampling else present

    def _stop_early(self, measured: int) -> None:
        """End with the next round's measurement where there has been no better model for as long as is waited for.

        measured: how many rounds of training the model has had that was measured last.
        """
        patience, best = self._description.patience, self._best_round
        if patience is None or best is None or measured - best < patience or measured + 1 >= self.book.last:
            return
        self.book.ends_with(measured + 1)
        self._on_notice(
            f"stops early, after round {measured + 1}: no {self._description.best_metric} since round {best} was "
            f"better ({self._best_score:.4g})"
        )

    def _save(self, next_round: int, keeps: bool, asked: Sequence[str], sent: Path) -> None:
        """Put the round on disk; what the sites have sent in it is not needed any more."""
        self._state.save_round(
            next_round=next_round,
            last_round=self._last_round,
            best_round=self._best_round,
            best_score=self._best_score,
            rule=keeps,
            asked=(asked or None) if self._description.sampling else None,
        )
        shutil.rmtree(sent, ignore_errors=True)

    def _cannot_add(self, error: Exception) -> None:
        if isinstance(error, OSError):
            self.end(disk_problem(f"round {self.round + 1} of {self.name}", error))
        else:
            logger.error("round %d of %s", self.round + 1, self.name, exc_info=error, extra=self._about())
            self.end(self._unfit(error))

    def _unfit(self, error: Exception) -> str:
        """Why there is no next model; the rule may be one that the operator has installed."""
        rule = self._description.rule_name
        return f"round {self.round + 1}: the rule {rule} makes no model of what the sites have sent: {error!r:.500}"

    def _keep_if_best(self, merged: Mapping[str, float]) -> None:
        """Of equal scores the later one counts, since that model has learned longer."""
        score = merged.get(self._description.best_metric, math.nan)
        if not math.isfinite(score):
            there = ", ".join(name for name in merged if not scores.is_sum(name)) or "none"
            self._on_notice(
                f"the best model is chosen by {self._description.best_metric}, which nobody has measured; the sites' "
                f"metrics are: {there}"
            )
            return
        sign = 1.0 if self._description.best_direction == "max" else -1.0
        if self._best_score is None or sign * score >= sign * self._best_score:
            self._best_score, self._best_round = score, self._last_round

    def _expect(self, round_number: int) -> Gathering:
        if round_number != self.round or self._gathering is None:
            raise RoundOver(f"round {round_number + 1} is over")
        return self._gathering

    def _line(self, task: str, metric: str, value: float, origin: str) -> dict[str, Any]:
        return {
            "metric_origin": origin,
            "task_name": task,
            "metric_name": metric,
            "metric_value": value,
            "round": self.round,
        }

    def _about(self, site: str | None = None) -> dict[str, Any]:
        """What a log line belongs to; the round as people count."""
        return {"experiment": self.name, "round": finished_rounds(TRAIN, self.round), "site": site}

    def _wake(self) -> None:
        """Have every question looked at again."""
        for question in self._questions.values():
            _answer(question)


def _answer(question: "asyncio.Future[None]") -> None:
    if not question.done():
        question.set_result(None)


def _do_all(jobs: Sequence[Job]) -> None:
    for do, _ in jobs:
        do()


def _let_go(jobs: Sequence[Job]) -> None:
    for _, leave in jobs:
        leave()
