"""An aggregator in a folder, and what its sites send, for the tests beside it."""

import time
from collections.abc import Callable, Iterable, Mapping
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

from federation.director.aggregator import RoundAggregator
from federation.director.state import Progress
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, RoundSchedule
from federation.wire.models import ModelFile, Packed, Piece, best_path, round_path, save
from federation.wire.transfer import Address

add_log_level("METRIC", 25)
SIZES = {"small": 1, "large": 3}
CODEC = TensorCodec(NoCompressionPipeline())
TASKS = {
    TRAIN: TrainTask(name=TRAIN, function_name="train"),
    VALIDATE_LOCAL: ValidateTask(name=VALIDATE_LOCAL, function_name="validate", apply_local=True),
    VALIDATE_AGGREGATED: ValidateTask(name=VALIDATE_AGGREGATED, function_name="validate"),
}


MODEL = {"v": np.ones((2, 3), np.float32), "w": np.zeros(2, np.float32)}


def build(
    kind: type,
    folder: Path,
    rounds: int = 1,
    rule: object = None,
    model: Mapping[str, np.ndarray] = MODEL,
    **settings: object,
) -> EngineAggregator:
    assigner = Assigner(
        assigner_function=RoundSchedule(rounds, TASKS),
        aggregation_functions_by_task={TRAIN: rule or WeightedAverage()},
        authorized_cols=list(SIZES),
        rounds_to_train=rounds + 1,
    )
    aggregator = kind(
        aggregator_uuid="aggregator", federation_uuid="federation", authorized_cols=list(SIZES), assigner=assigner,
        init_state_path="init", best_state_path=folder / "best.pbuf", last_state_path=folder / "last.pbuf",
        rounds_to_train=rounds + 1, initial_tensor_dict=model if kind is EngineAggregator else {}, **settings,
    )  # fmt: skip
    if issubclass(kind, RoundAggregator):
        save(round_path(folder, 0), model)
        aggregator.open(folder, Progress())
    return aggregator


def upload(aggregator: RoundAggregator, site: str, round_number: int, packed: Packed, offset: int = 0) -> None:
    address = Address(site=site, round=round_number, upload=f"of{site}", size=packed.size, offset=offset)
    aggregator.receive(address, packed.chunks(offset))


def pack(tensors: dict[str, np.ndarray]) -> Packed:
    return Packed({name: Piece.of(array) for name, array in tensors.items()})


def send(aggregator: EngineAggregator, site: str, task: str, round_number: int, tensors: dict, tag: str) -> None:
    named = []
    arrays = {name: value for name, value in tensors.items() if np.ndim(value)}
    if arrays and isinstance(aggregator, RoundAggregator):  # models have a stream of their own
        upload(aggregator, site, round_number, pack(arrays))
        tensors = {name: value for name, value in tensors.items() if name not in arrays}
    for name, value in tensors.items():
        metric = np.ndim(value) == 0
        tags = (tag, "metric") if metric else (tag,)
        key = TensorKey(name, site, round_number, metric, tags)
        packed_key, packed, metadata = CODEC.compress(key, np.array(value, np.float32), require_lossless=True)
        named.append(utils.construct_named_tensor(packed_key, packed, metadata, lossless=True))
    aggregator.send_local_task_results(site, round_number, task, SIZES.get(site, 1), named)


def finish_round(
    aggregator: EngineAggregator,
    number: int,
    trained: Mapping[str, np.ndarray] | None,
    sites: Iterable[str] = SIZES,
    **scores: float,
) -> None:
    """An engine round of these sites: scores of the model that came, then training; the last round has none."""
    scores = scores or {"loss": 1.0, "accuracy": 0.5}
    for site in sites:
        send(aggregator, site, VALIDATE_AGGREGATED, number, scores, "validate_agg")
        if trained is not None:
            send(aggregator, site, TRAIN, number, {**trained, "loss": 0.1}, "trained")
            send(aggregator, site, VALIDATE_LOCAL, number, scores, "validate_local")


def model(aggregator: Any, which: str) -> Mapping[str, np.ndarray]:
    """The "best" or the "last" model."""
    if not isinstance(aggregator, RoundAggregator):
        return {"best": aggregator.best_tensor_dict, "last": aggregator.last_tensor_dict}[which]
    folder, last = aggregator.model_file.path.parent, aggregator.last_round
    return ModelFile(best_path(folder, aggregator.best_round) if which == "best" else round_path(folder, last))


def soon(seconds: float, condition: Callable[[], Any]) -> bool:
    """Wait until it is true or the time is over; whether it is true."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(condition())
