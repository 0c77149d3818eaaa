"""The envoy: stands beside a site's recordings, waits for experiments, runs each in a process of its own.

Started by `federation.envoy`. Mends, with the engine's file and line:

- component/envoy/envoy.py:207: the health thread of an envoy whose director was away dies, so a restarted director
  never hears of it again. Here it registers again by itself.
- component/envoy/envoy.py:159: see `federation.site.trainer`. One that dies (memory, a crash in a library) is started
  again as often as the experiment's policy says.
- A collaborator in the middle of a task learns only after it that the experiment is over. Here the envoy waits for
  that news (`Watch`) and ends the trainer.
- component/envoy/envoy.py:275: an envoy that cannot reach its director leaves with a traceback. Here it waits for it,
  and says so.
- interface/envoy.py:128: packages that an experiment names are installed by default. Here never.
"""

import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import grpc
import yaml
from openfl.component.envoy.envoy import Envoy as EngineEnvoy
from openfl.transport.grpc.exceptions import ShardNotFoundError

from federation.errors import REFUSALS, FederationError
from federation.logs import log_fields
from federation.policy import retries_of
from federation.settings import Accept, EnvoySettings
from federation.site import devices
from federation.site.audit import AuditLog
from federation.site.client import SiteClient
from federation.site.local_state import state_folder
from federation.site.review import COMMAND, ReviewFolder, Submission, Verdict, refusal, verdict
from federation.site.trainer import FAILURE_FILE, TrainerTask, build_descriptor
from federation.wire import archives
from federation.wire.metadata import SHORT

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
GRACE_SECONDS = 3.0
"""How long a trainer has to leave by itself once its experiment is over."""
WAITING = (
    "waiting for the director's answer: if it knows another envoy named %s, it finds out whether that one still works"
)


class Envoy(EngineEnvoy):  # type: ignore[misc]
    """The engine's envoy that outlives its director, its trainers and their errors."""

    def __init__(self, settings: EnvoySettings) -> None:
        monitor = devices.load_monitor(settings.device_monitor)
        self.settings = settings
        self.reviews = ReviewFolder(settings.review_folder)
        self.audit = AuditLog(settings.audit, site=settings.name, director="{}:{}".format(*self._director))
        self._waiting: tuple[str, str] | None = None  # experiment and digest that the owner has to decide on
        self._trainer: subprocess.Popen[str] | None = None
        super().__init__(
            shard_name=settings.name,
            director_host=settings.director_host,
            director_port=settings.director_port,
            shard_descriptor=build_descriptor(settings.descriptor, dict(settings.descriptor_params)),
            tls=settings.certificates.tls,
            install_requirements=False,
            cuda_devices=devices.present(settings.cuda_devices, monitor) if monitor else (),
            cuda_device_monitor=monitor,
            **settings.certificates.as_strings(),
        )
        self.director_client = SiteClient(settings)
        if not self.cuda_devices:
            logger.info("no CUDA device: training on the CPU with %d thread(s)", settings.cpu_threads)
        if settings.accept == Accept.ANY:
            logger.warning(
                "review.accept is 'any': the code of everyone who may submit runs here unseen, next to the recordings; "
                "for a demo only (allowed: %s)",
                ", ".join(Accept),
            )

    def start(self) -> None:
        """Register, then serve experiments until stopped.

        Raises:
            FederationError: the director refuses this site.
        """
        self._register()
        threading.Thread(target=self.send_health_check, daemon=True).start()
        self.run()

    def run(self) -> None:
        """Wait for the next experiment, work on it, report if that failed; for ever.

        Raises:
            FederationError: the director refuses this site: its certificate, or its name is another envoy's by now.
        """
        told = False
        while True:
            try:
                name = self._next_experiment()
                archive = self._fetch(name)
            except grpc.RpcError as error:
                if error.code().name in (*REFUSALS, "ALREADY_EXISTS"):
                    raise FederationError(f"the director refused this site: {error.details()}") from error
                if error.code() is grpc.StatusCode.NOT_FOUND:  # a director that was restarted
                    self._register()
                    continue
                if not told:
                    logger.warning("no word from the director (%s); trying until it is back", error.details())
                told = True
                time.sleep(RETRY_SECONDS)
                continue
            told = False
            with log_fields(experiment=name):
                self._take(name, archive)

    def _take(self, name: str, archive: bytes) -> None:
        """Work on an experiment if its code may run here, and report if that fails."""
        try:
            files = self._review(name, archive)
        except (FederationError, OSError) as error:
            self._report(name, str(error))
            return
        if files is None:
            return
        self.is_experiment_running = True
        watch = Watch(self.director_client, name, self.stop)
        watch.start()
        state = self.settings.state and state_folder(self.settings.state, self.name, archive)
        try:
            failure = self._work_on(name, files, watch, state)
        except OSError as error:
            failure = f"site {self.name} cannot start the experiment: {error}"
        watch.trainer_ended.set()
        self.is_experiment_running = False
        if failure and not watch.over:
            self._report(name, failure)
        elif failure:
            logger.info("experiment %s: is over; its trainer was ended", name)
        else:
            logger.info("experiment %s: done", name)
        watch.join(GRACE_SECONDS)
        if watch.over and not watch.refused and state:
            shutil.rmtree(state, ignore_errors=True)

    def send_health_check(self) -> None:
        """Tell the director every few seconds that this site is here; register again where it has forgotten."""
        while True:
            period: float | None = None
            try:
                period = self.director_client.send_health_check(
                    envoy_name=self.name,
                    is_experiment_running=self.is_experiment_running,
                    cuda_devices_info=self._get_cuda_device_info(),
                )
            except ShardNotFoundError:
                with suppress(FederationError):  # `run` gets the same refusal, and ends this process
                    self._register()
            time.sleep(period or RETRY_SECONDS)

    def stop(self) -> None:
        """End the running trainer, if any."""
        if self._trainer and self._trainer.poll() is None:
            self._trainer.kill()  # it holds nothing that would be lost
            self._trainer.wait()

    def _next_experiment(self) -> str:
        """The name of the next experiment; as long as the owner decides on one, ask again and say that it waits.

        The answer tells whether the experiment still waits for this site: when it is over, the next one comes.
        """
        while True:
            name = self.director_client.wait_experiment(awaiting=self._waiting[1] if self._waiting else None)
            if self._waiting is None or self._waiting[0] != name:
                self._waiting = None
                return name
            if self.reviews.wait_for_decision(self._waiting[1], RETRY_SECONDS):
                self._waiting = None  # asks once more: the director knows then, and the archive is looked at anew

    def _fetch(self, name: str) -> bytes:
        """The archive of an experiment, as far as one may be large."""
        archive = bytearray()
        stream = self.director_client.get_experiment_data(name)
        for part in stream:
            archive += part.npbytes
            if len(archive) > archives.MAX_ARCHIVE_BYTES:
                stream.cancel()
                break
        return bytes(archive)

    def _review(self, name: str, archive: bytes) -> Mapping[str, bytes] | None:
        """The files of an experiment that may run here; None: its owner has to decide first.

        Raises:
            FederationError: the archive holds what may not travel, or the site's policy or its owner refuses the code.
            OSError: the submission cannot be kept.
        """
        submission = Submission(archives.read(archive))
        digest = submission.digest
        self.reviews.receive(submission, name)
        decision = self.reviews.decision(digest)
        ruling = verdict(self.settings.accept, decision)
        if ruling is Verdict.REFUSE:
            raise FederationError(refusal(digest, decision))
        if ruling is Verdict.WAIT:
            self._waiting = name, digest
            show = f"{COMMAND} show {digest[:SHORT]} --config YAML"
            logger.warning(
                "experiment %s: waits for its owner; %s, then `approve` or `reject` instead of `show`", name, show
            )
            return None
        logger.info("experiment %s: starts, digest %s", name, digest[:SHORT])
        return submission.files

    def _report(self, name: str, failure: str) -> None:
        """Tell the director why this site does not go on with an experiment."""
        logger.error("experiment %s: failed\n%s", name, failure)
        try:
            self.audit.failure(failure, experiment=name)
        except OSError as error:
            failure = f"the site cannot write its audit log ({error.strerror}), so it tells nothing more"
        try:
            self.director_client.set_experiment_failed(name, error_description=failure)
        except grpc.RpcError as error:
            logger.warning("the director was not told (%s)", error.details())

    def _register(self) -> None:
        shard = self.shard_descriptor
        self.audit.registration(
            shard.dataset_description,
            sample_shape=shard.sample_shape,
            target_shape=shard.target_shape,
            cuda_devices=list(self.cuda_devices),
        )
        waiting = False
        while True:
            told = threading.Timer(RETRY_SECONDS, logger.warning, (WAITING, self.name))
            told.start()
            try:
                accepted = self.director_client.report_shard_info(shard, self.cuda_devices)
            except grpc.RpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise FederationError(f"the director refused this site: {error.details()}") from error
                if not waiting:
                    logger.warning("no director at %s:%d yet; waiting", *self._director)
                waiting = True
                time.sleep(RETRY_SECONDS)
                continue
            finally:
                told.cancel()
            if not accepted:
                shapes = shard.sample_shape, shard.target_shape
                raise FederationError(
                    f"the director at {self._director[0]}:{self._director[1]} refused this site: its sample and target "
                    f"shapes are {shapes}; director.yaml names those that the federation works on"
                )
            logger.info("registered with the director at %s:%d", *self._director)
            return

    @property
    def _director(self) -> tuple[str, int]:
        return self.settings.director_host, self.settings.director_port

    def _work_on(self, name: str, files: Mapping[str, bytes], watch: "Watch", state: Path | None) -> str:
        """Run one experiment in a trainer process; why it failed, or ""."""
        with tempfile.TemporaryDirectory(prefix=f"{self.name}-") as folder:
            archives.write(files, Path(folder))
            task = TrainerTask(
                folder=folder,
                experiment=name,
                site=self.name,
                director_host=self.settings.director_host,
                director_port=self.settings.director_port,
                descriptor=self.settings.descriptor,
                descriptor_params=dict(self.settings.descriptor_params),
                cuda_devices=list(self.cuda_devices),
                certificates=self.settings.certificates.as_strings(),
                audit=str(self.settings.audit) if self.settings.audit else None,
                state=str(state) if state else None,
            )
            for retries_left in reversed(range(1 + _retries(Path(folder)))):
                try:
                    status = self._train(task)
                finally:
                    self.stop()
                if status >= 0 or watch.over or not retries_left:
                    break
                logger.warning("experiment %s: %s; it is started once more", name, cause_of(status))
                with suppress(grpc.RpcError):
                    self.director_client.attempt_failed(name, cause_of(status))
            failure = Path(folder, FAILURE_FILE)
            return failure.read_text(encoding="utf-8") if failure.is_file() else cause_of(status)

    def _train(self, task: TrainerTask) -> int:
        """Run a trainer process to its end; its exit status, negative for a signal."""
        self._trainer = subprocess.Popen(
            [sys.executable, "-m", "federation.site.trainer"],
            stdin=subprocess.PIPE,
            env=_environment(self.settings.cpu_threads),
            text=True,
        )
        assert self._trainer.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; the exit status tells
            self._trainer.stdin.write(task.to_json() + "\n")
            self._trainer.stdin.flush()
        return self._trainer.wait()


class Watch(threading.Thread):
    """Waits until the director no longer wants this site's work on an experiment, then ends the trainer.

    The trainer itself hears of it between two tasks; one that is busy is ended after `GRACE_SECONDS`.
    """

    def __init__(self, client: SiteClient, experiment: str, end_trainer: Callable[[], None]) -> None:
        super().__init__(name=f"watch {experiment}", daemon=True)
        self._client, self._experiment, self._end_trainer = client, experiment, end_trainer
        self.over = self.refused = False
        self.trainer_ended = threading.Event()

    def run(self) -> None:
        """Ask until there is an answer; a director that is away or leaving has not ended anything."""
        while True:
            try:
                self._client.wait_experiment(instead_of=self._experiment)
                break
            except grpc.RpcError as error:
                self.refused = error.code().name in (*REFUSALS, "ALREADY_EXISTS")
                if self.refused:
                    break
            time.sleep(RETRY_SECONDS)
        self.over = True
        if not self.trainer_ended.wait(GRACE_SECONDS):
            self._end_trainer()


def cause_of(status: int) -> str:
    """Why a trainer process left with this exit status, for the one who reads about it; "" when its work was done."""
    if status == 0:
        return ""
    if status > 0:
        return f"the trainer process ended with status {status}; see this envoy's log"
    ended = f"the trainer process was ended by signal {-status} ({signal.Signals(-status).name})"
    if -status == signal.SIGKILL:
        return f"{ended}: killed for memory? The site's kernel log tells (dmesg); a smaller batch or model needs less"
    return ended


def _retries(folder: Path) -> int:
    """How often the shipped plan lets a trainer be started again; of a plan that is broken the trainer tells."""
    try:
        return retries_of(yaml.safe_load(Path(folder, "plan", "plan.yaml").read_text(encoding="utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return 0


def _environment(threads: int) -> dict[str, str]:
    """The trainer's environment: its share of the cores, and threads that sleep while they wait.

    Two trainers that each take all cores of one machine spin against each other: an epoch of 11 s took over 100 s.
    """
    budget = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return os.environ | budget | {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
