"""A real site at the real rounds of an experiment, whose director is started again between any two of its calls."""

import gc
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, base_pb2
from rounds import Conducted, pack
from served import ServedRounds
from toy_shard import ToyShard

from federation.experiment import build
from federation.schedule import TRAIN, VALIDATE_AGGREGATED
from federation.site.client import RoundClient
from federation.site.collaborator import Collaborator
from federation.site.worker import Worker
from federation.wire.transfer import SiteTransfers
from federation.wire.updates import Encoder

CALLS = 3 * 3 + 4  # of two rounds and a validation: tasks, model, three results with an update; tasks, model, results


class Interrupted:
    """A site's client or transfers: after so many calls of both together, something happens."""

    def __init__(self, wrapped: Any, made: list[str], at: int, happens: Callable[[], None]) -> None:
        self._wrapped, self._made, self._at, self._happens = wrapped, made, at, happens

    def __getattr__(self, name: str) -> Any:
        wrapped = getattr(self._wrapped, name)
        if not callable(wrapped):
            return wrapped

        def call(*arguments: Any) -> Any:
            answer = wrapped(*arguments)
            self._made.append(name)
            if len(self._made) == self._at:
                self._happens()
            return answer

        return call


@pytest.mark.parametrize("at", range(1, CALLS))
def test_a_restart_between_any_two_calls_changes_nothing(at: int, tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, rounds=2, model={"vector": np.zeros(4, np.float32)}, sites={"small": 1})
    served = ServedRounds(rounds)
    made: list[str] = []
    try:
        with grpc.insecure_channel(f"localhost:{served.port}") as channel:
            client = Interrupted(RoundClient(channel, "federation", "small"), made, at, served.restart)
            (tmp_path / "site").mkdir()
            transfers = SiteTransfers(channel, "federation", "small", tmp_path / "site")
            experiment = build("toy.experiment:experiment", {"faults": {}})
            experiment.data.shard_descriptor = ToyShard(1.0)
            interrupted = Interrupted(transfers, made, at, served.restart)
            Collaborator("small", Worker(experiment), client, interrupted, Encoder()).run()
    finally:
        served.stop()
    assert len(made) >= at
    assert rounds.failures == []
    assert rounds.finished
    np.testing.assert_array_equal(rounds.model("last")["vector"], 2.0)


@pytest.fixture
def five(tmp_path: Path) -> Iterator[tuple[Conducted, Any]]:
    """Rounds of five sites, and how one of them sends whatever it likes."""
    rounds = Conducted(tmp_path, rounds=2, sites={f"s{number}": 1 for number in range(5)})
    served = ServedRounds(rounds)
    channel = grpc.insecure_channel(f"localhost:{served.port}")

    def send(sender: str = "s0", task: str = TRAIN, number: int = 0, federation: str = "federation", **metrics: float):
        tensors = [
            base_pb2.NamedTensor(name=name, tags=["metric"], data_bytes=np.float32(value).tobytes())
            for name, value in (metrics or {"loss": 1.0}).items()
        ]
        header = aggregator_pb2.MessageHeader(sender=sender, receiver="aggregator", federation_uuid=federation)
        whole = aggregator_pb2.TaskResults(
            header=header, round_number=number, task_name=task, data_size=1, tensors=tensors
        ).SerializeToString()
        stub = aggregator_pb2_grpc.AggregatorStub(channel)
        stub.SendLocalTaskResults(iter([base_pb2.DataStream(size=len(whole), npbytes=whole)]))

    yield rounds, send
    channel.close()
    served.stop()


@pytest.mark.parametrize(
    "sent",
    [
        {"task": "invented"}, {"task": ""}, {"task": "round"}, {"task": "notice"}, {"task": "validate_global"},
        {"number": 99}, {"number": -1}, {"sender": "s9"}, {"sender": "aggregator"}, {"sender": "round"}, {"sender": ""},
        {"loss": float("nan")}, {"loss": float("inf")}, {"task": VALIDATE_AGGREGATED, "accuracy": float("nan")},
    ],
    ids=str,
)  # fmt: skip
def test_what_one_site_sends_closes_no_round_and_is_not_the_directors_word(sent: dict[str, Any], five: Any) -> None:
    rounds, send = five
    with pytest.raises(grpc.RpcError) as refused:
        send(**sent)
    assert refused.value.code().name in ("INVALID_ARGUMENT", "PERMISSION_DENIED")
    assert rounds.metrics == []
    assert rounds.number == 0
    assert len(rounds.conductor.book.waiting) == 5


def test_a_result_that_is_sent_twice_counts_once_over_the_wire(five: Any) -> None:
    rounds, send = five
    for _ in range(5):
        send(task=VALIDATE_AGGREGATED, accuracy=0.5)
    assert [(line["metric_origin"], line["metric_name"]) for line in rounds.metrics] == [("s0", "accuracy")]
    assert rounds.number == 0


def test_no_update_stays_in_memory_once_it_is_on_disk(tmp_path: Path) -> None:
    """Not even until Python looks for cycles of references: a thousand sites would leave one each until then."""
    sites, channels = {f"s{number}": 1 for number in range(8)}, []
    model = {"vector": np.zeros(2**18, np.float32)}
    served = ServedRounds(Conducted(tmp_path, model=model, sites=sites))
    gc.collect()
    gc.disable()
    tracemalloc.start()
    try:
        for site in sites:
            channels.append(grpc.insecure_channel(f"localhost:{served.port}"))
            SiteTransfers(channels[-1], "federation", site, tmp_path).send(0, pack(model))
            RoundClient(channels[-1], "federation", site).send_results(TRAIN, 0, 1, {"loss": 1.0})
        left, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
        for channel in channels:
            channel.close()
        served.stop()
    assert left < len(channels) * 2**20 / 2
