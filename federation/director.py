"""The director: knows the envoys, runs one experiment at a time, keeps what it measured.

Started by `director/start_director.sh`. Mends, with the engine's file and line:

- component/director/experiment.py:347 and component/director/experiment.py:220: the next experiment and the end of one
  are polled every 10 s. Here both are events.
- component/director/experiment.py:218: an experiment without sites is over at once, with the initial model. Here it is
  refused.
- component/director/director.py:295: reading a metric removes it, so a second reader sees a rest. Here every
  reader gets all of them, from the first.
- component/director/experiment.py:130 and transport/grpc/director_server.py:419: a failed experiment is called
  finished, and with TLS the report of the failure is dropped. Here it is failed, and every reader is told why.
- component/director/director.py:89: everything is kept in memory and lost with the process. Here every experiment is on
  disk (`federation.state`), and goes on from its last finished round.
- director.py:239: an experiment is told once to each envoy; where the question that is told is one of a lost
  connection, the envoy never hears of it; and nobody tells an envoy at work that its experiment is over. Here the
  answer comes from how the experiments stand, and an envoy at work asks too.
- director.py:394: KeyError for an envoy that has not asked for work yet.
- director.py:244: AttributeError for an envoy that asks again before the aggregator is made.
- director.py:112: an envoy is refused for its shapes, and the log does not say which.
- transport/grpc/director_server.py:292: whoever knows an experiment's name gets its code, and can
  report it failed. Here only its own sites.
- transport/grpc/aggregator_server.py:74: see `federation.router`.
"""

import argparse
import asyncio
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
from openfl.component.director import Director as EngineDirector
from openfl.component.director.experiment import Experiment as EngineExperiment
from openfl.component.director.experiment import Status
from openfl.federated import Plan
from openfl.protocols import aggregator_pb2_grpc, base_pb2, director_pb2, director_pb2_grpc
from openfl.protocols.utils import get_headers
from openfl.transport import DirectorGRPCServer as EngineServer
from openfl.transport.grpc.exceptions import ShardNotFoundError

from federation import archives
from federation.access import Access, certificate_name, guards
from federation.channels import SERVER_OPTIONS
from federation.edge import (
    DESCRIPTION_CHARACTERS,
    NAME_CHARACTERS,
    SITES,
    Edge,
    experiment_name_problem,
    shard_problem,
)
from federation.errors import (
    ArchiveRefused,
    DirectorLeaves,
    ExperimentFailed,
    FederationError,
    SubmissionRefused,
    disk_problem,
)
from federation.logs import configure_logging, log_fields
from federation.models import ModelFile
from federation.presence import Presence
from federation.review import DIGEST, SHORT
from federation.router import AggregatorRouter
from federation.schedule import NOTICE
from federation.settings import DirectorSettings, load_director
from federation.site_client import AWAITING_APPROVAL, INSTEAD_OF, PROCESS
from federation.state import ExperimentState
from federation.transfer import ModelServer

logger = logging.getLogger(__name__)

COLLABORATOR_THREADS = 64
"""Collaborators that may wait for work or send results at the same time."""


class MetricLog:
    """Every metric of an experiment, in order; takes the place of the aggregator's queue."""

    def __init__(
        self, state: ExperimentState, notify: Callable[[], None], cannot_keep: Callable[[str, OSError], None]
    ) -> None:
        self.lines = state.finished_metrics()
        self._state = state
        self._notify = notify
        self._cannot_keep = cannot_keep
        self._lock = threading.Lock()  # sites report at the same time; memory and disk keep one order

    def put(self, metric: dict[str, Any]) -> None:
        """Append one metric, here and on disk, and wake the readers."""
        with self._lock:
            self.lines.append(metric)
            try:
                self._state.add_metric(metric)
            except OSError as error:
                self._cannot_keep("a metric", error)
        self._notify()


class Experiment(EngineExperiment):  # type: ignore[misc]
    """One submitted experiment from its archive to its best model."""

    def __init__(self, state: ExperimentState, on_change: Callable[[], None] = lambda: None) -> None:
        about, progress = state.about(), state.progress()
        super().__init__(
            name=about["name"],
            archive_path=state.archive,
            collaborators=about["collaborators"],
            users=[about["sender"]],
            sender=about["sender"],
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
        self.notices: list[str] = []  # what readers are told beside the metrics while the experiment goes on
        self.left = False
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
        """Make the aggregator that the plan names, at the round that comes next; `failure` tells when that fails."""
        try:
            self.aggregator = self._build_aggregator()
        except Exception as error:
            logger.exception("experiment %s: its plan cannot be used", self.name, extra={"experiment": self.name})
            self.fail(f"the director cannot use the plan of {self.name}: {type(error).__name__}: {error}")

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

    def await_approval(self, site: str, digest: str | None) -> None:
        """A site waits for its owner to approve the code with this digest, or (None) waits no longer."""
        waited_for = self.awaiting.pop(site, None)
        if digest:
            self.awaiting[site] = digest
            if digest != waited_for:
                self.notice(f"site {site} waits for its owner to approve the code (digest {digest[:SHORT]})")

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
        while not self.over and not (self.aggregator and self.aggregator.finished):
            with suppress(TimeoutError):
                await asyncio.wait_for(self.news(), timeout=1)
            self._leave_out_the_gone(last_heard)
        if not self.over:
            self._ends(Status.FINISHED)
        logger.info("experiment %s: %s after %.1f s", self.name, self.status, time.monotonic() - started)
        self.notify()

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
        """The aggregator that the plan names, ready for its collaborators."""
        with tempfile.TemporaryDirectory(prefix="plan-") as folder:
            archives.write(archives.read(self.archive_path), Path(folder))
            with chdir(folder):  # the engine reads the plan's pickles from the working folder
                plan = Plan.parse(plan_config_path=Path("plan/plan.yaml"))
                plan.authorized_cols = list(self.collaborators)
                aggregator = plan.get_aggregator({})  # the model stays on disk
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
            progress = replace(  # the status on disk stays: a director that is leaving has not failed the experiment
                self.state.progress(),
                next_round=aggregator.round_number,
                last_round=aggregator.last_round,
                best_round=aggregator.best_round,
                best_score=aggregator.best_model_score,
            )
            self.state.save(progress)
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


class ExperimentsRegistry(dict[str, Experiment]):
    """Experiments by name, and the queue of those that wait (the engine's interface, without its polling)."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting: asyncio.Queue[Experiment] = asyncio.Queue()

    def add(self, experiment: Experiment) -> None:
        """Queue an experiment."""
        self[experiment.name] = experiment
        self.waiting.put_nowait(experiment)

    def remove(self, name: str) -> None:
        """Forget an experiment."""
        self.pop(name, None)

    def get_user_experiments(self, user: str) -> list[Experiment]:
        """Experiments that this user submitted."""
        return [experiment for experiment in self.values() if user in experiment.users]

    def aggregator_of(self, federation_uuid: str) -> Any:
        """The aggregator with this federation id, or None."""
        aggregators = (experiment.aggregator for experiment in self.values() if experiment.aggregator)
        return next((each for each in aggregators if each.federation_uuid == federation_uuid), None)


class Director(EngineDirector):  # type: ignore[misc]
    """The engine's director on events, with the truth about failures."""

    def __init__(self, *, state_root: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self.experiments_registry = ExperimentsRegistry()
        self.col_exp: dict[str, str | None] = defaultdict(lambda: None)
        self.presence = Presence(2 * self.envoy_health_check_period, self._wake)
        self._state_root = state_root
        self._changed = asyncio.Event()
        self._leaving = False
        for state in ExperimentState.all(state_root):
            experiment = Experiment(state, self._wake)
            if experiment.over:
                self.experiments_registry[experiment.name] = experiment
                continue
            about = {"experiment": experiment.name}
            done = state.progress().next_round
            logger.info("experiment %s: goes on with round %d", experiment.name, done, extra=about)
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
        for experiment in self.experiments_registry.values():
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
        await asyncio.to_thread(_check_archive, experiment_archive_path)
        if problem := experiment_name_problem(experiment_name):
            raise SubmissionRefused(problem)
        if not list(collaborator_names):
            raise SubmissionRefused("no envoy is online; start one with envoy/start_envoy.sh and submit again")
        if unknown := set(collaborator_names) - self._shard_registry.keys():
            raise SubmissionRefused(f"this director knows no site {', '.join(sorted(unknown))[:200]}")
        if experiment_name in self.experiments_registry:
            raise SubmissionRefused(
                f"there is already an experiment named {experiment_name}; give this one another name"
            )
        about = {
            "name": experiment_name,
            "collaborators": list(dict.fromkeys(collaborator_names)),
            "sender": sender_name,
            "submitted": time.time(),
        }
        try:
            state = ExperimentState.create(self._state_root, experiment_archive_path, initial_model, about)
            experiment = Experiment(state, self._wake)
        except OSError as error:
            raise SubmissionRefused(disk_problem(experiment_name, error)) from error
        self.experiments_registry.add(experiment)
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
        """Run the queued experiments one after the other, for ever."""
        while True:
            experiment = await self.experiments_registry.waiting.get()
            for earlier in self.experiments_registry.values():
                earlier.keep_end()
            with log_fields(experiment=experiment.name):
                await experiment.start(self.presence.last_heard)

    async def wait_experiment(
        self, envoy_name: str, process: str = "", instead_of: str = "", awaiting: str | None = None
    ) -> str:
        """The name of the experiment that this envoy should work on, "" for none, once it is not `instead_of`.

        An idle envoy waits for its next experiment so, and one at work for the end of the one that it works on. For a
        process that no longer holds the envoy's name there is no work. `awaiting` is the digest of the code that the
        envoy has, where it waits for its owner to approve it.

        Raises:
            FederationError: the director is leaving and can no longer tell.
        """
        held = self.experiments_registry.get(self.col_exp[envoy_name] or "")
        if held:
            held.await_approval(envoy_name, awaiting)
        while not self._leaving:
            wanted = (name for name, each in self.experiments_registry.items() if each.wants(envoy_name))
            if not self.presence.holds(envoy_name, process):
                return ""
            if (work := next(wanted, "")) != instead_of:
                self.col_exp[envoy_name] = work or None
                return work
            await self._changed.wait()
        raise FederationError("the director is being stopped")

    def leave(self) -> None:
        """Tell everyone who waits that the director is leaving."""
        self._leaving = True
        for experiment in self.experiments_registry.values():
            experiment.leave()
        self._wake()

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def stream_metrics(self, experiment_name: str, caller: str) -> AsyncIterator[dict[str, Any]]:
        """Every metric from the first on, then new ones as they come.

        Raises:
            ExperimentFailed: at the end of an experiment that failed.
            DirectorLeaves: the experiment goes on when the director is back.
            FederationError: there is no such experiment of this caller.
        """
        experiment = self.experiments_registry.get(experiment_name)
        if experiment is None or caller not in experiment.users:
            raise FederationError(f"this director knows no experiment {experiment_name} of {caller}")
        sent = told = 0
        while True:
            while told < len(experiment.notices):
                yield {"task_name": NOTICE, "metric_name": experiment.notices[told]}
                told += 1
            while sent < len(experiment.metrics.lines):
                yield experiment.metrics.lines[sent]
                sent += 1
            if experiment.over:
                break
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

    def remove_experiment_data(self, experiment_name: str, caller: str) -> None:
        """Cancel an experiment that waits or runs; forget one that is over."""
        experiment = self.experiments_registry.get(experiment_name)
        if experiment is None or caller not in experiment.users:
            return
        if experiment.over:
            self.experiments_registry.remove(experiment_name)
            experiment.state.remove()
        else:
            experiment.fail(f"experiment {experiment_name} was cancelled by {caller}")

    async def get_experiment_status(self, experiment_name: str, caller: str) -> str | None:
        """The engine's status; for one that waits, also how many are before it, or at which sites it does."""
        experiment = self.experiments_registry.get(experiment_name)
        if experiment is None or caller not in experiment.users:
            return None
        if experiment.status == Status.IN_PROGRESS and experiment.awaiting:
            return f"{Status.IN_PROGRESS}, waiting for approval at {', '.join(sorted(experiment.awaiting))}"
        if experiment.status != Status.PENDING:
            return str(experiment.status)
        names = [name for name, each in self.experiments_registry.items() if not each.over]
        return f"{Status.PENDING}, {names.index(experiment_name)} before it"


def _check_archive(path: Path) -> None:
    try:
        archives.read(path)
    except ArchiveRefused:
        path.unlink()
        raise


class DirectorServer(EngineServer):  # type: ignore[misc]
    """The engine's server with errors that reach the notebook and the aggregators on the same port."""

    guards: tuple[Access, ...] = ()

    async def _run_server(self) -> None:
        pool = ThreadPoolExecutor(COLLABORATOR_THREADS, thread_name_prefix="collaborator")
        interceptors = (Edge(pool), *self.guards)
        self.server = grpc.aio.server(interceptors=interceptors, options=SERVER_OPTIONS)
        director_pb2_grpc.add_DirectorServicer_to_server(self, self.server)
        router = AggregatorRouter(
            self.director.experiments_registry.aggregator_of, self.tls, self.director.presence.see
        )
        aggregator_pb2_grpc.add_AggregatorServicer_to_server(router, self.server)
        models = ModelServer(
            self.director.experiments_registry.aggregator_of,
            self._trained,
            certificate_name,
            self.director.presence.see,
        )
        models.add_to(self.server)
        try:
            port = self._bind()
        except RuntimeError as error:
            raise FederationError(f"cannot listen on {self.listen_uri}: is another director running there?") from error
        logger.info("listening on %s:%d", self.listen_uri.rsplit(":", 1)[0], port)
        await self.server.start()
        # Shielded: what it waits for is what stop() waits for, and must not be cancelled with this task.
        await asyncio.shield(self.server.wait_for_termination())

    def _trained(self, experiment: str, kind: str, context: Any) -> ModelFile | None:
        model: ModelFile | None = self.director.get_trained_model(experiment, self.get_caller(context), kind)
        return model

    def _bind(self) -> int:
        if not self.tls:
            return int(self.server.add_insecure_port(self.listen_uri))
        credentials = grpc.ssl_server_credentials(
            [(self.private_key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.root_certificate.read_bytes(),
            require_client_auth=True,
        )
        return int(self.server.add_secure_port(self.listen_uri, credentials))

    async def SetNewExperiment(self, stream: Any, context: Any) -> Any:  # noqa: N802
        """Take an experiment from a notebook, or say why not.

        Each message holds a part of the archive or, in `model_proto.tensors[0].data_bytes`, of the initial model.
        """
        folder = Path(tempfile.mkdtemp(prefix="submission-", dir=self.root_dir))
        archive, model = folder / "experiment.zip", folder / "model.safetensors"
        request = director_pb2.ExperimentInfo()
        try:
            with archive.open("wb") as archive_file, model.open("wb") as model_file:
                async for request in stream:
                    archive_file.write(request.experiment_data.npbytes)
                    archives.check_size(archive_file.tell())
                    for part in request.model_proto.tensors:
                        model_file.write(part.data_bytes)
            ModelFile(model)
            await self.director.set_new_experiment(
                experiment_name=request.name,
                sender_name=self.get_caller(context),
                initial_model=model,
                collaborator_names=request.collaborator_names,
                experiment_archive_path=archive,
            )
        except SubmissionRefused as refusal:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the initial model cannot be used: {error}")
        except OSError as error:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, disk_problem(request.name or "the experiment", error)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        logger.info("experiment %s: submitted by %s", request.name, self.get_caller(context))
        return director_pb2.SetNewExperimentResponse(accepted=True)

    async def GetTrainedModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not here: models have streams of their own."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models travel by federation.Models")

    async def GetExperimentDescription(self, request: Any, context: Any) -> Any:  # noqa: N802
        """How one of the caller's experiments stands."""
        experiments = self.director.get_experiments_list(self.get_caller(context))
        known = [each for each in experiments if each["name"] == request.name]
        if not known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this director knows no such experiment of this caller")
        description = base_pb2.ExperimentDescription(name=request.name, status=known[0]["status"])
        return director_pb2.GetExperimentDescriptionResponse(experiment=description)

    async def GetMetricStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Metrics to a notebook; ends with an error if the experiment did."""
        try:
            async for metric in self.director.stream_metrics(request.experiment_name, self.get_caller(context)):
                yield director_pb2.GetMetricStreamResponse(**metric)
        except DirectorLeaves as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except FederationError as error:
            await context.abort(grpc.StatusCode.ABORTED, str(error))

    async def UpdateShardInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Register an envoy, unless another one that is alive has its name."""
        site, process = request.shard_info.node_info.name, _process(context)
        if problem := shard_problem(request.shard_info):
            raise ValueError(problem)
        if self.director.full and not self.director.knows(site):
            raise ValueError(f"{SITES} sites have registered with this director; it takes no more")
        if not await self.director.presence.claim(site, process):
            logger.error("envoy %s: refused, another envoy of this name is there; peer %s", site, context.peer())
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, _taken(site))
        reply = await super().UpdateShardInfo(request, context)
        if not reply.accepted:
            self.director.presence.forget(site, process)
        return reply

    async def UpdateEnvoyStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An envoy says that it is there."""
        await self._hear(request.name, context)
        return await super().UpdateEnvoyStatus(request, context)

    async def WaitExperiment(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What an envoy should work on, as soon as that is something else than what it works on now."""
        site = request.collaborator_name
        await self._hear(site, context)
        instead_of = get_headers(context).get(INSTEAD_OF, b"").decode()
        said = str(get_headers(context).get(AWAITING_APPROVAL, ""))
        awaiting = said if DIGEST.fullmatch(said) else None
        try:
            with self.director.presence.call(site, _process(context)):
                work = await self.director.wait_experiment(site, _process(context), instead_of, awaiting)
        except FederationError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        await self._hear(site, context)  # the name may be another's by now
        return director_pb2.WaitExperimentResponse(experiment_name=work)

    async def GetExperimentData(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The archive of an experiment, to its own sites."""
        await self._check_site(request, context)
        async for part in super().GetExperimentData(request, context):
            yield part

    async def SetExperimentFailed(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One of an experiment's sites reports that it cannot go on, or (error code 0) that it tries once more."""
        await self._check_site(request, context)
        experiment, site = request.experiment_name, request.collaborator_name
        reason = request.error_description[-DESCRIPTION_CHARACTERS:]  # a traceback tells most at its end
        about = {"experiment": experiment, "site": site}
        if request.error_code == 0:
            logger.warning("experiment %s: site %s tries again: %s", experiment, site, reason, extra=about)
        else:
            logger.error("experiment %s: site %s failed", experiment, site, extra=about)
            self.director.set_experiment_failed(experiment_name=experiment, collaborator_name=site, reason=reason)
        return director_pb2.SetExperimentFailedResponse()

    async def _hear(self, site: str, context: Any) -> None:
        """Note that this site's envoy has called; one that has not registered, or not under its own name, is told."""
        if not self.director.knows(site):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no envoy {site[:NAME_CHARACTERS]} has registered here")
        if not self.director.hear(site, _process(context)):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, _taken(site))

    async def _check_site(self, request: Any, context: Any) -> None:
        """Go on only for a site of the experiment; with TLS its name has been checked (`federation.access`)."""
        experiment = self.director.experiments_registry.get(request.experiment_name)
        if experiment is None:
            reason = f"this director knows no experiment {request.experiment_name[:NAME_CHARACTERS]}"
            await context.abort(grpc.StatusCode.NOT_FOUND, reason)
        if request.collaborator_name not in experiment.collaborators:
            reason = f"{request.collaborator_name[:NAME_CHARACTERS]} is not a site of experiment {experiment.name}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)


def _process(context: Any) -> str:
    return str(get_headers(context).get(PROCESS, ""))


def _taken(site: str) -> str:
    return (
        f"another envoy named {site} is connected to this director; stop that one, or give this one another name in "
        f"its envoy.yaml"
    )


async def serve(settings: DirectorSettings) -> None:
    """Run a director until it is cancelled."""
    with tempfile.TemporaryDirectory(prefix="director-") as folder:
        server = DirectorServer(
            director_cls=Director,
            state_root=_state_root(settings, Path(folder, "state")),
            tls=settings.certificates.tls,
            sample_shape=list(settings.sample_shape),
            target_shape=list(settings.target_shape),
            listen_host=settings.listen_host,
            listen_port=settings.listen_port,
            envoy_health_check_period=settings.envoy_health_check_period,
            **settings.certificates.as_strings(),
        )
        server.guards = guards(settings)
        server.root_dir = Path(folder)  # submitted archives
        experiments = asyncio.create_task(server.director.start_experiment_execution_loop())
        try:
            await server._run_server()
        finally:
            experiments.cancel()
            server.director.leave()
            await server.server.stop(grace=1)  # time enough to tell the readers


def _state_root(settings: DirectorSettings, temporary: Path) -> Path:
    root = settings.state or temporary
    try:
        root.mkdir(parents=True, exist_ok=True)
        ExperimentState.all(root)
    except (OSError, ValueError, KeyError) as error:
        raise FederationError(f"state: {root} cannot be used ({error}); move it away or name another folder") from error
    return root


def main(arguments: list[str] | None = None) -> None:
    """Start a director from `director.yaml`; what is given here wins over the file."""
    parser = argparse.ArgumentParser(prog="start_director.sh", description=main.__doc__)
    parser.add_argument("--config", type=Path, default=Path("director/director.yaml"))
    parser.add_argument("--host", help="name or address to listen on")
    parser.add_argument("--port", type=int, help="port to listen on; 0 takes a free one and prints it")
    parser.add_argument("--state", type=Path, help="folder in which experiments are kept over restarts")
    options = parser.parse_args(arguments)
    try:
        configure_logging("director")
        settings = load_director(
            options.config, listen_host=options.host, listen_port=options.port, state=options.state
        )
        asyncio.run(_until_stopped(settings))
    except (FederationError, OSError) as error:
        sys.exit(f"director: {error}")


async def _until_stopped(settings: DirectorSettings) -> None:
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await serve(settings)
    logger.info("stopped")


if __name__ == "__main__":
    main()
