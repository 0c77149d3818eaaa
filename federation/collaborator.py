"""The site's side of an experiment: does the tasks of each round and talks to the aggregator.

Mends, with the engine's file and line:

- component/collaborator/collaborator.py:246 `do_task`: a task that raises does not say where. Here the error names
  site, round and task.
- collaborator.py:159 `run`: a process that takes over from one that died has lost the optimizer's state
  (`federation.local_state`), and, if that one died between training and validation, the trained tensors, so that it
  would validate nothing at all. Here it trains that round again, on the same state, and goes on.
- transport/grpc/aggregator_client.py:137: a new channel is opened for every tensor. Here one channel lasts.
- aggregator_client.py:155 `_resend_data_on_reconnection`: an error of the aggregator is retried for ever, without a
  pause. Here only a connection that is down is retried, until `give_up_after`; anything else is raised.
"""

import logging
import time
from collections.abc import Callable
from typing import Any

import grpc
from openfl.component import Collaborator as EngineCollaborator
from openfl.component.assigner.tasks import TrainTask
from openfl.component.collaborator.collaborator import DevicePolicy, OptTreatment
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, utils
from openfl.transport import AggregatorGRPCClient

from federation.errors import FederationError
from federation.local_state import LocalState
from federation.schedule import TASK_NAMES, TRAIN, VALIDATE_LOCAL, finished_rounds
from federation.tensors import TensorStore

logger = logging.getLogger(__name__)

CONNECTION_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call ends with when the director was killed, or was stopped, in the middle of it."""


class Collaborator(EngineCollaborator):  # type: ignore[misc]
    """The engine's collaborator with a plain tensor store and errors that say where they happened.

    `local_state` is where it keeps the optimizer's state over a restart; None: nowhere.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.local_state: LocalState | None = None
        self._trained: int | None = None  # the engine round that this process has trained last
        self._muted = False
        self.tensor_db = TensorStore()
        self._sent: dict[tuple[str, int], Any] = {}

    def do_task(self, task: Any, round_number: int) -> None:
        """Run one task of one round.

        Raises:
            FederationError: from the task's own error, naming site, round and task.
        """
        where = f"round {finished_rounds(task.name, round_number)}, task {TASK_NAMES[task.name]}"
        logger.info("%s: starts", where)
        started = time.monotonic()
        try:
            if (task.name, round_number) in self._sent:  # the director has lost it: the same again, not another epoch
                super().send_task_results(self._sent[task.name, round_number], round_number, task.name)
            else:
                if task.name == VALIDATE_LOCAL and self._trained != round_number:
                    self._train_again(round_number)
                if task.name == TRAIN:
                    self._restore(round_number)
                super().do_task(task, round_number)
        except Exception as error:
            raise FederationError(f"site {self.collaborator_name}, {where}: {type(error).__name__}: {error}") from error
        logger.info("%s: took %.1f s", where, time.monotonic() - started)

    def send_task_results(self, tensor_dict: Any, round_number: int, task_name: str) -> None:
        """Send a task's tensors and metrics, and keep them as long as the round may be asked for again."""
        if task_name == TRAIN:
            self._trained = round_number
            self._save(round_number)
        if self._muted:
            return
        self._sent = {key: kept for key, kept in self._sent.items() if key[1] == round_number}
        self._sent[task_name, round_number] = tensor_dict
        super().send_task_results(tensor_dict, round_number, task_name)

    def _train_again(self, round_number: int) -> None:
        """Train a round whose result the director has, for the tensors that the process before this one had."""
        logger.info("round %d was trained by a process that died; training again", finished_rounds(TRAIN, round_number))
        contracts = self.task_runner.task_provider.task_contract
        function = next(name for name, contract in contracts.items() if contract["optimizer"])
        self._restore(round_number)
        self._muted = True
        try:
            super().do_task(TrainTask(name=TRAIN, function_name=function), round_number)
        finally:
            self._muted = False

    def _restore(self, round_number: int) -> None:
        """Give the optimizer the state that it had before this round, unless it is in memory."""
        if not self._keeps_state or (self._trained is not None and self._trained < round_number):
            return
        assert self.local_state is not None
        path = self.local_state.before(round_number)
        if path is None and round_number > 0:
            logger.warning("no state of an earlier round on this site: training goes on with a fresh optimizer")
        if path is None:
            self.task_runner.reset_opt_vars()
            return
        runner = self.task_runner
        runner.framework_adapter.load_local_state(runner.model, runner.optimizer, path, self._device)
        logger.info("the optimizer goes on from where %s left it", path.name)

    def _save(self, round_number: int) -> None:
        """Keep the optimizer's state before the director has the round: it is needed whatever happens next."""
        if not self._keeps_state:
            return
        assert self.local_state is not None
        runner = self.task_runner
        try:
            self.local_state.save(
                round_number,
                lambda path: runner.framework_adapter.save_local_state(runner.model, runner.optimizer, path),
            )
        except OSError as error:
            logger.warning("the optimizer's state cannot be kept (%s): a restart would lose it", error)

    @property
    def _keeps_state(self) -> bool:
        continues = self.opt_treatment is OptTreatment.CONTINUE_LOCAL
        return (
            continues
            and self.local_state is not None
            and hasattr(self.task_runner.framework_adapter, "save_local_state")
        )

    @property
    def _device(self) -> str:
        """Where the engine runs the tasks (collaborator.py:289)."""
        preferred = self.device_assignment_policy is DevicePolicy.CUDA_PREFERRED
        return f"cuda:{self.cuda_devices[0]}" if preferred and self.cuda_devices else "cpu"


class AggregatorClient(AggregatorGRPCClient):  # type: ignore[misc]
    """The engine's client on one lasting channel.

    A connection that is down is tried again every second, at most `give_up_after` seconds.
    """

    give_up_after = 600.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stub = aggregator_pb2_grpc.AggregatorStub(self.channel)

    def get_tasks(self, collaborator_name: str) -> tuple[Any, int, int, bool]:
        """Tasks, round, seconds to sleep, quit."""
        self._set_header(collaborator_name)
        reply = self._call(lambda: self.stub.GetTasks(aggregator_pb2.GetTasksRequest(header=self.header)))
        return reply.tasks, reply.round_number, reply.sleep_time, reply.quit

    def get_aggregated_tensor(
        self,
        collaborator_name: str,
        tensor_name: str,
        round_number: int,
        report: bool,
        tags: Any,
        require_lossless: bool,
    ) -> Any:
        """One tensor of the aggregated model as a protobuf message."""
        self._set_header(collaborator_name)
        request = aggregator_pb2.GetAggregatedTensorRequest(
            header=self.header,
            tensor_name=tensor_name,
            round_number=round_number,
            report=report,
            tags=tags,
            require_lossless=require_lossless,
        )
        return self._call(lambda: self.stub.GetAggregatedTensor(request)).tensor

    def send_local_task_results(
        self, collaborator_name: str, round_number: int, task_name: str, data_size: int, named_tensors: Any
    ) -> None:
        """Send the tensors and metrics of one task."""
        self._set_header(collaborator_name)
        results = aggregator_pb2.TaskResults(
            header=self.header,
            round_number=round_number,
            task_name=task_name,
            data_size=data_size,
            tensors=named_tensors,
        )
        self._call(lambda: self.stub.SendLocalTaskResults(utils.proto_to_datastream(results, self.logger)))

    def _call(self, send: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + self.give_up_after
        told = False
        while True:
            try:
                return send()
            except grpc.RpcError as error:
                if error.code() not in CONNECTION_LOST or time.monotonic() > deadline:
                    raise FederationError(f"the director at {self.uri} answered: {error.details()}") from error
                if not told:
                    logger.warning("the director at %s is out of reach (%s); trying again", self.uri, error.details())
                told = True
                time.sleep(1.0)
