"""The director: knows the envoys, queues experiments and runs each when its sites are free.

Mends, with the engine's file and line:

- component/director/experiment.py:218: an experiment without sites is over at once, with the initial model. Here it is
  refused.
- component/director/director.py:295: reading a metric removes it, so a second reader sees a rest. Here every
  reader gets all of them, from the first.
- director.py:89: everything is kept in memory and lost with the process. Here every experiment is on
  disk (`federation.director.state`), and goes on from its last finished round.
- director.py:239: an experiment is told once to each envoy; where the question that is told is one of a lost
  connection, the envoy never hears of it; and nobody tells an envoy at work that its experiment is over. Here the
  answer comes from how the experiments stand, and an envoy at work asks too.
- director.py:394: KeyError for an envoy that has not asked for work yet.
- director.py:244: AttributeError for an envoy that asks again before the aggregator is made.
- director.py:112: an envoy is refused for its shapes, and the log does not say which.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from openfl.component.director import Director as EngineDirector
from openfl.component.director.experiment import Status
from openfl.transport.grpc.exceptions import ShardNotFoundError

from federation.director import commands
from federation.director.edge import SITES
from federation.director.presence import Presence
from federation.director.queueing import Queue
from federation.director.registry import ExperimentsRegistry
from federation.director.running import House, RunningExperiment
from federation.director.state import ExperimentState, Submitted, Unreadable, folder_of, found
from federation.director.who import Who
from federation.errors import (
    ArchiveRefused,
    DirectorLeaves,
    ExperimentFailed,
    FederationError,
    SubmissionRefused,
    disk_problem,
)
from federation.logs import log_fields
from federation.schedule import NOTICE
from federation.wire import archives, files
from federation.wire.description import Description
from federation.wire.models import ModelFile
from federation.wire.names import experiment_name_problem
from rules.registry import build

logger = logging.getLogger(__name__)

FILE_THREADS = 4
"""Threads that wait for the disk, or make a round's model."""


class Director(EngineDirector):  # type: ignore[misc]
    """The engine's director on events, with the truth about failures."""

    def __init__(self, *, state_root: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.experiments_registry = ExperimentsRegistry()
        self.col_exp: dict[str, str | None] = defaultdict(lambda: None)
        self.presence = Presence(2 * self.envoy_health_check_period, lambda site: self._ring((site,)))
        self._files = ThreadPoolExecutor(FILE_THREADS, thread_name_prefix="files")
        self.house = House(
            run=self._in_thread,
            heard=self.presence.see,
            changed=self._ring,
        )
        self._state_root = state_root
        self._bells: dict[str, asyncio.Event] = {}
        self.queue = Queue(self.experiments_registry)
        self._coming: set[str] = set()  # experiments that are being put on disk
        self._leaving = self._gone = False
        files.ensure_folder(state_root)
        states, self._unreadable = found(state_root)
        for state in states:
            try:
                self._take(state)
            except (Unreadable, OSError) as error:
                self._unreadable[state.folder.name] = str(error)
        for folder, reason in self._unreadable.items():
            logger.error(
                "state: folder %s cannot be read and is skipped: %s; it stays as it is, for the version that wrote it "
                "or for `remove`", folder, reason, extra={"experiment": unquote(folder)},
            )  # fmt: skip

    def _take(self, state: ExperimentState) -> None:
        """Go on with an experiment that was kept, if it is not over."""
        about = {"experiment": state.about().name}
        if not state.progress().over:
            if repeats := state.resume():
                logger.error("experiment %s: %s", about["experiment"], repeats, extra=about)
            done = state.progress().next_round
            logger.info("experiment %s: goes on with round %d", about["experiment"], done, extra=about)
        experiment = RunningExperiment(state, self.house)
        if experiment.status == Status.IN_PROGRESS:
            experiment.prepare()  # before the first trainer that lives on asks for it
        self.experiments_registry.add(experiment)

    def acknowledge_shard(self, shard_info: dict[str, Any]) -> bool:
        """Accept an envoy whose shard has the shape that this federation works on; where none is set, any."""
        name = shard_info["node_info"]["name"]
        offered = shard_info.get("sample_shape", []), shard_info.get("target_shape", [])
        wanted = list(self.sample_shape), list(self.target_shape)
        if any(want and offer != want for offer, want in zip(offered, wanted, strict=True)):
            logger.error(
                "envoy %s: refused, its shapes are %s and this federation's are %s", name, offered, wanted,
                extra={"site": name},
            )  # fmt: skip
            return False
        shard_info["node_info"].setdefault("cuda_devices", [])
        self._shard_registry[name] = {
            "shard_info": shard_info,
            "is_online": True,
            "is_experiment_running": False,
            "valid_duration": 2 * self.envoy_health_check_period,
            "last_updated": time.time(),
        }
        logger.info("envoy %s: registered", name, extra={"site": name})
        return True

    def update_envoy_status(
        self, *, envoy_name: str, is_experiment_running: bool, cuda_devices_status: Any = None
    ) -> int:
        """Note how an envoy is; returns the seconds after which it should say so again.

        Raises:
            ShardNotFoundError: it has not registered.
        """
        entry = self._shard_registry.get(envoy_name)
        if entry is None:
            raise ShardNotFoundError(f"no envoy {envoy_name} has registered with this director")
        entry["last_updated"] = time.time()
        entry["is_experiment_running"] = is_experiment_running
        registered = entry["shard_info"]["node_info"]["cuda_devices"]
        if cuda_devices_status and len(cuda_devices_status) == len(registered):
            registered[:] = cuda_devices_status
        return int(self.envoy_health_check_period)

    def get_envoys(self) -> list[dict[str, Any]]:
        """Every envoy that has registered, and whether it is there; no clock that somebody sets has a say in that."""
        for site, entry in self._shard_registry.items():
            silent = time.monotonic() - self.presence.last_heard(site)
            entry["is_online"] = silent < 2 * self.envoy_health_check_period
            entry["experiment_name"] = self.col_exp[site]
        return list(self._shard_registry.values())

    def get_experiments_list(self, caller: str) -> list[dict[str, Any]]:
        """Name, status and number of sites of each of the caller's experiments."""
        mine = self.experiments_registry.get_user_experiments(caller)
        return [
            {"name": each.name, "status": each.status, "collaborators_amount": len(each.collaborators)} for each in mine
        ]

    def knows(self, site: str) -> bool:
        """Whether an envoy has registered under this name since the director was started."""
        return site in self._shard_registry

    @property
    def full(self) -> bool:
        """Whether as many sites have registered as one director takes."""
        return len(self._shard_registry) >= SITES

    def hear(self, site: str, process: str) -> bool:
        """Note that an envoy has called, and count on it again; False where another process has its name."""
        if not self.presence.hear(site, process):
            return False
        for experiment in self.experiments_registry.live():
            experiment.welcome(site)
        return True

    async def set_new_experiment(
        self,
        *,
        experiment_name: str,
        sender_name: str,
        initial_model: Path,
        collaborator_names: Any,
        experiment_archive_path: Path,
    ) -> bool:
        """Queue an experiment.

        Raises:
            SubmissionRefused: no envoy to run it on, its name cannot be used or is taken, or its archive holds what may
                not travel.
        """
        description = await asyncio.to_thread(_described, experiment_archive_path)
        if problem := experiment_name_problem(experiment_name):
            raise SubmissionRefused(problem)
        if not list(collaborator_names):
            raise SubmissionRefused("no envoy is online; start one with envoy/start_envoy.sh and submit again")
        if unknown := set(collaborator_names) - self._shard_registry.keys():
            raise SubmissionRefused(f"this director knows no site {', '.join(sorted(unknown))[:200]}")
        if experiment_name in self.experiments_registry or experiment_name in self._coming:
            raise SubmissionRefused(
                f"there is already an experiment named {experiment_name}; give this one another name"
            )
        if folder_of(self._state_root, experiment_name).exists():
            raise SubmissionRefused(
                f"the director keeps an experiment named {experiment_name} that it cannot read (its log says why); "
                f"give this one another name"
            )
        about = Submitted(
            name=experiment_name,
            collaborators=tuple(dict.fromkeys(collaborator_names)),
            sender=sender_name,
            submitted=time.time(),
            rounds=description.rounds,
        )
        self._coming.add(experiment_name)
        try:  # in a thread: a large model takes the disk a while
            state = await asyncio.to_thread(
                ExperimentState.create, self._state_root, experiment_archive_path, initial_model, about
            )
            self.experiments_registry.add(RunningExperiment(state, self.house))
        except OSError as error:
            raise SubmissionRefused(disk_problem(experiment_name, error)) from error
        finally:
            self._coming.discard(experiment_name)
        self.queue.changed.set()
        return True

    def get_trained_model(self, experiment_name: str, caller: str, model_type: str) -> ModelFile | None:
        """The "best" or the "last" model, or None when there is none yet."""
        experiment = self.experiments_registry.get(experiment_name)
        if experiment is None or caller not in experiment.users:
            return None
        if model_type == "best":
            return experiment.state.best_model()
        return experiment.state.last_model() if experiment.state.progress().last_round else None

    async def start_experiment_execution_loop(self) -> None:
        """Start each experiment when its turn has come (`federation.director.turns`), for ever."""
        async with asyncio.TaskGroup() as running:
            while True:
                self.queue.changed.clear()
                for experiment in self.queue.next():
                    running.create_task(self._run(experiment))
                await asyncio.sleep(0)  # they have started when the next turn is thought about
                await self.queue.changed.wait()

    async def _run(self, experiment: RunningExperiment) -> None:
        for earlier in self.experiments_registry.values():
            earlier.keep_end()
        with log_fields(experiment=experiment.name):
            try:
                await experiment.start(self.presence.last_heard)
            except Exception as error:  # a fault of the director: the others go on
                logger.exception("experiment %s: a fault in the director", experiment.name)
                experiment.fail(f"a fault in the director ended {experiment.name}: {error!r}; its log tells more")
        self.queue.changed.set()

    async def wait_experiment(
        self,
        envoy_name: str,
        process: str = "",
        instead_of: str = "",
        awaiting: str | None = None,
        in_hand: Collection[str] = (),
        slots: int = 1,
    ) -> str:
        """The name of an experiment that this envoy should work on, besides those that it has in hand.

        An envoy with a free slot waits for its next experiment so. With `instead_of` one waits until that experiment
        does not want the site any longer, and is told what is next, or "" for nothing. For a process that no longer
        holds the envoy's name there is no work. `awaiting` is the digest of the code that the envoy has, where it waits
        for its owner to approve it. `slots`: how many experiments the site runs at a time.

        Raises:
            FederationError: the director is leaving and can no longer tell.
        """
        self.queue.hear(envoy_name, slots)
        about = instead_of or ("" if in_hand else self.col_exp[envoy_name] or "")
        held = self.experiments_registry.get(about)
        if held and held.await_approval(envoy_name, awaiting):
            self.queue.changed.set()
        try:
            while not self._leaving:
                if not self.presence.holds(envoy_name, process):
                    return ""
                work = self.queue.work(envoy_name, in_hand)
                if self.queue.is_over(instead_of, envoy_name) if instead_of else work:
                    self.col_exp[envoy_name] = work or None
                    return work
                await self._bells.setdefault(envoy_name, asyncio.Event()).wait()
        finally:  # the owner has decided, or the envoy is gone: it says so when it is told of the experiment again
            if held and instead_of and awaiting and held.await_approval(envoy_name, None):
                self.queue.changed.set()
        raise FederationError("the director is being stopped")

    def leave(self) -> None:
        """Tell everyone who waits that the director is leaving."""
        self._leaving = True
        for experiment in self.experiments_registry.values():
            experiment.leave()
        self._ring(tuple(self._bells))

    async def gone(self) -> None:
        """Return when what is being written is on disk; nothing more will be."""
        self._gone = True
        await asyncio.to_thread(self._files.shutdown)

    async def _in_thread(self, work: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function where it may wait for the disk."""
        if self._gone:
            await asyncio.Future()  # which the end of the loop cancels: whoever waits has an answer from the next start
        return await asyncio.get_running_loop().run_in_executor(self._files, work, *arguments)

    def _ring(self, sites: Iterable[str]) -> None:
        """Have the questions of these sites looked at again: there may be something else to do."""
        for site in sites:
            if bell := self._bells.pop(site, None):
                bell.set()
        self.queue.changed.set()

    async def stream_metrics(self, experiment_name: str, caller: str) -> AsyncIterator[dict[str, Any]]:
        """Every metric from the first on, then new ones as they come.

        Raises:
            ExperimentFailed: at the end of an experiment that failed.
            DirectorLeaves: the experiment goes on when the director is back.
            FederationError: there is no such experiment of this caller.
        """
        self.check_owner(experiment_name, caller)
        experiment = self.experiments_registry[experiment_name]
        place = told = begun = 0
        while True:
            over = experiment.over  # what it has told until then is told
            while told < len(experiment.notices):
                yield {"task_name": NOTICE, "metric_name": experiment.notices[told]}
                told += 1
            if begun != experiment.begun:
                place, begun = 0, experiment.begun
            try:
                lines, after = experiment.state.metrics(place, runs=place > 0 and not over)
            except (OSError, ValueError) as error:
                raise FederationError(f"the metrics of {experiment_name} cannot be read: {error}") from error
            for line in lines:
                yield line
            if after != place:
                place = after
            elif over:
                break
            else:
                await experiment.news()
        if experiment.left:
            raise DirectorLeaves(experiment.failure)
        if experiment.status != Status.FINISHED:
            raise ExperimentFailed(experiment.failure or f"experiment {experiment_name} was {experiment.status}")

    def set_experiment_failed(self, *, experiment_name: str, collaborator_name: str, reason: str = "") -> None:
        """End an experiment that a site could not go on with."""
        experiment = self.experiments_registry.get(experiment_name)
        if experiment:
            experiment.site_failed(collaborator_name, f"site {collaborator_name} failed:\n{reason}")

    def check_owner(self, experiment_name: str, caller: str) -> None:
        """Go on only for an experiment of this caller.

        Raises:
            FederationError: there is none.
        """
        experiment = self.experiments_registry.get(experiment_name)
        if experiment is None or caller not in experiment.users:
            mine = [each.name for each in self.experiments_registry.get_user_experiments(caller)]
            raise FederationError(
                f"this director knows no experiment {experiment_name:.120} of {caller:.120}, but {_some(mine)}; attach "
                f"to one of those, or as the one who submitted it"
            )

    def cancel(self, name: str, by: Who) -> str:
        """End an experiment that waits or runs; nothing is removed. Says what was done.

        Raises:
            FederationError: there is no such experiment.
        """
        experiment = self._find(name)
        if experiment.over:
            return commands.is_over(name, experiment.status)
        logger.info("experiment %s: cancelled by %s", name, by, extra={"experiment": name, **by.fields})
        experiment.fail(commands.cancelled(name, by))
        self.queue.changed.set()
        return commands.done("cancelled", name)

    def remove(self, name: str, by: Who) -> str:
        """Forget an experiment that is over, with its models, or a folder that cannot be read. Says what was done.

        Raises:
            FederationError: there is no such experiment, or it is not over.
            OSError: the disk refuses.
        """
        folder = folder_of(self._state_root, name)
        if folder.name in self._unreadable:
            ExperimentState(folder).remove()
            del self._unreadable[folder.name]
        elif not self._find(name).over:
            raise commands.not_over(name)
        else:
            self._find(name).state.remove()
            self.experiments_registry.remove(name)
        logger.info("experiment %s: removed by %s", name, by, extra={"experiment": name, **by.fields})
        return commands.done("removed", name)

    def rows(self) -> Iterator[commands.Row]:
        """Every experiment as its operator is shown it."""
        for experiment in list(self.experiments_registry.values()):
            yield replace(commands.row(experiment.state, self.queue.status(experiment)), over=experiment.over)
        for folder, reason in list(self._unreadable.items()):
            yield commands.unreadable_row(self._state_root / folder, reason)

    def _find(self, name: str) -> RunningExperiment:
        experiment = self.experiments_registry.get(name)
        if experiment is None:
            raise commands.unknown(name, folder_of(self._state_root, name).name in self._unreadable)
        return experiment

    async def get_experiment_status(self, experiment_name: str, caller: str) -> str | None:
        """The engine's status; for one that waits, also how many are before it, or at which sites it does."""
        experiment = self.experiments_registry.get(experiment_name)
        if experiment is None or caller not in experiment.users:
            return None
        return self.queue.status(experiment)


def _some(names: Sequence[str], shown: int = 10) -> str:
    """The last of these names, which are the newest.

    >>> _some(["a", "b", "c"], 2), _some([])
    ('1 more, b, c', 'none')
    """
    more = [f"{len(names) - shown} more"] if len(names) > shown else []
    return ", ".join([*more, *names[-shown:]]) or "none"


def _described(path: Path) -> Description:
    """What an archive says of its experiment.

    Raises:
        SubmissionRefused: it holds what may not travel, or asks for a rule that there is not.
    """
    try:
        description = archives.describe(archives.read(path))
        rule = build(description.rule_name, description.rule_numbers)
        sites = description.policy.minimum_sites or 1
        if description.sampling and description.sampling.sites >= 1:
            sites = min(sites, int(description.sampling.sites))
        if sites < rule.least_sites:
            raise ValueError(
                f"rule {description.rule_name} needs {rule.least_sites} sites in every round, and a round may close "
                f"with {sites}: wait for more sites, set policy.minimum_sites, or change the rule's numbers"
            )
    except ArchiveRefused:
        path.unlink()
        raise
    except ValueError as error:
        path.unlink()
        raise SubmissionRefused(f"the experiment is refused: {error}") from None
    return description
