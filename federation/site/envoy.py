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
import threading
import time
from contextlib import suppress

import grpc
from openfl.component.envoy.envoy import Envoy as EngineEnvoy
from openfl.transport.grpc.exceptions import ShardNotFoundError

from federation.errors import REFUSALS, FederationError
from federation.logs import log_fields
from federation.settings import Accept, EnvoySettings
from federation.site import devices
from federation.site.audit import AuditLog
from federation.site.client import SiteClient, name_in
from federation.site.disk import outlast
from federation.site.folders import WorkFolder
from federation.site.job import GRACE_SECONDS, RETRY_SECONDS, Job, Watch
from federation.site.local_state import state_folder
from federation.site.review import COMMAND, ReviewFolder, Submission, Verdict, refusal, verdict
from federation.site.trainer import build_descriptor
from federation.wire import archives
from federation.wire.metadata import SHORT

logger = logging.getLogger(__name__)

WAITING = (
    "waiting for the director's answer: if it knows another envoy named %s, it finds out whether that one still works"
)


class Slots:
    """A site's slots, each with its device; one experiment at a time is worked on in each."""

    def __init__(self, devices: tuple[int | None, ...]) -> None:
        self._free = list(devices)
        self._changed = threading.Condition()

    def wait(self) -> None:
        """Wait until one is free."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)

    def take(self) -> int | None:
        """Take a free one, as soon as there is one; its device."""
        with self._changed:
            self._changed.wait_for(lambda: self._free)
            return self._free.pop(0)

    def give_back(self, device: int | None) -> None:
        """Somebody else may have it."""
        with self._changed:
            self._free.append(device)
            self._changed.notify_all()


class Envoy(EngineEnvoy):  # type: ignore[misc]
    """The engine's envoy that outlives its director, its trainers and their errors."""

    def __init__(self, settings: EnvoySettings) -> None:
        monitor = devices.load_monitor(settings.device_monitor)
        present = devices.present(settings.cuda_devices, monitor) if monitor else ()
        self.settings = settings
        self.reviews = ReviewFolder(settings.review_folder)
        self.audit = AuditLog(settings.audit, site=settings.name, director="{}:{}".format(*self._director))
        self._devices = devices.slots(settings.slots, present)
        self._slots = Slots(self._devices)
        self._hand = threading.Lock()
        self._in_hand: dict[str, str | None] = {}  # experiments; the digest of one that the owner has to decide on
        self._question: grpc.Future | None = None  # for an experiment that is none of those
        self._jobs: dict[str, Job] = {}
        self._leaving = threading.Event()
        super().__init__(
            shard_name=settings.name,
            director_host=settings.director_host,
            director_port=settings.director_port,
            shard_descriptor=build_descriptor(settings.descriptor, dict(settings.descriptor_params)),
            tls=settings.certificates.tls,
            install_requirements=False,
            cuda_devices=present,
            cuda_device_monitor=monitor,
            **settings.certificates.as_strings(),
        )
        self.director_client = SiteClient(settings, self.audit, len(self._devices))
        if not self.cuda_devices:
            logger.info("no CUDA device: training on the CPU with %d thread(s)", settings.cpu_threads)
        if len(self._devices) > 1:
            logger.info("%d slots: so many experiments run side by side", len(self._devices))
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
        """Wait for the next experiment, work on it, report if that failed; for ever, and in each slot.

        Raises:
            FederationError: the director refuses this site: its certificate, or its name is another envoy's by now.
        """
        self._work = WorkFolder(self.name)
        try:
            told = False
            while True:
                self._slots.wait()
                try:
                    name = self._next_experiment()
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
                self._begin(name)
        finally:
            self._leave()

    def _next_experiment(self) -> str:
        """The name of the next experiment that is not in hand."""
        while True:
            with self._hand:
                in_hand = set(self._in_hand)
                self._question = self.director_client.next_experiment(in_hand)
            try:
                name = name_in(self._question)
            except grpc.FutureCancelledError:
                continue  # there is less in hand than there was
            if name and name not in in_hand:
                return name
            time.sleep(RETRY_SECONDS)  # for a director that gives no other answer

    def _begin(self, name: str) -> None:
        """Work on an experiment in a thread of its own; returns when it is known whether it needs a slot now."""
        settled = threading.Event()
        with self._hand:
            self._in_hand[name] = None
        threading.Thread(target=self._handle, args=(name, settled), name=f"experiment {name}", daemon=True).start()
        settled.wait()

    def _handle(self, name: str, settled: threading.Event) -> None:
        """Work on an experiment if its code may run here, and report if that fails."""
        devices: list[int | None] = []  # of the slot that is taken, if one is
        with log_fields(experiment=name):
            try:
                submission = self._reviewed(name)
                if self._in_hand[name]:
                    settled.set()
                    self._wait_for_owner(name)
                elif not self._leaving.is_set():
                    devices.append(self._slots.take())
                    settled.set()
                    self._work_on(name, submission, devices[0])
            except grpc.RpcError as error:
                logger.warning("experiment %s: cannot be fetched (%s)", name, error.details())
                time.sleep(RETRY_SECONDS)  # whoever asks next is given it again, or is told why not
            except (FederationError, OSError) as error:
                self._report(name, str(error))
            finally:
                with self._hand:
                    del self._in_hand[name]
                    if self._question:
                        self._question.cancel()  # and asked anew: the director may want it again
                for device in devices:
                    self._slots.give_back(device)
                settled.set()

    def _work_on(self, name: str, submission: Submission, device: int | None) -> None:
        settings, slots = self.settings, len(self._devices)
        state = state_folder(settings.state, self.name, submission.description.id, slots) if settings.state else None
        threads = max(1, settings.cpu_threads // slots)
        job = self._jobs[name] = Job(
            settings, self.director_client, self._work, name, submission, state, device, threads
        )
        try:
            logger.info("experiment %s: starts, digest %s", name, submission.digest[:SHORT])
            failure = job.run()
            if failure and not self._leaving.is_set():
                self._report(name, failure)
        finally:
            del self._jobs[name]

    def _reviewed(self, name: str) -> Submission:
        """The files of an experiment that may run here, or, where its digest is in hand, when its owner says so.

        Raises:
            FederationError: the archive holds what may not travel, the site's policy or its owner refuses the code, or
                too many others wait for a decision.
            OSError: the submission cannot be kept.
            grpc.RpcError: no word from the director.
        """
        archive, experimenter = self.director_client.archive(name, archives.MAX_ARCHIVE_BYTES)
        submission = Submission(archives.read(archive))
        digest, waits = submission.digest, self.settings.accept != Accept.ANY
        outlast(lambda: self.reviews.receive(submission, name, waits=waits, experimenter=experimenter), "a submission")
        decision = self.reviews.decision(digest)
        ruling = verdict(self.settings.accept, decision)
        if ruling is Verdict.REFUSE:
            raise FederationError(refusal(digest, decision))
        if ruling is Verdict.WAIT:
            with self._hand:
                self._in_hand[name] = digest
            show = f"{COMMAND} show {digest[:SHORT]} --config YAML"
            logger.warning(
                "experiment %s: waits for its owner; %s, then `approve` or `reject` instead of `show`", name, show
            )
        return submission

    def _wait_for_owner(self, name: str) -> None:
        """Wait for the owner's decision on an experiment, or until it is over, or this envoy leaves.

        No slot is taken meanwhile, and the director knows that it waits. It tells of the experiment again afterwards,
        and what it sends is looked at anew: what was approved is what was shown.
        """
        digest = self._in_hand[name]
        assert digest is not None
        watch = Watch(self.director_client, name, lambda: None, awaiting=digest)
        watch.start()
        while not watch.over and not self._leaving.is_set():
            if self.reviews.wait_for_decision(digest, RETRY_SECONDS):
                break
        watch.leave()

    def _leave(self) -> None:
        """End the trainers; what they have done stays at the director, and what they need to go on here."""
        self._leaving.set()
        for job in list(self._jobs.values()):
            job.end_trainer()
        deadline = time.monotonic() + GRACE_SECONDS
        while self._jobs and time.monotonic() < deadline:
            time.sleep(0.01)
        self._work.remove()

    def send_health_check(self) -> None:
        """Tell the director every few seconds that this site is here; register again where it has forgotten."""
        while True:
            period: float | None = None
            try:
                period = self.director_client.send_health_check(
                    envoy_name=self.name,
                    is_experiment_running=bool(self._jobs),
                    cuda_devices_info=self._get_cuda_device_info(),
                )
            except ShardNotFoundError:
                with suppress(FederationError):  # `run` gets the same refusal, and ends this process
                    self._register()
            time.sleep(period or RETRY_SECONDS)

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
