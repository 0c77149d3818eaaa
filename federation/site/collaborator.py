"""The site's side of an experiment: does the tasks of each round and tells the director what came of them.

Takes the place of the engine's collaborator and task runner, whose messages it speaks. Mends, with the engine's file
and line:

- component/collaborator/collaborator.py:298: a task that raises does not say where. Here the error names
  site, round and task.
- collaborator.py:428: a call for each tensor of the model, for each task. Here the model of a round comes
  once, as a stream (`federation.wire.transfer`), stays on disk, and is loaded once, also for two tasks.
- A process that takes over from one that died has lost the optimizer's state (`federation.site.local_state`), and, if
  that one died between training and validation, the trained tensors, so that it would validate nothing at all. Here
  it trains that round again, on the same state, and goes on.
"""

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from federation.errors import FederationError
from federation.logs import log_fields
from federation.schedule import TASK_NAMES, TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, finished_rounds
from federation.site.audit import AuditLog
from federation.site.client import RoundClient
from federation.site.disk import outlast
from federation.site.failure import TaskFailed
from federation.site.local_state import LocalState
from federation.site.worker import Worker
from federation.wire.models import ModelParts, Packed
from federation.wire.transfer import RoundOver, SiteTransfers, UpdateLost
from federation.wire.updates import Encoder, norm_of_change

logger = logging.getLogger(__name__)

SENDINGS = 5
"""How often the same is sent to a director that loses it."""

TASKS = (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL)


@dataclass(frozen=True)
class Result:
    """What a task has made, to be sent, and sent again when the director has lost it.

    To what training has measured itself the site adds, unless a metric has that name already: `seconds`, from the
    model in hand to the trained one; `bytes_down` and `bytes_up`, of the files with which the round's model came and
    the trained one goes; `update_norm`, the Euclidean length of what was changed, over all that travels.
    """

    examples: int
    metrics: dict[str, float]
    update: Packed | None = None


class Collaborator:
    """Does a site's tasks, one round after the other.

    Args:
        site: its name.
        worker: the model, and what the tasks do with it.
        client, transfers: how questions and metrics, and how models travel.
        encoder: how what was trained is packed.
        local_state: where the optimizer's state is kept over a restart; None where it begins anew in each round.
        keep_optimizer: whether the optimizer's state is kept from round to round.
        audit: the site's log of what it sends.
    """

    def __init__(
        self,
        site: str,
        worker: Worker,
        client: RoundClient,
        transfers: SiteTransfers,
        encoder: Encoder,
        *,
        keep_optimizer: bool = True,
        local_state: LocalState | None = None,
        audit: AuditLog | None = None,
    ) -> None:
        self.site = site
        self._worker, self._client, self._transfers, self._encoder = worker, client, transfers, encoder
        self._keep_optimizer = keep_optimizer
        self._local_state = local_state if keep_optimizer and worker.has_state else None
        self._audit = audit or AuditLog()
        self._round = -1
        self._sent: dict[str, Result] = {}
        self._trained: dict[str, np.ndarray] | None = None  # of this round, as long as the model holds it
        self._last_trained = -1  # the engine's number of the round whose training the state in memory follows
        self._warned = False

    def run(self) -> None:
        """Work until the director says that the experiment is over.

        Raises:
            TaskFailed: from a task's own error, naming site, round and task.
        FederationError: the director refuses, or is gone.
        """
        while True:
            tasks, engine_round, pause, over = self._client.get_tasks()
            if over:
                return
            if not tasks:
                time.sleep(pause)
                continue
            self.do(tasks, engine_round)

    def do(self, tasks: Iterable[str], engine_round: int) -> None:
        """Do the tasks of one round.

        Raises:
            TaskFailed: from a task's own error, naming site, round and task.
        """
        if engine_round != self._round:
            self._round, self._sent, self._trained = engine_round, {}, None
        # What was done already goes first: another task may load another model over what was trained.
        for task in sorted(tasks, key=lambda name: name not in self._sent):
            done, name = finished_rounds(task, engine_round), TASK_NAMES.get(task, task)
            with log_fields(round=done, task=name):
                self._do(task, f"round {done}, task {name}")

    def _do(self, task: str, where: str) -> None:
        logger.info("%s: starts", where)
        started = time.monotonic()
        try:
            if task not in self._sent:  # otherwise the director has lost it: the same again, not another epoch
                self._sent[task] = self._result(task)
            self._send(task, self._sent[task])
        except RoundOver as over:
            logger.warning("%s: %s", where, over)
        except Exception as error:
            raise TaskFailed(f"site {self.site}, {where}", error) from error
        logger.info("%s: took %.1f s", where, time.monotonic() - started)

    def _result(self, task: str) -> Result:
        """Do a task.

        Raises:
            RoundOver: the director has closed the round.
        """
        for_training, for_validation = self._worker.examples
        if task == TRAIN:
            started = time.monotonic()
            trained, metrics = self._train()
            seconds = time.monotonic() - started
            update = self._encoder.encode(trained, self._model())
            cost = {
                "seconds": seconds,
                "bytes_down": float(self._transfers.received_bytes),
                "bytes_up": float(update.size),
                "update_norm": norm_of_change(trained, self._model()),
            }
            return Result(for_training, cost | metrics, update)
        if task == VALIDATE_AGGREGATED:
            model = self._model()
            if not self._worker.holds(model):
                self._forget_trained()  # it lies in the model, which is loaded anew
            if self._local_state:  # what is the site's own is measured, too
                self._restore()
            return Result(for_validation, self._worker.validate(model, self._round))
        if task == VALIDATE_LOCAL:
            if self._trained is None:
                logger.info("the process that trained this round has died, or gone on; training again")
                self._train()
            assert self._trained is not None
            return Result(for_validation, self._worker.validate(self._trained, self._round))
        raise FederationError(f"the director asks for a task {task[:60]!r}; this site knows {', '.join(TASKS)}")

    def _model(self) -> ModelParts:
        """The model that this round starts with."""
        model: ModelParts = outlast(lambda: self._transfers.model(self._round), "the round's model")
        return model

    def _train(self) -> tuple[dict[str, np.ndarray], dict[str, float]]:
        """Train this round's model on the optimizer's state from before this round, and keep the state after it."""
        model = self._model()
        self._restore()
        self._trained, metrics = self._worker.train(model, self._round)
        self._last_trained = self._round
        self._save()
        return self._trained, metrics

    def _forget_trained(self) -> None:
        self._trained = None
        self._sent.pop(TRAIN, None)

    def _send(self, task: str, result: Result) -> None:
        """Send what a task has made; what was trained once more where the director was started again in between.

        Raises:
            RoundOver: the director has closed the round.
            FederationError: it refuses, is gone, or loses what was trained each time.
        """
        for left in reversed(range(SENDINGS)):
            self._audit.results(task, self._round, result.examples, result.metrics, result.update)
            if result.update:
                self._transfers.send(self._round, result.update)
            try:
                self._client.send_results(task, self._round, result.examples, result.metrics)
                return
            except UpdateLost as lost:
                if not left:
                    raise
                logger.warning("the director has lost what was sent (%s); sending it again", lost)

    def _restore(self) -> None:
        """Give the optimizer the state that it had before this round, unless it is in memory."""
        if not self._keep_optimizer:
            self._worker.forget_state()
            return
        if self._local_state is None or -1 < self._last_trained < self._round:
            return
        path = self._local_state.before(self._round)
        if path is None and self._round > 0 and not self._warned:
            self._warned = True
            logger.warning("no state of an earlier round on this site: training begins with a fresh optimizer")
        if path is None:
            self._worker.forget_state()
            self._last_trained = -1
            return
        self._worker.load_state(path)
        self._last_trained = int(path.stem)
        logger.info("the optimizer goes on from where %s left it", path.name)

    def _save(self) -> None:
        """Keep the optimizer's state before the director has the round: it is needed whatever happens next."""
        if self._local_state is None:
            return
        try:
            self._local_state.save(self._round, self._worker.save_state)
            self._local_state.keep_own(self._round + 1, self._worker.own_tensors(), self._transfers.best)
        except OSError as error:
            logger.warning("the optimizer's state cannot be kept (%s): a restart would lose it", error)
