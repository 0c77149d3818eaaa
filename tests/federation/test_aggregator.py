"""The aggregator by itself, with the engine's own messages; the engine's class beside it shows what is mended."""

import threading
import time

import numpy as np
import pytest
from openfl.component import Aggregator as EngineAggregator
from openfl.component.assigner.custom_assigner import Assigner
from openfl.component.assigner.tasks import TrainTask, ValidateTask
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.pipelines import NoCompressionPipeline, TensorCodec
from openfl.protocols import utils
from openfl.utilities import TensorKey, add_log_level

from federation.aggregator import Aggregator
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, RoundSchedule

add_log_level("METRIC", 25)
SIZES = {"small": 1, "large": 3}
CODEC = TensorCodec(NoCompressionPipeline())
TASKS = {
    TRAIN: TrainTask(name=TRAIN, function_name="train"),
    VALIDATE_LOCAL: ValidateTask(name=VALIDATE_LOCAL, function_name="validate", apply_local=True),
    VALIDATE_AGGREGATED: ValidateTask(name=VALIDATE_AGGREGATED, function_name="validate"),
}


def build(kind: type, rounds: int = 1, **settings: object) -> EngineAggregator:
    assigner = Assigner(
        assigner_function=RoundSchedule(rounds, TASKS),
        aggregation_functions_by_task={"train": WeightedAverage(), "validate": WeightedAverage()},
        authorized_cols=list(SIZES),
        rounds_to_train=rounds + 1,
    )
    return kind(
        aggregator_uuid="aggregator", federation_uuid="federation", authorized_cols=list(SIZES), assigner=assigner,
        init_state_path="init", best_state_path="/tmp/best.pbuf", last_state_path="/tmp/last.pbuf",
        rounds_to_train=rounds + 1, initial_tensor_dict={"w": np.zeros(2, np.float32)}, **settings,
    )  # fmt: skip


def send(aggregator: EngineAggregator, site: str, task: str, round_number: int, tensors: dict, tag: str) -> None:
    named = []
    for name, value in tensors.items():
        metric = np.ndim(value) == 0
        tags = (tag, "metric") if metric else (tag,)
        key = TensorKey(name, site, round_number, metric, tags)
        packed_key, packed, metadata = CODEC.compress(key, np.array(value, np.float32), require_lossless=True)
        named.append(utils.construct_named_tensor(packed_key, packed, metadata, lossless=True))
    aggregator.send_local_task_results(site, round_number, task, SIZES[site], named)


def play(aggregator: EngineAggregator, scores: list[dict[str, float]]) -> None:
    """Every round of an experiment: the averaged model scores as given, training gives 1 and 2 more a round."""
    for number, score in enumerate(scores):
        for site, step in (("small", 1.0), ("large", 2.0)):
            send(aggregator, site, VALIDATE_AGGREGATED, number, score, "validate_agg")
            if number < len(scores) - 1:
                model = np.full(2, step * (number + 1), np.float32)
                send(aggregator, site, TRAIN, number, {"w": model, "loss": 0.1}, "trained")
                send(aggregator, site, VALIDATE_LOCAL, number, score, "validate_local")


SCORES = [{"loss": 9.0, "accuracy": 0.1}, {"loss": 1.0, "accuracy": 0.9}, {"loss": 5.0, "accuracy": 0.4}]


def test_the_schedule_ends_with_a_validation() -> None:
    schedule = RoundSchedule(2, TASKS)
    names = [[task.name for task in schedule(["a"], number)["a"]] for number in range(3)]
    assert names == [[VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL]] * 2 + [[VALIDATE_AGGREGATED]]


@pytest.mark.parametrize(
    ("metric", "direction", "round_number"), [("accuracy", "max", 1), ("loss", "min", 1), ("loss", "max", 0)]
)
def test_best_is_one_metric_with_a_direction(metric: str, direction: str, round_number: int) -> None:
    aggregator = build(Aggregator, rounds=2, best_metric=metric, best_direction=direction)
    play(aggregator, SCORES)
    assert aggregator.best_round == round_number
    np.testing.assert_allclose(aggregator.best_tensor_dict["w"], 1.75 * round_number)  # (1 * 1 + 3 * 2) / 4 a round
    np.testing.assert_allclose(aggregator.last_tensor_dict["w"], 3.5)


def test_the_engine_takes_a_loss_for_the_best_score() -> None:
    aggregator = build(EngineAggregator, rounds=2)
    play(aggregator, SCORES)
    assert aggregator.best_model_score == 9.0


def test_of_equal_scores_the_later_is_best() -> None:
    aggregator = build(Aggregator, rounds=2)
    play(aggregator, [{"loss": 1.0, "accuracy": 0.5}] * 3)
    assert aggregator.best_round == 2


def test_a_direction_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match="best_direction: 'up'; allowed: 'max', 'min'"):
        build(Aggregator, best_direction="up")


def test_who_has_nothing_to_do_is_told_at_once_when_there_is_something() -> None:
    aggregator = build(Aggregator, rounds=1)
    metrics = {"loss": 1.0, "accuracy": 0.5}
    answers: list[tuple[float, int]] = []

    def ask() -> None:
        _, round_number, sleep, _ = aggregator.get_tasks("small")
        assert sleep == 0
        answers.append((time.monotonic(), round_number))

    def finish_round(site: str) -> None:
        send(aggregator, site, VALIDATE_AGGREGATED, 0, metrics, "validate_agg")
        send(aggregator, site, TRAIN, 0, {"w": np.ones(2), "loss": 1.0}, "trained")
        send(aggregator, site, VALIDATE_LOCAL, 0, metrics, "validate_local")

    finish_round("small")
    waiting = threading.Thread(target=ask)
    waiting.start()
    time.sleep(0.3)
    assert answers == []
    finish_round("large")
    finished = time.monotonic()
    waiting.join(5)
    assert answers[0][1] == 1
    assert answers[0][0] - finished < 0.2


def test_stopping_sends_everyone_home() -> None:
    aggregator = build(Aggregator)
    aggregator.stop()
    assert aggregator.get_tasks("small")[3]


def test_a_tensor_that_does_not_exist_is_an_error_at_once() -> None:
    aggregator = build(Aggregator)
    started = time.monotonic()
    with pytest.raises(ValueError, match="no tensor w of round 7; the current round is 0"):
        aggregator.get_aggregated_tensor("small", "w", 7, False, ("model",), True)
    assert time.monotonic() - started < 1
