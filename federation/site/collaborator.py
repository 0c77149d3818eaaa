"""The site's side of an experiment: does the tasks of each round and talks to the aggregator.

Mends, with the engine's file and line:

- component/collaborator/collaborator.py:298: a task that raises does not say where. Here the error names
  site, round and task.
- collaborator.py:428: a call for each tensor of the model, for each task. Here the model of a round comes
  once, as a stream (`federation.wire.transfer`), stays on disk, and is loaded once, also for two tasks.
- A process that takes over from one that died has lost the optimizer's state (`federation.site.local_state`), and, if
  that one died between training and validation, the trained tensors, so that it would validate nothing at all. Here
  it trains that round again, on the same state, and goes on.
- transport/grpc/aggregator_client.py:140: a new channel is opened for every tensor. Here one channel lasts.
- aggregator_client.py:161: an error of the aggregator is retried for ever, without a
  pause. Here only a connection that is down is retried, until `GIVE_UP_AFTER`; anything else is raised.
"""

import logging
import time
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from openfl.component import Collaborator as EngineCollaborator
from openfl.component.assigner.tasks import TrainTask
from openfl.component.collaborator.collaborator import DevicePolicy, OptTreatment
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, utils
from openfl.transport import AggregatorGRPCClient

from federation.errors import FederationError
from federation.logs import log_fields
from federation.schedule import TASK_NAMES, TRAIN, VALIDATE_LOCAL, finished_rounds
from federation.settings import Certificates
from federation.site.audit import AuditLog
from federation.site.local_state import LocalState
from federation.wire.channels import connect
from federation.wire.models import Packed
from federation.wire.tensors import TensorStore
from federation.wire.transfer import RoundOver, SiteTransfers, keep_trying
from federation.wire.updates import Encoder

logger = logging.getLogger(__name__)


class Collaborator(EngineCollaborator):  # type: ignore[misc]
    """The engine's collaborator with a plain tensor store and errors that say where they happened.

    `audit` is the site's log of what it sends, `local_state` is where it keeps the optimizer's state over a restart
    (None: nowhere); the trainer names both.
    """

    audit = AuditLog()
    local_state: LocalState | None = None

    def __init__(self, *, update_format: str = "float32", **settings: Any) -> None:
        super().__init__(**settings)
        self.tensor_db = TensorStore()
        self.transfers: SiteTransfers = self.client.transfers(self.collaborator_name)
        self._encoder = Encoder(update_format)
        self._round = -1
        self._sent: dict[str, tuple[Packed | None, dict[Any, np.ndarray]]] = {}
        self._trained: dict[str, np.ndarray] = {}
        self._trained_round = -1  # the engine's number of the round that this process has trained last
        self._muted = False
        runner = self.task_runner
        self._adapter = runner.framework_adapter = _LoadsOnce(runner.framework_adapter)
        for group, tensors in runner.required_tensorkeys_for_function.items():
            runner.required_tensorkeys_for_function[group] = dict.fromkeys(tensors)  # names; it kept the tensors

    def do_task(self, task: Any, round_number: int) -> None:
        """Run one task of one round.

        Raises:
            FederationError: from the task's own error, naming site, round and task.
        """
        done, name = finished_rounds(task.name, round_number), TASK_NAMES[task.name]
        with log_fields(round=done, task=name):
            self._do_task(task, round_number, f"round {done}, task {name}")

    def _do_task(self, task: Any, round_number: int, where: str) -> None:
        logger.info("%s: starts", where)
        started = time.monotonic()
        if round_number != self._round:
            self._round, self._sent, self._trained, self._adapter.loaded = round_number, {}, {}, None
        try:
            if task.name in self._sent:  # the director has lost it: the same again, not another epoch
                self._send(task.name, round_number)
            else:
                if task.name == VALIDATE_LOCAL and self._trained_round != round_number:
                    self._train_again(round_number)
                if task.name == TRAIN:
                    self._restore(round_number)
                super().do_task(task, round_number)
        except RoundOver as over:
            logger.warning("%s: %s", where, over)
        except Exception as error:
            raise FederationError(f"site {self.collaborator_name}, {where}: {type(error).__name__}: {error}") from error
        logger.info("%s: took %.1f s", where, time.monotonic() - started)

    def get_numpy_dict_for_tensorkeys(self, tensor_keys: Any) -> Any:
        """The model of the round, or what this site has trained in it."""
        key = tensor_keys[0]
        return self.transfers.model(key.round_number) if "model" in key.tags else self._trained

    def send_task_results(self, tensor_dict: Any, round_number: int, task_name: str) -> None:
        """Send a task's model and metrics, and keep them as long as the round may be asked for again."""
        self.tensor_db = TensorStore()  # the engine has put them there, too
        metrics = {key: value for key, value in tensor_dict.items() if "metric" in key.tags}
        packed = None
        trained = {key.tensor_name: value for key, value in tensor_dict.items() if key not in metrics}
        if trained:
            self._trained = self._adapter.loaded = trained
            self._trained_round = round_number
            self._save(round_number)
            if self._muted:
                return
            packed = self._encoder.encode(trained, self.transfers.model(round_number))
        self._sent[task_name] = packed, metrics
        self._send(task_name, round_number)

    def _send(self, task_name: str, round_number: int) -> None:
        packed, metrics = self._sent[task_name]
        runner = self.task_runner
        examples = runner.get_train_data_size() if task_name == TRAIN else runner.get_valid_data_size()
        self.audit.results(task_name, round_number, examples, metrics, packed)
        if packed:
            self.transfers.send(round_number, packed)
        super().send_task_results(metrics, round_number, task_name)

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
        if not self._keeps_state or (-1 < self._trained_round < round_number):
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
        """Where the engine runs the tasks."""
        preferred = self.device_assignment_policy is DevicePolicy.CUDA_PREFERRED
        return f"cuda:{self.cuda_devices[0]}" if preferred and self.cuda_devices else "cpu"


class _LoadsOnce:
    """A framework adapter that does not load what the model holds already."""

    def __init__(self, adapter: Any) -> None:
        self._adapter = adapter
        self.loaded: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapter, name)

    def set_tensor_dict(self, model: Any, tensors: Any, *optimizer: Any, **settings: Any) -> None:
        """Put tensors into the model."""
        if tensors is not self.loaded:
            self._adapter.set_tensor_dict(model, tensors, *optimizer, **settings)
        self.loaded = tensors


class AggregatorClient(AggregatorGRPCClient):  # type: ignore[misc]
    """The engine's client on one lasting channel.

    A connection that is down is tried again every second, at most `federation.wire.transfer.GIVE_UP_AFTER` seconds.
    """

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(**settings)
        self._folder = folder
        self.stub = aggregator_pb2_grpc.AggregatorStub(self.channel)

    def transfers(self, site: str) -> SiteTransfers:
        """How this site's models travel; they lie in the experiment's folder."""
        return SiteTransfers(self.channel, self.federation_uuid, site, self._folder)

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
        reply = keep_trying(lambda: self.stub.GetTasks(aggregator_pb2.GetTasksRequest(header=self.header)))
        return reply.tasks, reply.round_number, reply.sleep_time, reply.quit

    def send_local_task_results(
        self, collaborator_name: str, round_number: int, task_name: str, data_size: int, named_tensors: Any
    ) -> None:
        """Send the metrics of one task."""
        self._set_header(collaborator_name)
        results = aggregator_pb2.TaskResults(
            header=self.header,
            round_number=round_number,
            task_name=task_name,
            data_size=data_size,
            tensors=named_tensors,
        )
        keep_trying(lambda: self.stub.SendLocalTaskResults(utils.proto_to_datastream(results, self.logger)))
