"""A real site at the real rounds of an experiment, whose director is started again between any two of its calls."""

import gc
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from rounds import Conducted, pack
from served import ServedRounds
from toy_shard import ToyShard

from federation.experiment import build
from federation.schedule import TRAIN
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
        def call(*arguments: Any) -> Any:
            answer = getattr(self._wrapped, name)(*arguments)
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
