"""The site's side of an experiment: does the tasks of each round and talks to the aggregator.

Mends, with the engine's file and line:

- component/collaborator/collaborator.py:246 `do_task`: a task that raises does not say where. Here the error names
  site, round and task.
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
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, utils
from openfl.transport import AggregatorGRPCClient

from federation.audit import AuditLog
from federation.errors import FederationError
from federation.schedule import TASK_NAMES, TRAIN, finished_rounds
from federation.tensors import TensorStore

logger = logging.getLogger(__name__)

CONNECTION_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
"""What a call ends with when the director was killed, or was stopped, in the middle of it."""


class Collaborator(EngineCollaborator):  # type: ignore[misc]
    """The engine's collaborator with a plain tensor store and errors that say where they happened.

    `audit` is the site's log of what it sends; the trainer names it.
    """

    audit = AuditLog()

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
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
                super().do_task(task, round_number)
        except Exception as error:
            raise FederationError(f"site {self.collaborator_name}, {where}: {type(error).__name__}: {error}") from error
        logger.info("%s: took %.1f s", where, time.monotonic() - started)

    def send_task_results(self, tensor_dict: Any, round_number: int, task_name: str) -> None:
        """Send a task's tensors and metrics, and keep them as long as the round may be asked for again."""
        self._sent = {key: kept for key, kept in self._sent.items() if key[1] == round_number}
        self._sent[task_name, round_number] = tensor_dict
        runner = self.task_runner
        examples = runner.get_train_data_size() if task_name == TRAIN else runner.get_valid_data_size()
        self.audit.results(task_name, round_number, examples, tensor_dict)
        super().send_task_results(tensor_dict, round_number, task_name)


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
