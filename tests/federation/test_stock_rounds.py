"""The engine's faults in aggregator and collaborator, which ours has not got. docs/engine.md lists them all."""

import asyncio
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
from openfl.component import Aggregator as EngineAggregator
from openfl.component import Collaborator as EngineCollaborator
from openfl.component import CutoffTimeBasedStragglerHandling as Cutoff
from openfl.federated.task.task_runner import CoreTaskRunner
from openfl.interface.interactive_api.experiment import FLExperiment
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, utils
from openfl.transport import AggregatorGRPCClient, AggregatorGRPCServer
from openfl.transport.grpc.grpc_channel_options import channel_options
from openfl.utilities import TensorKey
from rounds import SIZES, TASKS, Conducted, build, finish_round, messages, model, send, soon
from served import ServedRounds
from stock import fault
from toy import experiment as toy
from toy_shard import ToyShard

from federation.director.results import RESULTS_BYTES, joined
from federation.errors import FederationError
from federation.experiment import build as experiment_of
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, tasks_of
from federation.site.client import RoundClient
from federation.site.collaborator import Collaborator, Result
from federation.site.worker import Worker
from federation.wire.models import save
from federation.wire.transfer import SERVICE, RoundOver, SiteTransfers
from federation.wire.updates import Encoder


def begin(kind: type, folder: Path, **settings: Any) -> Any:
    """The rounds of that kind, for two sites, "small" and "large"."""
    return build(kind, folder, **{"model": {"w": np.zeros(2, np.float32)}, **settings})


@fault("component/aggregator/aggregator.py:938", stock=EngineAggregator, ours=Conducted)
def test_best_is_told_by_one_metric(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path)
    finish_round(rounds, 0, {"w": np.ones(2)}, accuracy=0.9, loss=5.0)
    finish_round(rounds, 1, None, accuracy=0.1, loss=6.0)
    np.testing.assert_array_equal(model(rounds, "best")["w"], 0.0)  # the model that scored 0.9


@fault("component/aggregator/aggregator.py:646", stock=EngineAggregator, ours=Conducted)
def test_values_that_are_not_numbers_are_not_averaged(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path)
    with suppress(ValueError):
        send(rounds, "small", TRAIN, 0, {"w": np.array([1.0, np.nan])})
    finish_round(rounds, 0, {"w": np.ones(2)})
    np.testing.assert_array_equal(model(rounds, "last")["w"], 1.0)


@fault("component/aggregator/aggregator.py:805", stock=EngineAggregator, ours=Conducted)
def test_the_next_model_is_the_average(subject: Any, tmp_path: Path) -> None:
    trained = np.array([1e-3, 1.0], np.float32)
    rounds = begin(subject, tmp_path, model={"w": np.array([1e4, 1.0], np.float32)})
    finish_round(rounds, 0, {"w": trained})
    np.testing.assert_allclose(model(rounds, "last")["w"], trained, rtol=1e-6)


def stock_schedule(rounds: int) -> list[list[str]]:
    keeper = SimpleNamespace(get_registered_tasks=lambda: TASKS)
    assigned = FLExperiment.define_task_assigner(SimpleNamespace(), keeper, rounds)
    return [[task.name for task in assigned(["site"], number)["site"]] for number in range(rounds)]


@fault(
    "interface/interactive_api/experiment.py:406",
    stock=stock_schedule,
    ours=lambda rounds: [tasks_of(number, rounds) for number in range(rounds + 1)],
)
def test_the_last_model_is_validated(subject: Any) -> None:
    schedule = subject(2)
    last_training = max(number for number, tasks in enumerate(schedule) if TRAIN in tasks)
    # A round's validation of the aggregated model measures the one that the round began with.
    assert any(VALIDATE_AGGREGATED in tasks for tasks in schedule[last_training + 1 :])


def stock_waits(rounds: EngineAggregator, others: Callable[[], None]) -> tuple[int, float]:
    """The round that a waiting site is told of when the others are done, and how long it has to sleep before."""
    answers: list[Any] = []
    waiting = threading.Thread(target=lambda: answers.append(rounds.get_tasks("small")))
    waiting.start()
    time.sleep(0.1)
    others()
    waiting.join(5)
    _, round_number, seconds_to_sleep, _ = answers[0]
    return round_number, seconds_to_sleep


def our_waits(rounds: Conducted, others: Callable[[], None]) -> tuple[int, float]:
    async def ask() -> Any:
        return asyncio.ensure_future(rounds.conductor.assignment("small"))

    waiting = rounds.do(ask())
    assert not waiting.done()
    others()
    assert waiting.done()
    return waiting.result().round, waiting.result().pause


@fault("component/aggregator/aggregator.py:314", stock=(EngineAggregator, stock_waits), ours=(Conducted, our_waits))
def test_a_site_that_waits_is_told_at_once(subject: Any, tmp_path: Path) -> None:
    kind, waits = subject
    rounds = begin(kind, tmp_path)
    finish_round_of = partial(finish_round, rounds, 0, {"w": np.ones(2)})
    finish_round_of(sites=["small"])
    assert waits(rounds, lambda: finish_round_of(sites=["large"])) == (1, 0)


@fault(
    "component/aggregator/aggregator.py:487",
    stock=(EngineAggregator, lambda rounds: rounds.get_aggregated_tensor("small", "w", 7, False, ("model",), True)),
    ours=(Conducted, lambda rounds: rounds.conductor.model_for(7, -1)),
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


@fault("component/aggregator/aggregator.py:775", stock=EngineAggregator, ours=Conducted)
def test_what_sites_send_is_not_kept_in_memory(subject: Any, tmp_path: Path) -> None:
    rounds = begin(subject, tmp_path, model={"w": np.zeros(2**20, np.float32)})
    trained = np.ones(2**20, np.float32)
    left, _ = traced(lambda: [send(rounds, site, TRAIN, 0, {"w": trained}) for site in SIZES])
    assert left < trained.nbytes / 2


def stock_time_is_up(folder: Path) -> list[str]:
    """What an experiment says whose round has one site of two when its time is up."""
    told: list[str] = []
    rounds = begin(EngineAggregator, folder, straggler_handling_policy=Cutoff(0.1, minimum_reporting=2))
    rounds.on_failure = told.append  # where it would, if it did
    rounds.get_tasks("small")
    finish_round(rounds, 0, {"w": np.ones(2)}, sites=["small"])
    soon(1, lambda: told)
    return told


def our_time_is_up(folder: Path) -> list[str]:
    rounds = begin(Conducted, folder, round_seconds=0.1, minimum_sites=2)
    rounds.asks("small")
    finish_round(rounds, 0, {"w": np.ones(2)}, sites=["small"])
    rounds.passes(0.2)
    return rounds.failures


@fault("component/aggregator/aggregator.py:678", stock=stock_time_is_up, ours=our_time_is_up)
def test_when_time_is_up_and_too_few_are_done_somebody_is_told(subject: Any, tmp_path: Path) -> None:
    told = subject(tmp_path)
    assert told
    assert "missing: large" in told[0]


def stock_is_over(folder: Path) -> bool:
    """Whether an experiment of two sites is over when one of them has done everything in time."""
    rounds = begin(EngineAggregator, folder, straggler_handling_policy=Cutoff(straggler_cutoff_time=0.1))
    for number, trained in enumerate(({"w": np.ones(2)}, None)):
        rounds.get_tasks("small")
        finish_round(rounds, number, trained, sites=["small"])
        assert soon(20, lambda done=number: rounds.round_number > done)
    assert rounds.get_tasks("small")[3]  # told to quit
    return bool(rounds.all_quit_jobs_sent())


def our_is_over(folder: Path) -> bool:
    rounds = begin(Conducted, folder, round_seconds=0.1, minimum_sites=1)
    for number, trained in enumerate(({"w": np.ones(2)}, None)):
        rounds.asks("small")
        finish_round(rounds, number, trained, sites=["small"])
        rounds.passes(0.2)
    assert rounds.asks("small").over
    return rounds.finished


@fault("component/aggregator/aggregator.py:298", stock=stock_is_over, ours=our_is_over)
def test_an_experiment_ends_without_a_site_that_is_gone(subject: Any, tmp_path: Path) -> None:
    assert subject(tmp_path)


# Between aggregator and collaborator


class Calls(grpc.ServerInterceptor):  # type: ignore[misc]
    """Counts calls by method."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.made.append(details.method.rpartition("/")[2])
        return continuation(details)


class StockServer:
    """An aggregator on a port of this machine."""

    def __init__(self, rounds: EngineAggregator) -> None:
        self.calls = Calls()
        self._server = grpc.server(futures.ThreadPoolExecutor(4), interceptors=[self.calls], options=channel_options)
        servicer = AggregatorGRPCServer(aggregator=rounds, agg_port=0, tls=False)
        aggregator_pb2_grpc.add_AggregatorServicer_to_server(servicer, self._server)
        self.port = self._server.add_insecure_port("localhost:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)


@pytest.fixture
def serve() -> Iterator[Callable[..., tuple[int, Any]]]:
    """Put rounds on a port of this machine; returns the port, and what is called."""
    servers: list[Any] = []

    def start(rounds: Any) -> tuple[int, Any]:
        servers.append(ServedRounds(rounds) if isinstance(rounds, Conducted) else StockServer(rounds))
        return servers[-1].port, servers[-1].calls

    yield start
    for server in servers:
        server.stop()


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
    "ours": (Conducted, our_site, our_does),
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
    ours=(Conducted, our_received),
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

    def _take(self, answer: bytes, messages: Iterator[bytes], context: Any) -> bytes:
        context.send_initial_metadata(())  # it is this site's turn
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


class Part(bytes):
    """A part of a message that counts what is copied when it is added to those before it."""

    copied = 0

    def __radd__(self, before: bytes) -> bytes:
        Part.copied += len(before)
        return b"".join((before, self))


@fault(
    "protocols/utils.py:310",
    stock=lambda parts: utils.datastream_to_proto(aggregator_pb2.TaskResults(), iter(parts)),
    ours=lambda parts: asyncio.run(joined(messages(parts))),
)
def test_parts_of_a_message_are_joined_once(subject: Any) -> None:
    message = aggregator_pb2.TaskResults(task_name="x" * (RESULTS_BYTES - 64)).SerializeToString()
    starts = range(0, len(message), 4096)
    Part.copied = 0
    joined_again = subject([SimpleNamespace(npbytes=Part(message[start : start + 4096])) for start in starts])
    assert joined_again.SerializeToString() == message
    assert Part.copied < 2 * len(message)
