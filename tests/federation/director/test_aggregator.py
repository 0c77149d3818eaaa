"""The aggregator by itself, with the engine's own messages; the engine's class beside it shows what is mended."""

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from openfl.component import Aggregator as EngineAggregator
from openfl.interface.aggregation_functions import Median
from rounds import MODEL, SIZES, TASKS, build, pack, send, upload

from federation.director.aggregator import RoundAggregator
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL, RoundSchedule
from federation.wire.models import ModelFile, Packed, Piece, best_path, round_path
from federation.wire.transfer import Address, RoundOver


def play(aggregator: EngineAggregator, scores: list[dict[str, float]]) -> None:
    """Every round of an experiment: the averaged model scores as given, training gives 1 and 2 more a round."""
    for number, score in enumerate(scores):
        for site, step in (("small", 1.0), ("large", 2.0)):
            send(aggregator, site, VALIDATE_AGGREGATED, number, score, "validate_agg")
            if number < len(scores) - 1:
                model = {"v": MODEL["v"], "w": np.full(2, step * (number + 1), np.float32)}
                send(aggregator, site, TRAIN, number, {**model, "loss": 0.1}, "trained")
                send(aggregator, site, VALIDATE_LOCAL, number, score, "validate_local")


SCORES = [{"loss": 9.0, "accuracy": 0.1}, {"loss": 1.0, "accuracy": 0.9}, {"loss": 5.0, "accuracy": 0.4}]


def test_the_schedule_ends_with_a_validation() -> None:
    schedule = RoundSchedule(2, TASKS)
    names = [[task.name for task in schedule(["a"], number)["a"]] for number in range(3)]
    assert names == [[VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL]] * 2 + [[VALIDATE_AGGREGATED]]


@pytest.mark.parametrize(
    ("metric", "direction", "round_number"), [("accuracy", "max", 1), ("loss", "min", 1), ("loss", "max", 0)]
)
def test_best_is_one_metric_with_a_direction(metric: str, direction: str, round_number: int, tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path, rounds=2, best_metric=metric, best_direction=direction)
    play(aggregator, SCORES)
    assert aggregator.best_round == round_number
    best, last = ModelFile(best_path(tmp_path, round_number)), ModelFile(round_path(tmp_path, 2))
    np.testing.assert_allclose(best["w"], 1.75 * round_number)  # (1 * 1 + 3 * 2) / 4 a round
    np.testing.assert_allclose(last["w"], 3.5)
    np.testing.assert_array_equal(last["v"], MODEL["v"])


MACRO_F1 = {"kind": "mean", "top": {"right": 2}, "bottom": {"true": 1, "answered": 1}, "among": "true"}


def counts(*answers: tuple[int, int]) -> dict[str, float]:
    """What a site sends of its (label, answer) pairs."""
    names = [f"sum/{name}/{label}" for pair in answers for name, label in zip(("true", "answered"), pair, strict=True)]
    names += [f"sum/right/{label}" for label, answer in answers if label == answer]
    return {name: float(names.count(name)) for name in names}


def recorded(aggregator: RoundAggregator) -> list[tuple[int, str, str, str, float]]:
    lines = [aggregator.metric_queue.get() for _ in range(aggregator.metric_queue.qsize())]
    return [tuple(line[key] for key in ("round", "metric_origin", "task_name", "metric_name", "metric_value"))
            for line in lines]  # fmt: skip


def test_scores_are_made_of_the_sites_counts(tmp_path: Path) -> None:
    """The two models of `tests/rules`: a mean of the sites' macro F1s prefers the first, the counts the second."""
    scores = {"macro_f1": MACRO_F1}
    aggregator = build(RoundAggregator, tmp_path, rounds=1, best_metric="macro_f1", scores=scores)
    south = counts(*[(2, 2)] * 100, *[(3, 3)] * 100)
    for number, (confused_with, wrong) in enumerate([(2, 40), (1, 35)]):
        north = counts(*[(0, 0)] * (100 - wrong), *[(0, confused_with)] * wrong, *[(1, 1)] * 100)
        for site, sent in (("small", north), ("large", south)):
            send(aggregator, site, VALIDATE_AGGREGATED, number, sent, "validate_agg")
            if number == 0:
                send(aggregator, site, TRAIN, number, {**MODEL, "loss": 0.1}, "trained")
                send(aggregator, site, VALIDATE_LOCAL, number, sent, "validate_local")
    assert aggregator.best_round == 1
    assert aggregator.best_model_score == pytest.approx(0.9097356, abs=1e-6)
    lines = recorded(aggregator)
    f1 = {(number, site): value for number, site, task, name, value in lines
          if (task, name) == (VALIDATE_AGGREGATED, "macro_f1")}  # fmt: skip
    assert f1 == pytest.approx(
        {(0, "small"): 0.875, (0, "large"): 1, (0, "aggregator"): 0.8958333,
         (1, "small"): 0.8194712, (1, "large"): 1, (1, "aggregator"): 0.9097356}, abs=1e-6,
    )  # fmt: skip
    added = {(site, task) for _, site, task, name, _ in lines if name.startswith("sum/")}
    assert added == {("aggregator", VALIDATE_AGGREGATED)}, "the sites' own counts stay with the director"
    assert (0, "aggregator", VALIDATE_AGGREGATED, "sum/answered/2", 140.0) in lines


def test_the_best_metric_has_to_be_there(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path, best_metric="macro_f1")
    reasons: list[str] = []
    aggregator.on_failure = reasons.append
    play(aggregator, SCORES[:2])
    assert "the best model is chosen by macro_f1; the sites' metrics are: accuracy, loss" in reasons[0]


def test_a_metric_that_is_no_number_is_refused(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path)
    with pytest.raises(ValueError, match="site small, task validate_global: the metric sum/loss is nan"):
        send(aggregator, "small", VALIDATE_AGGREGATED, 0, {"accuracy": 0.5, "sum/loss": np.nan}, "validate_agg")
    assert recorded(aggregator) == []
    send(aggregator, "small", VALIDATE_AGGREGATED, 0, {"accuracy": 0.5}, "validate_agg")
    send(aggregator, "small", VALIDATE_AGGREGATED, 0, {"accuracy": 0.9}, "validate_agg")  # the first holds
    assert recorded(aggregator) == [(0, "small", VALIDATE_AGGREGATED, "accuracy", 0.5)]


def test_of_equal_scores_the_later_is_best(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path, rounds=2)
    play(aggregator, [{"loss": 1.0, "accuracy": 0.5}] * 3)
    assert aggregator.best_round == 2


def test_the_engines_aggregation_functions_work_on_the_files(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path, rounds=2, rule=Median())
    play(aggregator, SCORES)
    np.testing.assert_allclose(ModelFile(round_path(tmp_path, 2))["w"], 3.0)  # between 2 and 4


def test_a_direction_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="best_direction: 'up'; allowed: 'max', 'min'"):
        build(RoundAggregator, tmp_path, best_direction="up")


def test_who_has_nothing_to_do_is_told_at_once_when_there_is_something(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path, rounds=1)
    metrics = {"loss": 1.0, "accuracy": 0.5}
    answers: list[tuple[float, int]] = []

    def ask() -> None:
        _, round_number, sleep, _ = aggregator.get_tasks("small")
        assert sleep == 0
        answers.append((time.monotonic(), round_number))

    def finish_round(site: str) -> None:
        send(aggregator, site, VALIDATE_AGGREGATED, 0, metrics, "validate_agg")
        send(aggregator, site, TRAIN, 0, {**MODEL, "loss": 1.0}, "trained")
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


def test_stopping_sends_everyone_home(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path)
    aggregator.stop()
    assert aggregator.get_tasks("small")[3]


def test_an_update_may_come_in_parts(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path)
    packed = pack({"v": MODEL["v"] + 1, "w": MODEL["w"] + 1})
    address = Address(site="small", upload="a", size=packed.size)
    content = b"".join(packed.chunks())
    with pytest.raises(ValueError, match="ended after 50 of"):
        aggregator.receive(address, iter([content[:50]]))
    assert aggregator.received(address) == 50
    with pytest.raises(ValueError, match="offset 60 lies behind"):
        aggregator.receive(Address(site="small", upload="a", size=packed.size, offset=60), iter([content[60:]]))
    aggregator.receive(Address(site="small", upload="a", size=packed.size, offset=30), iter([content[30:]]))
    assert aggregator.received(address) == packed.size
    # Another training of the same round begins anew, and what the first had sent is gone.
    other = Address(site="small", upload="b", size=packed.size)
    assert aggregator.received(other) == 0
    aggregator.receive(other, packed.chunks())
    assert len(list((tmp_path / "updates").iterdir())) == 1


@pytest.mark.parametrize(
    ("tensors", "complaint"),
    [
        ({"w": MODEL["w"]}, r"not the model's; they differ in \['v'\]"),
        ({**MODEL, "x": MODEL["w"]}, r"not the model's; they differ in \['x'\]"),
        ({**MODEL, "w": np.zeros(3, np.float32)}, r"tensor w has shape \(3,\); the model's is \(2,\)"),
        ({**MODEL, "w": np.array([0, np.nan], np.float32)}, "tensor w holds values that are not finite"),
        ({**MODEL, "v": MODEL["v"] * np.inf}, "tensor v holds values that are not finite"),
        ({**MODEL, "w": np.zeros(10**6, np.float32)}, "the update has .* bytes; this model's have at most"),
    ],
)
def test_an_update_that_is_not_the_models_is_refused(tensors: dict, complaint: str, tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path)
    with pytest.raises(ValueError, match=complaint):
        upload(aggregator, "small", 0, pack(tensors))
    with pytest.raises(ValueError, match="the trained model has not arrived"):
        aggregator.send_local_task_results("small", 0, TRAIN, 1, [])
    assert list((tmp_path / "updates").iterdir()) == []


def test_bytes_that_are_no_update_are_refused(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path)
    for content in (b"\0" * 100, b"\xff" * 100, b"{}" * 60, (10).to_bytes(8, "little") + b'{"a": [1]}'):
        address = Address(site="small", upload="a", size=len(content))
        with pytest.raises(ValueError, match="not a safetensors file"):
            aggregator.receive(address, iter([content]))
        with pytest.raises(ValueError, match="has more than"):
            aggregator.receive(address, iter([content, b"more"]))


def test_a_round_that_is_over_takes_and_gives_nothing(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path)
    play(aggregator, SCORES[:2])
    for call in (
        lambda: aggregator.model_for(0, -1, 0),
        lambda: upload(aggregator, "small", 0, pack(MODEL)),
        lambda: aggregator.received(Address(site="small", round=0)),
    ):
        with pytest.raises(RoundOver, match="round 1 is over"):
            call()


def test_what_no_site_has_changed_does_not_travel_again(tmp_path: Path) -> None:
    aggregator = build(RoundAggregator, tmp_path, rounds=2)
    for site in SIZES:
        update = Packed({"w": Piece.of(MODEL["w"] + 1)}, {"unchanged": '["v"]'})
        upload(aggregator, site, 0, update)
        for task, tag in (
            (VALIDATE_AGGREGATED, "validate_agg"),
            (TRAIN, "trained"),
            (VALIDATE_LOCAL, "validate_local"),
        ):
            send(aggregator, site, task, 0, {"accuracy": 0.5}, tag)
    whole, rest = b"".join(aggregator.model_for(1, -1, 0)), b"".join(aggregator.model_for(1, 0, 0))
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "rest").write_bytes(rest)
    assert set(ModelFile(tmp_path / "whole")) == {"v", "w"}
    assert set(ModelFile(tmp_path / "rest")) == {"w"}
    assert ModelFile(tmp_path / "rest").metadata == {"unchanged": '["v"]'}
    assert b"".join(aggregator.model_for(1, 0, 10)) == rest[10:]
