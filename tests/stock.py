"""The engine beside ours: a test with two subjects, of which the engine's must fail; and what both are fed with."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openfl.component.assigner.custom_assigner import Assigner
from openfl.component.assigner.tasks import TrainTask, ValidateTask
from openfl.component.straggler_handling_functions import CutoffTimeBasedStragglerHandling
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.pipelines import NoCompressionPipeline, TensorCodec
from openfl.protocols import utils
from openfl.transport import DirectorGRPCServer as EngineServer
from openfl.utilities import TensorKey, add_log_level

from federation.aggregator import Aggregator
from federation.models import ModelFile, best_path, round_path, save
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, RoundSchedule
from federation.state import Progress
from federation.transfer import Address
from federation.updates import Encoder

add_log_level("METRIC", 25)  # the engine's launchers do it
SITES = {"small": 1, "large": 3}
"""Two sites and how many utterances each has."""
SHAPES = {"sample_shape": ["4"], "target_shape": ["1"]}
TASKS = {
    TRAIN: TrainTask(name=TRAIN, function_name="train"),
    VALIDATE_LOCAL: ValidateTask(name=VALIDATE_LOCAL, function_name="validate", apply_local=True),
    VALIDATE_AGGREGATED: ValidateTask(name=VALIDATE_AGGREGATED, function_name="validate"),
}
_CODEC = TensorCodec(NoCompressionPipeline())
SECONDS = 20.0
"""Longest time that anything may take which ends by itself."""


def fault(*lines: str, stock: Any, ours: Any = None, raises: Any = AssertionError) -> Any:
    """Run a test with the engine's part and with ours as its `subject`; the engine's has to fail.

    Args:
        lines: `file.py:line` of the engine, where the fault is; docs/engine.md tells what it is.
        stock, ours: what differs: a class, or a function that does it their way. Without `ours` another test, which
            docs/engine.md names, shows our side.
        raises: what the engine's side fails with; anything else is an error of the test.
    """
    expected = pytest.mark.xfail(strict=True, raises=raises, reason=f"OpenFL 1.6, {' and '.join(lines)}")
    sides = [pytest.param(stock, id="stock", marks=expected)]
    return pytest.mark.parametrize("subject", [*sides, pytest.param(ours, id="ours")] if ours else sides)


def aggregator(
    kind: Callable[..., Any],
    folder: Path,
    rounds: int = 1,
    initial: Mapping[str, Any] | None = None,
    cutoff: tuple[float, int] | None = None,
) -> Any:
    """An aggregator of that kind for two sites; `initial`: its model; `cutoff`: seconds of a round, least sites."""
    initial = {"w": np.zeros(2, np.float32)} if initial is None else initial
    policy = cutoff and CutoffTimeBasedStragglerHandling(straggler_cutoff_time=cutoff[0], minimum_reporting=cutoff[1])
    assigner = Assigner(
        assigner_function=RoundSchedule(rounds, TASKS),
        aggregation_functions_by_task={"train": WeightedAverage(), "validate": WeightedAverage()},
        authorized_cols=list(SITES),
        rounds_to_train=rounds + 1,
    )
    made = kind(
        aggregator_uuid="aggregator", federation_uuid="federation", authorized_cols=list(SITES), assigner=assigner,
        init_state_path="init", best_state_path=str(folder / "best.pbuf"), last_state_path=str(folder / "last.pbuf"),
        rounds_to_train=rounds + 1, straggler_handling_policy=policy,
        initial_tensor_dict=initial,
    )  # fmt: skip
    if isinstance(made, Aggregator):  # its models are files
        save(round_path(folder, 0), initial)
        made.open(folder, Progress())
    return made


def model(of: Any, which: str) -> Mapping[str, np.ndarray]:
    """An aggregator's "best" or "last" model."""
    if not isinstance(of, Aggregator):
        return {"best": of.best_tensor_dict, "last": of.last_tensor_dict}[which]  # type: ignore[no-any-return]
    folder = of.model_file.path.parent
    return ModelFile(best_path(folder, of.best_round) if which == "best" else round_path(folder, of.last_round))


def send(to: Any, site: str, task: str, round_number: int, results: Mapping[str, Any]) -> None:
    """One site's results of one task: scalars are metrics, arrays are the trained model."""
    if isinstance(to, Aggregator):
        trained = {name: np.asarray(value, np.float32) for name, value in results.items() if np.ndim(value)}
        if trained:
            packed = Encoder().encode(trained, to.model_file)
            to.receive(Address(site=site, round=round_number, upload="one", size=packed.size), packed.chunks())
        results = {name: value for name, value in results.items() if not np.ndim(value)}
    tag = {TRAIN: "trained", VALIDATE_LOCAL: "validate_local", VALIDATE_AGGREGATED: "validate_agg"}[task]
    named = []
    for name, value in results.items():
        metric = np.ndim(value) == 0
        key = TensorKey(name, site, round_number, metric, (tag, "metric") if metric else (tag,))
        packed_key, packed, metadata = _CODEC.compress(key, np.array(value, np.float32), require_lossless=True)
        named.append(utils.construct_named_tensor(packed_key, packed, metadata, lossless=True))
    to.send_local_task_results(site, round_number, task, SITES.get(site, 1), named)


def finish_round(
    to: Any,
    number: int,
    trained: Mapping[str, Any] | None,
    sites: Any = SITES,
    size: int | None = None,
    **scores: float,
) -> None:
    """A whole engine round: the scores of the model that came, then training; the last round has no training."""
    scores = scores or {"loss": 1.0, "accuracy": 0.5}
    for site in sites:
        send(to, site, VALIDATE_AGGREGATED, number, scores)
        if trained is not None:
            send(to, site, TRAIN, number, {**trained, "loss": 0.1})
            send(to, site, VALIDATE_LOCAL, number, scores)


def soon(seconds: float, condition: Callable[[], Any]) -> None:
    """Wait until it is true, or the time is over."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)


async def within(seconds: float, condition: Callable[[], Any]) -> bool:
    """Whether it becomes true in time; the loop goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await _pause(0.01)
    return bool(condition())


_pause = asyncio.sleep  # a test may shorten the engine's sleeps


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


class Running:
    """A director's server that answers on a port of this machine, in a thread."""

    def __init__(self, build: Callable[..., EngineServer], **settings: Any) -> None:
        self.port = free_port()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.server = self.do(
            _made(
                build,
                listen_host="localhost",
                listen_port=self.port,
                envoy_health_check_period=60,
                **SHAPES,
                **settings,
            )
        )
        self._serving = asyncio.run_coroutine_threadsafe(self.server._run_server(), self.loop)
        self.do(within(SECONDS, lambda: self.listens() or self._serving.done()))

    @property
    def director(self) -> Any:
        """The director behind the server."""
        return self.server.director

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def listens(self) -> bool:
        """Whether the port is open."""
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """Stop the server and its thread."""
        self.do(self.server.server.stop(None))
        self._serving.cancel()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


async def _made(build: Callable[..., EngineServer], **settings: Any) -> EngineServer:
    return build(**settings)
