"""One experiment in one of a site's slots: a trainer process, and whoever ends it when the experiment is over."""

import logging
import os
import shutil
import signal
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import grpc

from federation.errors import REFUSALS
from federation.settings import EnvoySettings
from federation.site.client import SiteClient, name_in, rests
from federation.site.disk import outlast
from federation.site.folders import WorkFolder
from federation.site.processes import Trainer
from federation.site.review import Submission
from federation.site.trainer import FAILURE_FILE, TrainerTask
from federation.wire import archives

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0
GRACE_SECONDS = 3.0
"""How long a trainer has to leave by itself once its experiment is over."""
MOST_CHARACTERS = 100_000
"""Of what a trainer says of its failure."""


class Job:
    """Works on one experiment, to its end.

    Args:
        settings: the site's.
        client: how the director is asked and told.
        work: where experiments are unpacked.
        name: the experiment's.
        submission: its files, which may run here.
        state: the folder for what outlives a restart, or None.
        device: the number of the CUDA device to work on, or None for the CPU.
        threads: cores that it may use.
    """

    def __init__(
        self,
        settings: EnvoySettings,
        client: SiteClient,
        work: WorkFolder,
        name: str,
        submission: Submission,
        state: Path | None,
        device: int | None,
        threads: int,
    ) -> None:
        self._settings, self._client, self._work = settings, client, work
        self.name, self._submission, self._state = name, submission, state
        self._device, self._threads = device, threads
        self._trainer: Trainer | None = None
        self._ended = False

    def run(self) -> str:
        """Run the experiment's trainer to its end; why it failed, or "" when it has not or nobody wants it any more."""
        watch = Watch(self._client, self.name, self.end_trainer)
        watch.start()
        try:
            failure = self._work_on(watch)
        except OSError as error:
            failure = f"site {self._settings.name} cannot start the experiment: {error.strerror}"
        watch.trainer_ended.set()
        if failure and watch.over:
            logger.info("experiment %s: is over for this site; its trainer was ended", self.name)
            watch.leave(GRACE_SECONDS)
            failure = ""
        else:
            watch.leave(GRACE_SECONDS)
            if not failure:
                how = "rests until a round asks this site again" if watch.rests else "done"
                logger.info("experiment %s: %s", self.name, how)
        if watch.over and not watch.rests and not watch.refused and self._state:
            shutil.rmtree(self._state, ignore_errors=True)
        return failure

    def end_trainer(self) -> None:
        """End the running trainer, if any, and start no other."""
        self._ended = True
        if self._trainer:
            self._trainer.end()

    def _work_on(self, watch: "Watch") -> str:
        folder = self._work.make()
        try:
            outlast(lambda: archives.write(self._submission.files, folder), "an experiment's code")
            for retries_left in reversed(range(1 + self._submission.description.policy.retries)):
                status = self._train(folder)
                if status >= 0 or watch.over or self._ended or not retries_left:
                    break
                logger.warning("experiment %s: %s; it is started once more", self.name, cause_of(status))
                with suppress(grpc.RpcError):
                    self._client.attempt_failed(self.name, cause_of(status))
            told = folder / FAILURE_FILE
            if not told.is_file():
                return cause_of(status)
            with told.open(encoding="utf-8", errors="replace") as file:
                return file.read(MOST_CHARACTERS)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _train(self, folder: Path) -> int:
        """Run a trainer process to its end; its exit status, negative for a signal."""
        settings = self._settings
        task = TrainerTask(
            folder=str(folder),
            experiment=self.name,
            site=settings.name,
            director_host=settings.director_host,
            director_port=settings.director_port,
            descriptor=settings.descriptor,
            descriptor_params=dict(settings.descriptor_params),
            certificates=settings.certificates.as_strings(),
            cuda_device=self._device,
            audit=str(settings.audit) if settings.audit else None,
            state=str(self._state) if self._state else None,
            failures=settings.failures,
        )
        self._trainer = Trainer(task.to_json(), _environment(self._threads))
        if self._ended:  # in the meantime
            self._trainer.end()
        return self._trainer.wait()


class Watch(threading.Thread):
    """Waits until the director no longer wants this site's work on an experiment, then ends the trainer.

    The trainer itself hears of it between two tasks; one that is busy is ended after `GRACE_SECONDS`. `awaiting`: the
    experiment has no trainer yet, since its code, with this digest, waits for the site's owner.
    """

    def __init__(
        self, client: SiteClient, experiment: str, end_trainer: Callable[[], None], awaiting: str | None = None
    ) -> None:
        super().__init__(name=f"watch {experiment}", daemon=True)
        self._client, self._experiment, self._end_trainer = client, experiment, end_trainer
        self._awaiting = awaiting
        self._question: grpc.Future | None = None
        self._left = threading.Event()
        self.over = self.refused = self.rests = False
        self.trainer_ended = threading.Event()

    def run(self) -> None:
        """Ask until there is an answer; a director that is away or leaving has not ended anything."""
        while True:
            self._question = self._client.end_of(self._experiment, self._awaiting)
            try:
                name_in(self._question)
                self.rests = rests(self._question)
                break
            except grpc.RpcError as error:
                self.refused = error.code().name in (*REFUSALS, "ALREADY_EXISTS")
                if self.refused:
                    break
            except OSError:  # the question cannot be written down, so it cannot be asked
                logger.exception("the audit log cannot be written")
            except grpc.FutureCancelledError:
                return
            if self._left.wait(RETRY_SECONDS):
                return
        self.over = True
        if not self.trainer_ended.wait(GRACE_SECONDS):
            self._end_trainer()

    def leave(self, seconds: float = 0.0) -> None:
        """Watch no longer: there is an answer within so many seconds, or the question is taken back."""
        self.trainer_ended.set()
        self.join(seconds)
        self._left.set()
        if self._question:
            self._question.cancel()


def cause_of(status: int) -> str:
    """Why a trainer process left with this exit status, for the one who reads about it; "" when its work was done."""
    if status == 0:
        return ""
    if status > 0:
        return f"the trainer process ended with status {status}; see this envoy's log"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else "of no name"
    ended = f"the trainer process was ended by signal {-status} ({name})"
    if -status == signal.SIGKILL:
        return f"{ended}: killed for memory? The site's kernel log tells (dmesg); a smaller batch or model needs less"
    return ended


def _environment(threads: int) -> Mapping[str, str]:
    """The trainer's environment: its share of the cores, and threads that sleep while they wait.

    Two trainers that each take all cores of one machine spin against each other: an epoch of 11 s took over 100 s.
    """
    budget = {name: str(threads) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    return os.environ | budget | {"OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false"}
