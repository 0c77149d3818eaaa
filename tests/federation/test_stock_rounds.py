"""The engine's faults in aggregator and collaborator, which ours has not got. docs/engine.md lists them all."""

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from concurrent import futures
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from federation.director.aggregator import RoundAggregator
from openfl.component import Aggregator as EngineAggregator
from openfl.component import Collaborator as EngineCollaborator
from openfl.component import CutoffTimeBasedStragglerHandling as Cutoff
from openfl.databases import TensorDB
from openfl.federated.task.task_runner import CoreTaskRunner
from openfl.interface.interactive_api.experiment import FLExperiment
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc
from openfl.transport import AggregatorGRPCClient, AggregatorGRPCServer
from openfl.transport.grpc.grpc_channel_options import channel_options
from openfl.utilities import TensorKey
from rounds import SIZES, TASKS, build, finish_round, model, send, soon
from stock import fault
from toy import experiment as toy
from toy_shard import ToyShard

from federation.director.router import AggregatorRouter
from federation.errors import FederationError
from federation.experiment import build as experiment_of
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, RoundSchedule
from federation.site.client import RoundClient
from federation.site.collaborator import Collaborator, Result
from federation.site.worker import Worker
from federation.wire.models import save
from federation.wire.tensors import TensorStore
from federation.wire.transfer import SERVICE, ModelServer, RoundOver, SiteTransfers
from federation.wire.updates import Encoder


def begin(kind: type, folder: Path, **settings: Any) -> Any:
    """An aggregator of that kind, for two sites, "small" and "large"."""
    return build(kind, folder, **{"model": {"w": np.zeros(2, np.float32)}, **settings})


@fault("component/aggregator/aggregator.py:938", stock=EngineAggregator, ours=RoundAggregator)
def test_best_is_told_by_one_metric(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path)
    finish_round(rounds, 0, {"w": np.ones(2)}, accuracy=0.9, loss=5.0)
    finish_round(rounds, 1, None, accuracy=0.1, loss=6.0)
    np.testing.assert_array_equal(model(rounds, "best")["w"], 0.0)  # the model that scored 0.9


@fault("component/aggregator/aggregator.py:646", stock=EngineAggregator, ours=RoundAggregator)
def test_values_that_are_not_numbers_are_not_averaged(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path)
    with suppress(ValueError):
        send(rounds, "small", TRAIN, 0, {"w": np.array([1.0, np.nan])}, "trained")
    finish_round(rounds, 0, {"w": np.ones(2)})
    np.testing.assert_array_equal(model(rounds, "last")["w"], 1.0)


@fault("component/aggregator/aggregator.py:805", stock=EngineAggregator, ours=RoundAggregator)
def test_the_next_model_is_the_average(subject: Any, tmp_path: Path) -> None:
    trained = np.array([1e-3, 1.0], np.float32)
    rounds = begin(subject, tmp_path, model={"w": np.array([1e4, 1.0], np.float32)})
    finish_round(rounds, 0, {"w": trained})
    np.testing.assert_allclose(model(rounds, "last")["w"], trained, rtol=1e-6)


def stock_schedule(rounds: int) -> Callable[..., Any]:
    keeper = SimpleNamespace(get_registered_tasks=lambda: TASKS)
    return FLExperiment.define_task_assigner(SimpleNamespace(), keeper, rounds)  # type: ignore[no-any-return]


@fault(
    "interface/interactive_api/experiment.py:406",
    stock=lambda: [stock_schedule(2)(["site"], number)["site"] for number in range(2)],
    ours=lambda: [RoundSchedule(2, TASKS)(["site"], number)["site"] for number in range(3)],
)
def test_the_last_model_is_validated(subject: Any) -> None:
    schedule = [[task.name for task in tasks] for tasks in subject()]
    last_training = max(number for number, tasks in enumerate(schedule) if TRAIN in tasks)
    # A round's validation of the aggregated model measures the one that the round began with.
    assert any(VALIDATE_AGGREGATED in tasks for tasks in schedule[last_training + 1 :])


class Name(str):
    """A tensor's name that counts how often it is compared."""

    compared = 0
    __hash__ = str.__hash__

    def __eq__(self, other: object) -> bool:
        Name.compared += 1
        return str.__eq__(self, other)  # type: ignore[no-any-return]


@fault("databases/tensor_db.py:143", stock=TensorDB, ours=TensorStore)
def test_finding_a_tensor_does_not_read_all_of_them(subject: Any) -> None:
    tensors = subject()
    key = TensorKey("w0", "aggregator", 0, False, ("model",))
    tensors.cache_tensor({key._replace(tensor_name=f"w{number}"): np.zeros(1) for number in range(100)})
    Name.compared = 0
    assert tensors.get_tensor_from_cache(key._replace(tensor_name=Name("w99"))) is not None
    assert Name.compared < 10


@fault("component/aggregator/aggregator.py:314", stock=EngineAggregator, ours=RoundAggregator)
def test_a_site_that_waits_is_told_at_once(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path)
    answers: list[Any] = []
    finish_round_of = partial(finish_round, rounds, 0, {"w": np.ones(2)})
    finish_round_of(sites=["small"])
    waiting = threading.Thread(target=lambda: answers.append(rounds.get_tasks("small")))
    waiting.start()
    time.sleep(0.1)
    finish_round_of(sites=["large"])
    waiting.join(5)
    _, round_number, seconds_to_sleep, _ = answers[0]
    assert (round_number, seconds_to_sleep) == (1, 0)


@fault(
    "component/aggregator/aggregator.py:487",
    stock=(EngineAggregator, lambda rounds: rounds.get_aggregated_tensor("small", "w", 7, False, ("model",), True)),
    ours=(RoundAggregator, lambda rounds: rounds.model_for(7, -1, 0)),
)
def test_a_model_that_does_not_exist_is_not_waited_for(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, ask = subject
    rounds = begin(kind, tmp_path)

    def no_sleep(seconds: float) -> None:
        raise AssertionError(f"sleeps {seconds} s")

    monkeypatch.setattr(time, "sleep", no_sleep)
    with pytest.raises((ValueError, RoundOver)):
        ask(rounds)


def traced(work: Callable[[], Any]) -> tuple[int, int]:
    """Bytes of memory that some work has left behind, and that it had at most."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()


@fault("component/aggregator/aggregator.py:775", stock=EngineAggregator, ours=RoundAggregator)
def test_what_sites_send_is_not_kept_in_memory(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path, model={"w": np.zeros(2**20, np.float32)})
    trained = np.ones(2**20, np.float32)
    left, _ = traced(lambda: [send(rounds, site, TRAIN, 0, {"w": trained}, "trained") for site in SIZES])
    assert left < trained.nbytes / 2


@fault(
    "component/aggregator/aggregator.py:678",
    stock=(EngineAggregator, {}),
    ours=(RoundAggregator, {"minimum_sites": 2}),
)
def test_when_time_is_up_and_too_few_are_done_somebody_is_told(subject: Any, tmp_path: Path) -> None:
    kind, settings = subject
    policy = Cutoff(straggler_cutoff_time=0.1, minimum_reporting=2)
    rounds = begin(kind, tmp_path, straggler_handling_policy=policy, **settings)
    told: list[str] = []
    rounds.on_failure = told.append
    rounds.get_tasks("small")
    finish_round(rounds, 0, {"w": np.ones(2)}, sites=["small"])
    assert soon(1, lambda: told)
    assert "missing: large" in told[0]


@fault(
    "component/aggregator/aggregator.py:298",
    stock=(EngineAggregator, EngineAggregator.all_quit_jobs_sent),
    ours=(RoundAggregator, lambda rounds: rounds.finished),
)
def test_an_experiment_ends_without_a_site_that_is_gone(subject: Any, tmp_path: Path) -> None:
    kind, is_over = subject
    rounds = begin(kind, tmp_path, straggler_handling_policy=Cutoff(straggler_cutoff_time=0.1))
    for number, trained in enumerate(({"w": np.ones(2)}, None)):
        rounds.get_tasks("small")
        finish_round(rounds, number, trained, sites=["small"])
        assert soon(20, lambda done=number: rounds.round_number > done)
    assert rounds.get_tasks("small")[3]  # told to quit
    assert is_over(rounds)


# Between aggregator and collaborator


class Calls(grpc.ServerInterceptor):  # type: ignore[misc]
    """Counts calls by method."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.made.append(details.method.rpartition("/")[2])
        return continuation(details)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[int, Calls]]]:
    """Put an aggregator on a port of this machine; returns the port, and what is called."""
    servers = []

    def start(rounds: Any) -> tuple[int, Calls]:
        calls = Calls()
        server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[calls], options=channel_options)
        router = AggregatorGRPCServer(aggregator=rounds, agg_port=0, tls=False)
        if isinstance(rounds, RoundAggregator):
            router = AggregatorRouter(lambda _: rounds, tls=False)
            models = ModelServer(lambda _: rounds, lambda *_: None, lambda _: None)
            models.add_to(server)
        aggregator_pb2_grpc.add_AggregatorServicer_to_server(router, server)
        servers.append(server)
        port = server.add_insecure_port("localhost:0")
        server.start()
        return port, calls

    yield start
    for server in servers:
        server.stop(None)


def stock_client(port: int, _: Path) -> AggregatorGRPCClient:
    return AggregatorGRPCClient(
        agg_addr="localhost", agg_port=port, disable_client_auth=True, root_certificate=None, certificate=None,
        private_key=None, tls=False, aggregator_uuid="aggregator", federation_uuid="federation",
    )  # fmt: skip


def stock_site(port: int, folder: Path, **faults: float) -> EngineCollaborator:
    """The engine's collaborator of the site "small", with the toy's tasks."""
    data = toy.Numbers(**faults)
    data.shard_descriptor = ToyShard(1.0)
    runner = CoreTaskRunner()
    runner.set_data_loader(data)
    runner.set_model_provider(toy.VectorModel())
    runner.set_task_provider(toy.TASKS)
    runner.set_framework_adapter(toy.VectorAdapter())
    made = EngineCollaborator(
        collaborator_name="small", aggregator_uuid="aggregator", federation_uuid="federation",
        client=stock_client(port, folder), task_runner=runner, task_config={},
    )  # fmt: skip
    made.set_available_devices()
    return made


def our_client(port: int, _: Path) -> RoundClient:
    return RoundClient(grpc.insecure_channel(f"localhost:{port}", channel_options), "federation", "small")


def our_site(port: int, folder: Path, **faults: float) -> Collaborator:
    """Ours, with the same tasks."""
    experiment = experiment_of("toy.experiment:experiment", {"faults": faults})
    experiment.data.shard_descriptor = ToyShard(1.0)
    channel = grpc.insecure_channel(f"localhost:{port}", channel_options)
    transfers = SiteTransfers(channel, "federation", "small", folder / "site")
    (folder / "site").mkdir(exist_ok=True)
    return Collaborator("small", Worker(experiment), RoundClient(channel, "federation", "small"), transfers, Encoder())


def stock_does(site: EngineCollaborator, task: str, round_number: int) -> None:
    site.do_task(TASKS[task], round_number)


def our_does(site: Collaborator, task: str, round_number: int) -> None:
    site.do([task], round_number)


SIDES = {
    "stock": (EngineAggregator, stock_site, stock_does),
    "ours": (RoundAggregator, our_site, our_does),
}
VECTOR = {"vector": np.zeros(4, np.float32)}


@fault("component/collaborator/collaborator.py:298", **SIDES)
def test_a_task_that_raises_tells_where(subject: Any, serve: Any, tmp_path: Path) -> None:
    rounds, site, does = subject
    port, _ = serve(begin(rounds, tmp_path, model=VECTOR))
    with pytest.raises(Exception, match="the toy was told to fail") as error:
        does(site(port, tmp_path, raise_on=1.0), TRAIN, 0)
    assert "site small, round 1, task train" in str(error.value)


def stock_received(port: int, folder: Path, names: Iterable[str]) -> Any:
    keys = [TensorKey(name, "aggregator", 0, False, ("model",)) for name in names]
    return stock_site(port, folder).get_numpy_dict_for_tensorkeys(keys)


def our_received(port: int, folder: Path, _: Iterable[str]) -> Any:
    return our_site(port, folder)._transfers.model(0)


@fault(
    "component/collaborator/collaborator.py:428",
    stock=(EngineAggregator, stock_received),
    ours=(RoundAggregator, our_received),
)
def test_a_model_comes_by_one_call(subject: Any, serve: Any, tmp_path: Path) -> None:
    rounds, received_by = subject
    initial = {f"w{number}": np.full(2, number, np.float32) for number in range(3)}
    port, calls = serve(begin(rounds, tmp_path, model=initial))
    received = received_by(port, tmp_path, initial)
    np.testing.assert_array_equal([received[name] for name in initial], list(initial.values()))
    assert len(calls.made) == 1


class Sink:
    """Takes whatever a site sends, and keeps nothing."""

    def __init__(self) -> None:
        header = {"sender": "aggregator", "receiver": "small", "federation_uuid": "federation"}
        thanks = aggregator_pb2.SendLocalTaskResultsResponse(header=header).SerializeToString()
        self.bytes = 0
        self.server = grpc.server(futures.ThreadPoolExecutor(4), options=channel_options)
        for service, method, answer in (
            ("openfl.aggregator.Aggregator", "SendLocalTaskResults", thanks),
            (SERVICE, "Update", b""),
        ):
            handler = grpc.stream_unary_rpc_method_handler(partial(self._take, answer))
            self.server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        received = grpc.unary_unary_rpc_method_handler(lambda *_: b"0")
        self.server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(SERVICE, {"Received": received}),)
        )  # fmt: skip
        self.port = self.server.add_insecure_port("localhost:0")

    def _take(self, answer: bytes, messages: Iterator[bytes], _: Any) -> bytes:
        self.bytes += sum(map(len, messages))
        return answer


def stock_sends(port: int, folder: Path, trained: np.ndarray) -> Callable[[], None]:
    sender = stock_site(port, folder)
    return lambda: sender.send_task_results({TensorKey("vector", "small", 0, False, ("trained",)): trained}, 0, TRAIN)


def our_sends(port: int, folder: Path, trained: np.ndarray) -> Callable[[], None]:
    sender = our_site(port, folder)
    received = save(folder / "round.safetensors", {"vector": np.zeros_like(trained)})

    def send() -> None:
        sender._send(TRAIN, Result(1, {}, Encoder().encode({"vector": trained}, received)))

    return send


@fault("transport/grpc/aggregator_client.py:485", stock=stock_sends, ours=our_sends)
def test_sending_a_model_does_not_copy_it(subject: Any, tmp_path: Path) -> None:
    sink = Sink()
    sink.server.start()
    trained = np.ones(2**22, np.float32)
    _, peak = traced(subject(sink.port, tmp_path, trained))
    sink.server.stop(None)
    assert sink.bytes > trained.nbytes
    assert peak < trained.nbytes


def stock_channels(port: int, folder: Path) -> Iterator[Any]:
    client = stock_client(port, folder)
    for _ in range(2):
        client.get_tasks("small")
        yield client.channel
    client.channel.close()


def our_channels(port: int, folder: Path) -> Iterator[Any]:
    client = our_client(port, folder)
    for _ in range(2):
        client.get_tasks()
        yield client._stub.GetTasks._channel


@fault("transport/grpc/aggregator_client.py:140", stock=stock_channels, ours=our_channels)
def test_one_connection_lasts(subject: Any, serve: Any, tmp_path: Path) -> None:
    port, _ = serve(begin(EngineAggregator, tmp_path))
    assert len(set(subject(port, tmp_path))) == 1


@fault(
    "transport/grpc/aggregator_client.py:161",
    stock=lambda *where: stock_client(*where).get_tasks("small"),
    ours=lambda *where: our_client(*where).get_tasks(),
)
def test_an_error_is_an_answer(subject: Any, serve: Any, tmp_path: Path) -> None:
    asked = []

    def broken_at_first(site: str) -> Any:
        asked.append(site)
        if len(asked) < 5:
            raise ArithmeticError("a fault of the aggregator")
        return None, 0, 10, False

    rounds = begin(EngineAggregator, tmp_path)
    rounds.get_tasks = broken_at_first
    with suppress(FederationError):
        subject(serve(rounds)[0], tmp_path)
    assert len(asked) == 1


@fault(
    "protocols/utils.py:310",
    stock=lambda rounds: AggregatorGRPCServer(aggregator=rounds, agg_port=0, tls=False),
    ours=lambda rounds: AggregatorRouter(lambda _: rounds, tls=False),
)
def test_parts_of_a_message_are_joined_once(subject: Any, tmp_path: Path) -> None:
    rounds = begin(EngineAggregator, tmp_path)
    message = aggregator_pb2.TaskResults(
        header={"sender": "small", "receiver": "aggregator", "federation_uuid": "federation"},
        round_number=0, task_name="long" * 2**20, data_size=1,
    ).SerializeToString()  # fmt: skip
    parts = [SimpleNamespace(npbytes=message[start : start + 4096]) for start in range(0, len(message), 4096)]
    once = cost(lambda: b"".join(part.npbytes for part in parts))
    assert cost(lambda: subject(rounds).SendLocalTaskResults(iter(parts), None)) < 30 * once  # the engine: 150
    assert rounds.collaborator_tasks_results


def cost(work: Callable[[], Any]) -> float:
    """Seconds of CPU that some work takes, the better of two times."""
    seconds = []
    for _ in range(2):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return min(seconds)
