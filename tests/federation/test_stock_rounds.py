"""The engine's faults in aggregator and collaborator, and that ours has not got them. docs/engine.md lists them all."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from openfl.component import Aggregator as EngineAggregator
from openfl.component import Collaborator as EngineCollaborator
from openfl.databases import TensorDB
from openfl.federated.task.task_runner import CoreTaskRunner
from openfl.interface.interactive_api.experiment import FLExperiment
from openfl.protocols import aggregator_pb2
from openfl.transport import AggregatorGRPCClient, AggregatorGRPCServer
from openfl.utilities import TensorKey
from stock import SECONDS, TASKS, aggregator, fault, finish_round, send, soon
from toy import experiment as toy
from toy_shard import ToyShard

from federation.aggregator import Aggregator
from federation.collaborator import AggregatorClient, Collaborator
from federation.errors import FederationError
from federation.router import AggregatorRouter
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, RoundSchedule
from federation.tensors import TensorStore


@fault(
    "component/aggregator/aggregator.py:938", stock=EngineAggregator, ours=partial(Aggregator, best_metric="accuracy")
)
def test_best_is_told_by_one_metric(subject: Any, tmp_path: Path) -> None:
    rounds = aggregator(subject, tmp_path)
    finish_round(rounds, 0, {"w": np.ones(2)}, accuracy=0.9, loss=5.0)
    finish_round(rounds, 1, None, accuracy=0.1, loss=6.0)
    np.testing.assert_array_equal(rounds.best_tensor_dict["w"], 0.0)  # the model that scored 0.9


@fault("component/aggregator/aggregator.py:646", stock=EngineAggregator, ours=Aggregator)
def test_values_that_are_not_numbers_are_not_averaged(subject: Any, tmp_path: Path) -> None:
    rounds = aggregator(subject, tmp_path)
    with suppress(ValueError):
        send(rounds, "small", TRAIN, 0, {"w": np.array([1.0, np.nan])})
    finish_round(rounds, 0, {"w": np.ones(2)})
    np.testing.assert_array_equal(rounds.last_tensor_dict["w"], 1.0)


@fault("component/aggregator/aggregator.py:805", stock=EngineAggregator, ours=Aggregator)
def test_the_next_model_is_the_average(subject: Any, tmp_path: Path) -> None:
    trained = np.array([1e-3, 1.0], np.float32)
    rounds = aggregator(subject, tmp_path, weights=np.array([1e4, 1.0], np.float32))
    finish_round(rounds, 0, {"w": trained})
    np.testing.assert_allclose(rounds.last_tensor_dict["w"], trained, rtol=1e-6)


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


@fault("component/aggregator/aggregator.py:314", stock=EngineAggregator, ours=Aggregator)
def test_a_site_that_waits_is_told_at_once(subject: Any, tmp_path: Path) -> None:
    rounds = aggregator(subject, tmp_path)
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


@fault("component/aggregator/aggregator.py:487", stock=EngineAggregator, ours=Aggregator)
def test_a_tensor_that_does_not_exist_is_not_waited_for(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = aggregator(subject, tmp_path)

    def no_sleep(seconds: float) -> None:
        raise AssertionError(f"sleeps {seconds} s")

    monkeypatch.setattr(time, "sleep", no_sleep)
    with pytest.raises(ValueError, match="w"):
        rounds.get_aggregated_tensor("small", "w", 7, False, ("model",), True)


@fault("component/aggregator/aggregator.py:678", stock=EngineAggregator, ours=partial(Aggregator, minimum_sites=2))
def test_when_time_is_up_and_too_few_are_done_somebody_is_told(subject: Any, tmp_path: Path) -> None:
    rounds = aggregator(subject, tmp_path, cutoff=(0.1, 2))
    told: list[str] = []
    rounds.on_failure = told.append
    rounds.get_tasks("small")
    finish_round(rounds, 0, {"w": np.ones(2)}, sites=["small"])
    soon(1, lambda: told)
    assert told
    assert "missing: large" in told[0]


@fault(
    "component/aggregator/aggregator.py:298",
    stock=(EngineAggregator, EngineAggregator.all_quit_jobs_sent),
    ours=(Aggregator, lambda rounds: rounds.finished),
)
def test_an_experiment_ends_without_a_site_that_is_gone(subject: Any, tmp_path: Path) -> None:
    kind, is_over = subject
    rounds = aggregator(kind, tmp_path, cutoff=(0.1, 1))
    for number, model in enumerate(({"w": np.ones(2)}, None)):
        rounds.get_tasks("small")
        finish_round(rounds, number, model, sites=["small"])
        soon(SECONDS, lambda done=number: rounds.round_number > done)
    assert rounds.get_tasks("small")[3]  # told to quit
    assert is_over(rounds)


def a_site_that_fails(kind: type, client: Any) -> Any:
    """A site's collaborator whose training raises."""
    data = toy.Numbers(raise_on=1.0)
    data.shard_descriptor = ToyShard(1.0)
    runner = CoreTaskRunner()
    runner.set_data_loader(data)
    runner.set_model_provider(toy.VectorModel())
    runner.set_task_provider(toy.TASKS)
    runner.set_framework_adapter(toy.VectorAdapter())
    return kind(
        collaborator_name="small", aggregator_uuid="aggregator", federation_uuid="federation", client=client,
        task_runner=runner, task_config={},
    )  # fmt: skip


@fault("component/collaborator/collaborator.py:298", stock=EngineCollaborator, ours=Collaborator)
def test_a_task_that_raises_tells_where(subject: Any, tmp_path: Path) -> None:
    client = aggregator(EngineAggregator, tmp_path, weights=np.zeros(4, np.float32))
    collaborator = a_site_that_fails(subject, client)
    key = TensorKey("vector", "aggregator", 0, False, ("model",))
    collaborator.tensor_db.cache_tensor({key: np.zeros(4, np.float32)})
    collaborator.set_available_devices()
    with pytest.raises(Exception, match="the toy was told to fail") as error:
        collaborator.do_task(TASKS[TRAIN], 0)
    assert "site small, round 1, task train" in str(error.value)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Any]:
    """An aggregator on a port of this machine, behind the engine's server."""
    server = AggregatorGRPCServer(aggregator=aggregator(EngineAggregator, tmp_path), agg_port=0, tls=False)
    grpc_server = server.get_server()
    server.port = grpc_server.add_insecure_port("localhost:0")
    grpc_server.start()
    yield server
    grpc_server.stop(None)


def connect(kind: type, port: int) -> Any:
    return kind(
        agg_addr="localhost", agg_port=port, disable_client_auth=True, root_certificate=None, certificate=None,
        private_key=None, tls=False, aggregator_uuid="aggregator", federation_uuid="federation",
    )  # fmt: skip


@fault("transport/grpc/aggregator_client.py:140", stock=AggregatorGRPCClient, ours=AggregatorClient)
def test_one_connection_lasts(subject: Any, served: Any) -> None:
    client = connect(subject, served.port)
    channels = set()
    for _ in range(2):
        client.get_tasks("small")
        channels.add(client.channel)
    client.channel.close()
    assert len(channels) == 1


@fault("transport/grpc/aggregator_client.py:161", stock=AggregatorGRPCClient, ours=AggregatorClient)
def test_an_error_is_an_answer(subject: Any, served: Any) -> None:
    asked = []

    def broken_at_first(site: str) -> Any:
        asked.append(site)
        if len(asked) < 5:
            raise ArithmeticError("a fault of the aggregator")
        return None, 0, 10, False

    served.aggregator.get_tasks = broken_at_first
    client = connect(subject, served.port)
    with suppress(FederationError):
        client.get_tasks("small")
    client.channel.close()
    assert len(asked) == 1


class Part(bytes):
    """A part of a message that counts the bytes that are copied to append it."""

    copied = 0

    def __radd__(self, before: bytes) -> bytes:
        Part.copied += len(before)
        return bytes(before) + bytes(self)


@fault(
    "protocols/utils.py:310",
    stock=lambda rounds: AggregatorGRPCServer(aggregator=rounds, agg_port=0, tls=False),
    ours=lambda rounds: AggregatorRouter(lambda _: rounds, tls=False),
)
def test_parts_of_a_message_are_joined_once(subject: Any, tmp_path: Path) -> None:
    rounds = aggregator(EngineAggregator, tmp_path)
    message = aggregator_pb2.TaskResults(
        header={"sender": "small", "receiver": "aggregator", "federation_uuid": "federation"},
        round_number=0, task_name=VALIDATE_LOCAL, data_size=1, tensors=[],
    ).SerializeToString()  # fmt: skip
    Part.copied = 0
    subject(rounds).SendLocalTaskResults((SimpleNamespace(npbytes=Part([byte])) for byte in message), None)
    assert rounds.collaborator_tasks_results
    assert Part.copied <= 2 * len(message)
