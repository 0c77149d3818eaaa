"""The site's side of an experiment: does the tasks of each round and talks to the aggregator.

Mends, with the engine's file and line:

- component/collaborator/collaborator.py:246 `do_task`: a task that raises does not say where. Here the error names
  site, round and task.
- transport/grpc/aggregator_client.py:137: a new channel is opened for every tensor. Here one channel lasts.
- aggregator_client.py:155 `_resend_data_on_reconnection`: an error of the aggregator is retried for ever, without a
  pause. Here only a connection that is down is retried, until `give_up_after`; anything else is raised.
"""

import logging
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
from openfl.component import Collaborator as EngineCollaborator
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, utils
from openfl.transport import AggregatorGRPCClient

from federation.channels import CONNECTION_LOST, connect
from federation.errors import FederationError
from federation.schedule import TASK_NAMES, finished_rounds
from federation.settings import Certificates
from federation.tensors import TensorStore

logger = logging.getLogger(__name__)

LONG_CALL = 60.0
"""Seconds; a call that has lasted longer was connected: a large model on a slow link is no director out of reach."""


class Collaborator(EngineCollaborator):  # type: ignore[misc]
    """The engine's collaborator with a plain tensor store and errors that say where they happened."""

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
        super().send_task_results(tensor_dict, round_number, task_name)


class AggregatorClient(AggregatorGRPCClient):  # type: ignore[misc]
    """The engine's client on one lasting channel.

    A connection that is down is tried again every second, at most `give_up_after` seconds after it was lost.
    """

    give_up_after = 600.0

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.stub = aggregator_pb2_grpc.AggregatorStub(self.channel)

    def create_insecure_channel(self, uri: str) -> grpc.Channel:
        """A channel with this package's options."""
        return connect(uri, Certificates())

    def create_tls_channel(
        self, uri: str, root_certificate: str, disable_client_auth: bool, certificate: str, private_key: str
    ) -> grpc.Channel:
        """A channel with this package's options; the site always shows its certificate."""
        return connect(uri, Certificates(Path(root_certificate), Path(private_key), Path(certificate)))

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
        lost = math.inf
        told = False
        while True:
            started = time.monotonic()
            try:
                return send()
            except grpc.RpcError as error:
                now = time.monotonic()
                lost = now if now - started > LONG_CALL else min(lost, now)
                if error.code() not in CONNECTION_LOST or now - lost > self.give_up_after:
                    raise FederationError(f"the director at {self.uri} answered: {error.details()}") from error
                if not told:
                    logger.warning("the director at %s is out of reach (%s); trying again", self.uri, error.details())
                told = True
                time.sleep(1.0)
