"""Rounds without a network: a conductor in a folder, the engine's aggregator beside it, and what their sites send."""

import asyncio
import time
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from openfl.component import Aggregator as EngineAggregator
from openfl.component.assigner.custom_assigner import Assigner
from openfl.component.assigner.tasks import TrainTask, ValidateTask
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.pipelines import NoCompressionPipeline, TensorCodec
from openfl.protocols import utils
from openfl.utilities import TensorKey, add_log_level

from federation.director.conductor import Assignment, Conductor
from federation.director.results import Results
from federation.director.room import LEAST, Room
from federation.director.state import ExperimentState, Submitted
from federation.policy import RoundPolicy
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, tasks_of
from federation.wire.description import Description
from federation.wire.models import ModelFile, Packed, Piece, save
from federation.wire.transfer import Address

add_log_level("METRIC", 25)
SIZES = {"small": 1, "large": 3}
CODEC = TensorCodec(NoCompressionPipeline())
TASKS = {
    TRAIN: TrainTask(name=TRAIN, function_name="train"),
    VALIDATE_LOCAL: ValidateTask(name=VALIDATE_LOCAL, function_name="validate", apply_local=True),
    VALIDATE_AGGREGATED: ValidateTask(name=VALIDATE_AGGREGATED, function_name="validate"),
}
TAGS = {VALIDATE_AGGREGATED: "validate_agg", TRAIN: "trained", VALIDATE_LOCAL: "validate_local"}
MODEL = {"v": np.ones((2, 3), np.float32), "w": np.zeros(2, np.float32)}
GOOD = {"loss": 1.0, "accuracy": 0.5}


async def at_once(work: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread."""
    return work(*arguments)


async def nothing() -> None:
    """Nobody is told that it is its turn."""


async def messages(content: Iterable[bytes]) -> AsyncIterator[bytes]:
    for each in content:
        yield each


class Conducted:
    """A conductor in a folder, called as by a site, and done with what it was told before the call returns.

    `metrics` is what readers were told; `failures` why it does not go on.
    """

    def __init__(
        self,
        folder: Path,
        rounds: int = 1,
        model: Mapping[str, np.ndarray] = MODEL,
        sites: Mapping[str, int] = SIZES,
        **settings: Any,
    ) -> None:
        self.runner = asyncio.Runner()
        self.sizes = dict(sites)
        self.metrics: list[dict[str, Any]] = []
        self.failures: list[str] = []
        self.notices: list[str] = []
        self.changed: set[str] = set()
        policy = {
            "minimum_sites": settings.pop("minimum_sites", len(sites)),
            "round_seconds": settings.pop("round_seconds", None),
        }
        self.description = Description(
            id="0" * 32, rounds=rounds, entry_point="toy.experiment:experiment", policy=RoundPolicy(**policy),
            **{"best_metric": "accuracy", **settings},
        )  # fmt: skip
        archive = folder / "experiment.zip"
        with zipfile.ZipFile(archive, "w") as written:
            written.writestr("experiment.json", self.description.to_bytes())
        about = Submitted("toy", tuple(self.sizes), "ada", 1.0, rounds)
        self.state = ExperimentState.create(folder, archive, save(folder / "initial", model).path, about)
        self.state.end("in_progress")
        self.start()

    def start(self) -> None:
        """Begin, or, after a kill, begin anew from what is on disk."""
        self.conductor: Conductor = self.do(self._made())

    def restart(self) -> None:
        """The director is killed, and started again."""
        self.state = ExperimentState(self.state.folder)
        self.state.resume()
        self.metrics = list(self.state.all_metrics())
        self.start()

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine, after all that follows from it."""

        async def and_what_follows() -> Any:
            try:
                return await work
            finally:
                for _ in range(3):
                    await asyncio.sleep(0)
                    if hasattr(self, "conductor"):
                        await self.conductor.settled()

        return self.runner.run(and_what_follows())

    async def _made(self) -> Conductor:
        return Conductor(
            "toy", self.description, tuple(self.sizes), self.state, tell=self._tell, told=self._told, run=at_once,
            uploads=Room(2 * LEAST), on_failure=self._failed, on_notice=self.notices.append,
            on_asked=self.changed.update, idle_seconds=0.3,
        )  # fmt: skip

    def _tell(self, lines: Any) -> None:
        self.metrics += lines
        self.state.add_metrics(lines)

    async def _told(self) -> None:
        pass

    def _failed(self, reason: str) -> None:
        if not self.failures:
            self.failures.append(reason)

    def upload(self, site: str, packed: Packed, number: int | None = None, **address: Any) -> None:
        number = self.number if number is None else number
        told = {"site": site, "round": number, "upload": f"of{site}", "size": packed.size, **address}
        where = Address(**told)
        self.do(self.conductor.receive(where, messages(packed.chunks(where.offset)), nothing))

    def take(self, site: str, task: str, number: int | None = None, **metrics: float) -> None:
        async def take() -> None:
            round_number = self.number if number is None else number
            self.conductor.take(Results(site, round_number, task, self.sizes.get(site, 1), metrics or GOOD))

        self.do(take())

    def asks(self, site: str) -> Assignment:
        """What a site is told now; it gives up where it would wait."""

        async def ask() -> Assignment:
            self.conductor.heard(site)
            question = asyncio.ensure_future(self.conductor.assignment(site))
            for _ in range(3):
                await asyncio.sleep(0)
            return question.result() if question.done() else Assignment((), self.number)

        return self.do(ask())  # type: ignore[no-any-return]

    def passes(self, seconds: float) -> None:
        self.do(asyncio.sleep(seconds))

    def leaves(self, site: str, reason: str = "gone", for_good: bool = False) -> None:
        async def leave() -> None:
            self.conductor.leave_out(site, reason, for_good)

        self.do(leave())

    def back(self, site: str) -> None:
        async def hear() -> None:
            self.conductor.heard(site)

        self.do(hear())

    @property
    def number(self) -> int:
        return self.conductor.round

    @property
    def finished(self) -> bool:
        return self.conductor.finished

    @property
    def updates(self) -> list[str]:
        """What lies on disk of the sites' updates."""
        folder = self.state.folder / "updates"
        return sorted(path.name for path in folder.rglob("*") if path.is_file())

    def model(self, which: str) -> ModelFile:
        found = self.state.best_model() if which == "best" else self.state.last_model()
        assert found is not None
        return found

    def told(self, task: str, origin: str = "aggregator") -> dict[tuple[int, str], float]:
        """What readers were told, by round and metric."""
        return {
            (line["round"], line["metric_name"]): line["metric_value"]
            for line in self.metrics
            if (line["task_name"], line["metric_origin"]) == (task, origin)
        }


def build(
    kind: type, folder: Path, rounds: int = 1, model: Mapping[str, np.ndarray] = MODEL, **settings: Any
) -> EngineAggregator | Conducted:
    if kind is Conducted:
        return Conducted(folder, rounds, model, **settings)

    def assigned(sites: Iterable[str], number: int, **_: Any) -> dict[str, list[Any]]:
        return {site: [TASKS[name] for name in tasks_of(number, rounds)] for site in sites}

    assigner = Assigner(
        assigner_function=assigned,
        aggregation_functions_by_task={TRAIN: WeightedAverage()},
        authorized_cols=list(SIZES),
        rounds_to_train=rounds + 1,
    )
    return kind(
        aggregator_uuid="aggregator", federation_uuid="federation", authorized_cols=list(SIZES), assigner=assigner,
        init_state_path="init", best_state_path=folder / "best.pbuf", last_state_path=folder / "last.pbuf",
        rounds_to_train=rounds + 1, initial_tensor_dict=model, **settings,
    )  # fmt: skip


def pack(tensors: Mapping[str, np.ndarray], **metadata: str) -> Packed:
    return Packed({name: Piece.of(array) for name, array in tensors.items()}, metadata)


def send(rounds: Any, site: str, task: str, number: int, tensors: Mapping[str, Any]) -> None:
    """Send a task's metrics (numbers) and trained tensors (arrays)."""
    arrays = {name: value for name, value in tensors.items() if np.ndim(value)}
    metrics = {name: value for name, value in tensors.items() if name not in arrays}
    if isinstance(rounds, Conducted):
        if arrays:
            rounds.upload(site, pack(arrays), number)
        rounds.take(site, task, number, **metrics)
        return
    named = []
    for name, value in tensors.items():
        tags = (TAGS[task],) if name in arrays else (TAGS[task], "metric")
        key = TensorKey(name, site, number, name not in arrays, tags)
        packed_key, packed, metadata = CODEC.compress(key, np.array(value, np.float32), require_lossless=True)
        named.append(utils.construct_named_tensor(packed_key, packed, metadata, lossless=True))
    rounds.send_local_task_results(site, number, task, SIZES.get(site, 1), named)


def finish_round(
    rounds: Any,
    number: int,
    trained: Mapping[str, np.ndarray] | None,
    sites: Iterable[str] = SIZES,
    **scores: float,
) -> None:
    """A round of these sites: scores of the model that came, then training; the last round has none."""
    scores = scores or GOOD
    for site in sites:
        send(rounds, site, VALIDATE_AGGREGATED, number, scores)
        if trained is not None:
            send(rounds, site, TRAIN, number, {**trained, "loss": 0.1})
            send(rounds, site, VALIDATE_LOCAL, number, scores)


def model(rounds: Any, which: str) -> Mapping[str, np.ndarray]:
    """The "best" or the "last" model."""
    if isinstance(rounds, Conducted):
        return rounds.model(which)
    return {"best": rounds.best_tensor_dict, "last": rounds.last_tensor_dict}[which]


def soon(seconds: float, condition: Callable[[], Any]) -> bool:
    """Wait until it is true or the time is over; whether it is true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())
