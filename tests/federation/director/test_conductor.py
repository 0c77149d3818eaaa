"""Conducting rounds, with the sites' words as they come: what counts, what is kept, and what is told."""

import asyncio
import logging
import math
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from rounds import MODEL, SIZES, Conducted, finish_round, messages, nothing, pack, send

from federation.director.results import Results
from federation.director.round import Phase, Reply
from federation.director.uploads import Cut, Replaced, Silent
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL
from federation.wire.models import ModelFile, Packed, Piece
from federation.wire.transfer import Address, RoundOver, UpdateLost
from rules.contract import Computed, Rule, State, Tensors
from rules.exact import MOST_WEIGHT, mean
from rules.in_memory import begin, next_state
from rules.mean import Mean
from rules.registry import RULES
from rules.running import KEPT
from rules.sampling import Sampling
from rules.scores import MOST_METRICS

ONE = {"v": MODEL["v"] + 1, "w": MODEL["w"] + 1}
FIVE = {f"s{number}": 1 for number in range(5)}


def play(rounds: Conducted, scores: list[dict[str, float]]) -> None:
    """Every round of an experiment: the averaged model scores as given, training gives 1 and 2 more a round."""
    for number, score in enumerate(scores):
        for site, step in (("small", 1.0), ("large", 2.0)):
            send(rounds, site, VALIDATE_AGGREGATED, number, score)
            if number < len(scores) - 1:
                trained = {"v": MODEL["v"], "w": np.full(2, step * (number + 1), np.float32)}
                send(rounds, site, TRAIN, number, {**trained, "loss": 0.1})
                send(rounds, site, VALIDATE_LOCAL, number, score)


SCORES = [{"loss": 9.0, "accuracy": 0.1}, {"loss": 1.0, "accuracy": 0.9}, {"loss": 5.0, "accuracy": 0.4}]


# Whom a round asks, and when the rounds end


MANY = {f"site{number}": 1 for number in range(6)}


def asked(rounds: Conducted) -> set[str]:
    return {site for site in MANY if rounds.asks(site).tasks}


def test_a_round_asks_those_that_are_drawn_and_a_restart_asks_the_same(tmp_path: Path) -> None:
    draws = (Sampling(2, seed) for seed in range(100))
    sampling = next(s for s in draws if "site0" not in s.draw(0, MANY, MANY) and "site0" in s.draw(1, MANY, MANY))
    rounds = Conducted(tmp_path, rounds=2, sites=MANY, sampling=sampling, minimum_sites=2)
    first, second = sampling.draw(0, MANY, MANY), sampling.draw(1, MANY, MANY.keys() - {"site0"})
    assert asked(rounds) == set(first)
    for resting in MANY.keys() - first:
        assert rounds.asks(resting).over
        assert (rounds.conductor.needs(resting), rounds.conductor.may_need(resting)) == (False, True)
        with pytest.raises(RoundOver):
            rounds.upload(resting, pack(ONE))
    rounds.leaves("site0")
    finish_round(rounds, 0, ONE, list(first))
    assert rounds.changed == set(first) ^ set(second)
    for _ in range(2):
        assert asked(rounds) == set(second)  # site0 is back, and not in this round
        rounds.restart()  # and now all are there when the conductor begins
    finish_round(rounds, 1, ONE, list(second))
    assert asked(rounds) == set(MANY)  # the last model is measured everywhere
    took_part = {
        (line["round"], line["metric_origin"]) for line in rounds.metrics if line["metric_name"] == "took_part"
    }
    assert took_part == {*((0, site) for site in first), *((1, site) for site in second)}


def test_without_a_better_model_the_rounds_end_early(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, rounds=9, patience=2)
    accuracies = [0.1, 0.5, 0.4, 0.3]
    for number, accuracy in enumerate(accuracies):
        assert rounds.asks("small").tasks == (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL), number
        for site in SIZES:
            send(rounds, site, VALIDATE_AGGREGATED, number, {"accuracy": accuracy})
            send(rounds, site, TRAIN, number, {**ONE, "loss": 0.1})
            send(rounds, site, VALIDATE_LOCAL, number, {"accuracy": accuracy})
    for restarts in range(2):
        assert rounds.asks("small").tasks == (VALIDATE_AGGREGATED,), "what was trained meanwhile is measured"
        (notice,) = set(rounds.notices)
        assert notice == "stops early, after round 4: no accuracy since round 1 was better (0.5)"
        if not restarts:
            rounds.restart()
    for site in SIZES:
        send(rounds, site, VALIDATE_AGGREGATED, 4, {"accuracy": 0.2})
    assert rounds.finished
    assert rounds.state.progress().best_round == 1


# The models


@pytest.mark.parametrize(
    ("metric", "direction", "best"), [("accuracy", "max", 1), ("loss", "min", 1), ("loss", "max", 0)]
)
def test_best_is_one_metric_with_a_direction(metric: str, direction: str, best: int, tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, rounds=2, best_metric=metric, best_direction=direction)
    play(rounds, SCORES)
    assert rounds.finished
    assert rounds.state.progress().best_round == best
    np.testing.assert_allclose(rounds.model("best")["w"], 1.75 * best)  # (1 * 1 + 3 * 2) / 4 a round
    np.testing.assert_allclose(rounds.model("last")["w"], 3.5)
    np.testing.assert_array_equal(rounds.model("last")["v"], MODEL["v"])


def test_of_equal_scores_the_later_is_best(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, rounds=2)
    play(rounds, [{"loss": 1.0, "accuracy": 0.5}] * 3)
    assert rounds.state.progress().best_round == 2


def test_a_model_without_the_metric_is_never_best(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, rounds=2)
    play(rounds, [{"loss": 1.0}, {"loss": 2.0, "accuracy": 0.2}, {"loss": 3.0}])
    assert (rounds.state.progress().best_round, rounds.state.progress().best_score) == (1, 0.2)
    assert set(rounds.notices) == {
        "the best model is chosen by accuracy, which nobody has measured; the sites' metrics are: loss"
    }


def test_metrics_are_merged_by_the_sites_sizes_and_sums_are_added(tmp_path: Path) -> None:
    score = {"kind": "ratio", "top": {"right": 1}, "bottom": {"all": 1}}
    rounds = Conducted(tmp_path, scores={"accuracy": score})
    for site, right in (("small", 1.0), ("large", 1.0)):
        rounds.take(site, VALIDATE_AGGREGATED, 0, **{"loss": right * SIZES[site], "sum/right": right, "sum/all": 4.0})
        rounds.upload(site, pack(ONE))
        rounds.take(site, TRAIN, 0, loss=1.0)
        rounds.take(site, VALIDATE_LOCAL, 0, loss=1.0)
    assert rounds.told(VALIDATE_AGGREGATED) == {
        (0, "accuracy"): 0.25, (0, "loss"): 2.5, (0, "sum/all"): 8.0, (0, "sum/right"): 2.0,
    }  # fmt: skip
    assert rounds.told(VALIDATE_AGGREGATED, "large")[0, "accuracy"] == 0.25
    assert rounds.state.progress().best_score == 0.25
    # Of one site its scores are told, and not its counts, which say how many of each label it has.
    assert rounds.told(VALIDATE_AGGREGATED, "small") == {(0, "accuracy"): 0.25, (0, "loss"): 1.0}


def test_a_rule_by_name(tmp_path: Path) -> None:
    sites = {"a": 1, "b": 1000, "c": 1}
    rounds = Conducted(tmp_path, rule={"name": "median"}, sites=sites)
    for site, value in (("a", 1.0), ("b", 900.0), ("c", 2.0)):
        finish_round(rounds, 0, {"v": MODEL["v"], "w": np.full(2, value, np.float32)}, [site])
    np.testing.assert_array_equal(rounds.model("last")["w"], 2.0)


@dataclass(frozen=True)
class Momentum(Rule):
    """A rule with state: what it kept is half of what the model moves by."""

    of_the_mean: ClassVar[bool] = True
    beta: float = 0.5

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        (average,) = updates
        before = state.arrays.shapes

        def velocity(name: str, place: slice) -> np.ndarray:
            kept = state.arrays.read(name, place) if name in before else np.float32(0)
            return np.float32(self.beta) * kept + average.read(name, place) - state.model.read(name, place)

        arrays = Computed(state.model.shapes, velocity)
        moved = Computed(state.model.shapes, lambda name, place: state.model.read(name, place) + velocity(name, place))
        return State(state.model, arrays, {"rounds": state.numbers.get("rounds", 0) + 1}), moved


@dataclass(frozen=True)
class Faulty(Rule):
    """What an operator may install: it raises, forgets a tensor, or keeps a number that is none of Python's."""

    of_the_mean: ClassVar[bool] = True
    fault: float = 0.0

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        if self.fault == 0:
            raise ZeroDivisionError("in the operator's rule")
        shapes = {"v": state.model.shapes["v"]} if self.fault == 1 else state.model.shapes
        return State(state.model, numbers={"rounds": np.float32(1)}), Computed(shapes, updates[0].read)


@pytest.mark.parametrize(
    ("fault", "words"),
    [(0.0, "in the operator's rule"), (1.0, "tensors of other names or shapes"), (2.0, "float32 is not JSON")],
)
def test_a_rule_at_fault_is_named(fault: float, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "faulty", Faulty)
    rounds = Conducted(tmp_path, rule={"name": "faulty", "fault": fault})
    finish_round(rounds, 0, ONE)
    (failure,) = rounds.failures
    assert failure.startswith("round 1: the rule faulty makes no model of what the sites have sent: ")
    assert words in failure


def test_a_rules_state_belongs_to_its_round_and_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, "momentum", Momentum)
    models = []
    for restarts in (False, True):
        folder = tmp_path / str(restarts)
        folder.mkdir()
        rounds = Conducted(folder, rounds=3, rule={"name": "momentum", "beta": 0.25})
        for number in range(3):
            if restarts:
                rounds.restart()
                finish_round(rounds, number, ONE, ["small"])  # lost with the next kill
                rounds.restart()
            trained = {name: rounds.model("last")[name] + 1 for name in MODEL}
            finish_round(rounds, number, trained)
        models.append(dict(rounds.model("last")))
        kept = rounds.state.rule_file()
        assert kept is not None
        assert kept.metadata == {"numbers": '{"rounds": 3}'}
    assert models[0]["w"].tolist() == [1 + 1.25 + 1.3125] * 2
    for name in MODEL:
        np.testing.assert_array_equal(models[0][name], models[1][name])


def test_what_no_site_has_changed_does_not_travel_again(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, rounds=2)
    for site in SIZES:
        rounds.take(site, VALIDATE_AGGREGATED)
        rounds.upload(site, pack({"w": MODEL["w"] + 1}, unchanged='["v"]'))
        rounds.take(site, TRAIN)
        rounds.take(site, VALIDATE_LOCAL)
    whole, rest = (b"".join(rounds.conductor.model_for(1, held).chunks(0)) for held in (-1, 0))
    (tmp_path / "whole").write_bytes(whole)
    (tmp_path / "rest").write_bytes(rest)
    assert set(ModelFile(tmp_path / "whole")) == {"v", "w"}
    assert set(ModelFile(tmp_path / "rest")) == {"w"}
    assert ModelFile(tmp_path / "rest").metadata == {"unchanged": '["v"]', "best": "0"}
    assert b"".join(rounds.conductor.model_for(1, 0).chunks(10)) == rest[10:]
    assert rounds.conductor.model_for(1, 0).bytes == rest


# Who counts


def test_one_site_closes_no_round_alone(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, sites=FIVE)
    evil = {name: np.full_like(array, 666) for name, array in MODEL.items()}
    finish_round(rounds, 0, evil, ["s0"])
    for number in range(5):
        with pytest.raises(ValueError, match="is none of this round's; assigned: "):
            rounds.take("s0", f"nobody's task {number}", 0, x=1.0)
    for task in ("round", "notice", "aggregator", ""):
        with pytest.raises(ValueError, match="is none of this round's"):
            rounds.take("s0", task, 0, took_part=1.0)
    with pytest.raises(ValueError, match="no part in this experiment"):
        rounds.take("aggregator", TRAIN, 0, loss=1.0)
    finish_round(rounds, 0, evil, ["s0"] * 5)  # again and again
    assert rounds.number == 0
    finish_round(rounds, 0, ONE, [f"s{number}" for number in range(1, 5)])
    assert rounds.number == 1
    np.testing.assert_allclose(rounds.model("last")["w"], (666 + 4) / 5)
    assert [line["metric_value"] for line in rounds.metrics if line["metric_name"] == "took_part"] == [1.0] * 5
    assert {line["task_name"] for line in rounds.metrics} == {"round", TRAIN, VALIDATE_LOCAL, VALIDATE_AGGREGATED}


def test_the_same_answer_counts_once_and_the_first_one_stands(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    rounds.take("small", VALIDATE_AGGREGATED, 0, accuracy=0.25)
    rounds.take("small", VALIDATE_AGGREGATED, 0, accuracy=0.75)
    finish_round(rounds, 0, ONE, ["small"])
    finish_round(rounds, 0, {"v": MODEL["v"], "w": MODEL["w"]}, ["small"])
    assert rounds.number == 0
    finish_round(rounds, 0, ONE, ["large"], accuracy=0.25)
    assert rounds.number == 1
    np.testing.assert_array_equal(rounds.model("last")["w"], 1.0)
    assert rounds.told(VALIDATE_AGGREGATED, "small") == {(0, "accuracy"): 0.25}
    for task in (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL):
        rounds.take("small", task, 0)  # late: it is answered, and changes nothing
    assert rounds.number == 1
    assert rounds.conductor.book.took_part == ()


def test_a_site_that_was_done_gone_and_back(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, sites={"a": 1, "b": 1, "c": 1}, minimum_sites=2)
    finish_round(rounds, 0, ONE, ["a"])
    rounds.leaves("a")
    assert rounds.asks("a").tasks == ()
    finish_round(rounds, 0, ONE, ["b", "c"])
    assert rounds.number == 1
    assert not rounds.failures
    for site in "abc":
        assert rounds.asks(site).tasks == (VALIDATE_AGGREGATED,)
    assert {line["metric_origin"] for line in rounds.metrics if line["metric_name"] == "took_part"} == {"a", "b", "c"}


def test_a_trainer_may_be_heard_before_its_envoy(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, minimum_sites=1)
    rounds.leaves("small")
    assert rounds.asks("small").tasks == (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL)
    rounds.leaves("small")
    finish_round(rounds, 0, ONE, ["small"])  # straight from its training, without a question
    assert rounds.conductor.needs("small")
    finish_round(rounds, 0, ONE, ["large"])
    assert [line["metric_value"] for line in rounds.metrics if line["metric_name"] == "took_part"] == [1.0, 1.0]


def test_who_is_left_out_for_good_is_sent_home(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, minimum_sites=1)
    rounds.leaves("small", "it failed", for_good=True)
    assert rounds.asks("small").over
    assert not rounds.conductor.needs("small")
    with pytest.raises(RoundOver, match="round 1 goes on without site small"):
        rounds.upload("small", pack(ONE))
    rounds.take("small", VALIDATE_AGGREGATED)  # answered, and not counted
    finish_round(rounds, 0, ONE, ["large"])
    assert rounds.told("round", "small") == {(0, "took_part"): 0.0}


def test_too_few_end_it_with_names(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, sites=FIVE, minimum_sites=4)
    finish_round(rounds, 0, ONE, ["s0", "s1"])
    rounds.leaves("s2")
    assert not rounds.failures
    rounds.leaves("s3", "site s3 is gone: not heard of it for 9 s")
    assert rounds.failures == ["site s3 is gone: not heard of it for 9 s"]
    assert rounds.asks("s4").over


def test_the_time_of_a_round_is_up(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rounds = Conducted(tmp_path, rounds=2, minimum_sites=1, round_seconds=0.2)
    rounds.passes(0.3)  # nobody has begun
    assert rounds.number == 0
    rounds.asks("small")
    finish_round(rounds, 0, ONE, ["small"])
    assert rounds.number == 0
    rounds.passes(0.25)
    assert rounds.number == 1
    assert "round 1: closes with small; missing: large" in caplog.text
    rounds.take("large", VALIDATE_LOCAL, 0)  # late
    rounds.asks("large")
    rounds.passes(0.25)
    assert rounds.failures == ["round 2: after 0 s only 0 of at least 1 sites were done; missing: small, large"]


def test_every_close_says_who_took_part(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        play(Conducted(tmp_path), SCORES[:2])
    closes = [record.getMessage() for record in caplog.records if "closes" in record.getMessage()]
    assert closes == [f"round {number}: closes with small, large; missing: none" for number in (1, 2)]


# What is asked


def test_who_has_nothing_to_do_is_told_at_once_when_there_is_something(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    finish_round(rounds, 0, ONE, ["small"])

    async def ask_twice() -> asyncio.Task:
        lost, question = (asyncio.ensure_future(rounds.conductor.assignment("small")) for _ in range(2))
        await asyncio.sleep(0.05)
        assert lost.done()  # a second question of a site replaces the first
        assert not question.done()
        return question

    question = rounds.do(ask_twice())
    finish_round(rounds, 0, ONE, ["large"])
    answer = rounds.do(asyncio.wait_for(question, 1))
    assert (answer.round, answer.tasks, answer.over) == (1, (VALIDATE_AGGREGATED,), False)


def test_a_process_that_takes_over_is_asked_for_the_rest(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    assert rounds.asks("small").tasks == (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL)
    rounds.take("small", VALIDATE_AGGREGATED)
    assert rounds.asks("small").tasks == (TRAIN, VALIDATE_LOCAL)


def test_stopping_sends_everyone_home_and_leaving_does_not(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    finish_round(rounds, 0, ONE, ["small"])
    rounds.conductor.release()
    told = rounds.asks("small")
    assert (told.tasks, told.pause, told.over) == ((), 1, False)
    rounds.conductor.end("cancelled")
    assert rounds.asks("small").over
    with pytest.raises(RoundOver, match="round 1 is over"):
        rounds.upload("small", pack(ONE))


def test_a_round_that_is_over_takes_and_gives_nothing(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    play(rounds, SCORES[:2])
    for call in (
        lambda: rounds.conductor.model_for(0, -1),
        lambda: rounds.upload("small", pack(MODEL), 0),
        lambda: rounds.conductor.received(Address(site="small", round=0)),
    ):
        with pytest.raises(RoundOver, match="round 1 is over"):
            call()


# What is sent


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("task", [VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL])
def test_what_is_no_number_is_refused_with_site_and_metric(value: float, task: str, tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    rounds.upload("small", pack(ONE))
    words = rf"site small, .* of round \d: the metric accuracy is {value}, which is no number"
    with pytest.raises(ValueError, match=words):
        rounds.take("small", task, 0, loss=1.0, accuracy=value)
    assert rounds.metrics == []
    assert task in rounds.asks("small").tasks


def test_metrics_and_sizes_are_bounded(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    with pytest.raises(ValueError, match=f"{MOST_METRICS + 1} metrics; allowed: {MOST_METRICS}"):
        rounds.take("small", VALIDATE_AGGREGATED, 0, **{f"m{number}": 0.0 for number in range(MOST_METRICS + 1)})
    with pytest.raises(ValueError, match="a metric has the name"):
        rounds.take("small", VALIDATE_AGGREGATED, 0, **{"x" * 101: 0.0})
    for size in (0, -1, MOST_WEIGHT + 1):
        rounds.sizes["small"] = size
        with pytest.raises(ValueError, match=f"done on {size} examples; allowed: 1 to {MOST_WEIGHT}"):
            rounds.take("small", VALIDATE_AGGREGATED)
    assert rounds.metrics == []


def test_an_update_may_come_in_parts(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    packed = pack(ONE)
    content = b"".join(packed.chunks())
    first = {"site": "small", "upload": "a", "size": packed.size}
    address = Address(**first)

    def receive(part: bytes, offset: int = 0) -> None:
        rounds.do(rounds.conductor.receive(Address(**first, offset=offset), messages([part]), nothing))

    with pytest.raises(Cut, match="ended after 50 of"):
        receive(content[:50])
    assert rounds.conductor.received(address) == 50
    with pytest.raises(ValueError, match="offset 60 lies behind"):
        receive(content[60:], 60)
    receive(content[30:], 30)
    assert rounds.conductor.received(address) == packed.size
    # Another training of the same round begins anew, and what the first had sent is gone.
    other = Address(site="small", upload="b", size=packed.size)
    assert rounds.conductor.received(other) == 0
    rounds.upload("small", packed, upload="b")
    assert rounds.updates == ["small-b.safetensors"]


BAD = [
    ({"w": MODEL["w"]}, r"not the model's; they differ in \['v'\]"),
    ({**MODEL, "x": MODEL["w"]}, r"not the model's; they differ in \['x'\]"),
    ({**MODEL, "w": np.zeros(3, np.float32)}, r"tensor w has shape \(3,\); the model's is \(2,\)"),
    ({**MODEL, "w": np.array([0, np.nan], np.float32)}, "tensor w holds values that are not finite"),
    ({**MODEL, "v": MODEL["v"] * np.inf}, "tensor v holds values that are not finite"),
]


@pytest.mark.parametrize(("tensors", "complaint"), BAD)
def test_what_is_no_update_of_this_model_is_refused(
    tensors: dict[str, np.ndarray], complaint: str, tmp_path: Path
) -> None:
    rounds = Conducted(tmp_path)
    with pytest.raises(ValueError, match=complaint):
        rounds.upload("small", pack(tensors))
    with pytest.raises(UpdateLost, match="the trained model has not arrived"):
        rounds.take("small", TRAIN)
    assert rounds.updates == []


def test_bytes_that_are_no_update_are_refused(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    for number, content in enumerate(
        (b"\0" * 100, b"\xff" * 100, b"{}" * 60, (10).to_bytes(8, "little") + b'{"a": [1]}')
    ):
        address = Address(site="small", upload=f"a{number}", size=len(content))
        with pytest.raises(ValueError, match="not a safetensors file"):
            rounds.do(rounds.conductor.receive(address, messages([content]), nothing))
        with pytest.raises(ValueError, match="has more than"):
            rounds.do(rounds.conductor.receive(address, messages([content[:5], content]), nothing))
    for metadata in ({"unchanged": "3"}, {"unchanged": "[[]]"}, {"scales": "[1]"}, {"scales": '{"w": "x"}'}):
        with pytest.raises(ValueError, match="metadata cannot be read"):
            rounds.upload("small", Packed({name: Piece.of(array) for name, array in ONE.items()}, metadata))
    for size in (0, -1, 2**40):
        with pytest.raises(ValueError, match=f"the update has {size} bytes"):
            rounds.upload("small", pack(ONE), size=size)


def spoilt(kind: str) -> list[bytes]:
    """Bytes of an update that is none."""
    bad = b"".join(pack({name: array * np.nan for name, array in ONE.items()}).chunks())
    kinds = {"shorter": [bad[:-1]], "whole": [bad], "longer": [bad, b"x"], "in pieces": [bad[:20], bad[20:]]}
    return kinds.get(kind, [])


@pytest.mark.parametrize("kind", ["shorter", "whole", "longer", "in pieces", "none"])
@pytest.mark.parametrize("upload", ["ofsmall", "another"])
@pytest.mark.parametrize("counted", [False, True])
def test_what_was_checked_is_what_is_averaged(kind: str, upload: str, counted: bool, tmp_path: Path) -> None:
    """Whatever comes after a checked update, of the same bytes or of others, before or after it counts."""
    rounds = Conducted(tmp_path)
    good = pack(ONE)
    rounds.upload("small", good)
    rounds.take("small", VALIDATE_AGGREGATED)
    if counted:
        rounds.take("small", TRAIN)
    address = Address(site="small", upload=upload, size=good.size)
    with suppress(ValueError, Cut):
        rounds.do(rounds.conductor.receive(address, messages(spoilt(kind)), nothing))
    if not counted:
        rounds.take("small", TRAIN)
    rounds.take("small", VALIDATE_LOCAL)
    finish_round(rounds, 0, ONE, ["large"])
    for name, array in ONE.items():
        np.testing.assert_array_equal(rounds.model("last")[name], array)


def test_later_uploads_replace_earlier_ones_until_the_training_counts(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    for step, upload in ((1, "a"), (3, "b")):
        rounds.upload("small", pack({name: array + step for name, array in MODEL.items()}), upload=upload)
    rounds.take("small", TRAIN)
    rounds.upload("small", pack({name: array + 9 for name, array in MODEL.items()}), upload="c")
    rounds.take("small", VALIDATE_AGGREGATED)
    rounds.take("small", VALIDATE_LOCAL)
    finish_round(rounds, 0, {name: array + 3 for name, array in MODEL.items()}, ["large"])
    np.testing.assert_array_equal(rounds.model("last")["w"], 3.0)
    assert rounds.updates == []


def test_the_disk_holds_a_few_updates_of_the_mean_and_all_of_the_median(tmp_path: Path) -> None:
    sites = {f"s{number}": number + 1 for number in range(4 * KEPT)}
    sent = {site: {name: array + size for name, array in MODEL.items()} for site, size in sites.items()}
    for name in ("mean", "median"):
        (tmp_path / name).mkdir()
        rounds = Conducted(tmp_path / name, sites=sites, rule={"name": name})
        most = 0
        for site, trained in sent.items():
            rounds.upload(site, pack(trained))
            rounds.take(site, TRAIN)
            most = max(most, sum(file.endswith(".safetensors") for file in rounds.updates))
        assert most <= KEPT + 1 if name == "mean" else most == len(sites)
        for site in sites:
            rounds.take(site, VALIDATE_LOCAL)
            rounds.take(site, VALIDATE_AGGREGATED)
        assert rounds.number == 1
        if name == "mean":
            wanted = mean([trained["w"] for trained in sent.values()], list(sites.values()))
            np.testing.assert_array_equal(rounds.model("last")["w"], wanted)


def test_bounded_and_capped_updates_are_those_of_the_rule_in_memory(tmp_path: Path) -> None:
    """More of them than are kept: what was moved nearer is added up and deleted like any other."""
    sites = {f"s{number}": number + 1 for number in range(2 * KEPT)}
    sent = {site: {name: array + size for name, array in MODEL.items()} for site, size in sites.items()}
    rounds = Conducted(tmp_path, sites=sites, rule={"name": "mean", "max_update_norm": 4.0, "weight_cap": 3})
    for site, trained in sent.items():
        rounds.upload(site, pack(trained))
        rounds.take(site, TRAIN)
        assert sum(file.endswith(".safetensors") for file in rounds.updates) <= KEPT + 1
    for site in sites:
        rounds.take(site, VALIDATE_LOCAL)
        rounds.take(site, VALIDATE_AGGREGATED)
    state = next_state(Mean(max_update_norm=4.0, weight_cap=3), begin(MODEL), list(sent.values()), list(sites.values()))
    for name, array in state.model.items():
        np.testing.assert_array_equal(rounds.model("last")[name], array)


def test_a_rule_that_needs_them_all_is_given_bounded_ones(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, sites=dict.fromkeys("abc", 1), rule={"name": "median", "max_update_norm": 0.5})
    for site, step in zip("abc", (1, 2, -3), strict=True):
        rounds.upload(site, pack({name: array + step for name, array in MODEL.items()}))
        rounds.take(site, TRAIN)
    for site in "abc":
        rounds.take(site, VALIDATE_LOCAL)
        rounds.take(site, VALIDATE_AGGREGATED)
    moved = [rounds.model("last")[name] - MODEL[name] for name in MODEL]
    length = np.sqrt(sum(float((each.astype(float) ** 2).sum()) for each in moved))
    assert length == pytest.approx(0.5, rel=1e-5)


# Uploads side by side


class Line:
    """A site's line: what is put on it comes, and nothing else does."""

    def __init__(self, *content: bytes) -> None:
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        for each in content:
            self._queue.put_nowait(each)

    def put(self, content: bytes | None) -> None:
        self._queue.put_nowait(content)

    async def __aiter__(self):
        while (content := await self._queue.get()) is not None:
            yield content


def begun(rounds: Conducted, site: str, upload: str, line: Line, size: int) -> asyncio.Task:
    address = Address(site=site, upload=upload, size=size)
    return asyncio.ensure_future(rounds.conductor.receive(address, aiter(line), nothing))


def test_silent_uploads_hold_nobody_up(tmp_path: Path) -> None:
    """Many of one site, which replace each other, and more of other sites than go on at a time."""
    sites = {f"s{number}": 1 for number in range(6)}
    rounds = Conducted(tmp_path, sites=sites)
    packed = pack(ONE)
    whole = b"".join(packed.chunks())

    async def story() -> None:
        of_one = [begun(rounds, "s0", f"u{number}", Line(), packed.size) for number in range(20)]
        others = [begun(rounds, f"s{number}", "u", Line(whole[:10]), packed.size) for number in range(1, 5)]
        await asyncio.sleep(0.1)
        ended = [task.exception() for task in of_one[:-1]]
        assert all(isinstance(error, Replaced) for error in ended)
        honest = begun(rounds, "s5", "u", Line(whole), packed.size)
        await asyncio.wait_for(honest, 5)
        for task in (of_one[-1], *others):
            with pytest.raises(Silent, match="nothing has come of the update"):
                await asyncio.wait_for(task, 5)

    rounds.do(story())
    assert rounds.conductor.received(Address(site="s3", upload="u", size=packed.size)) == 10
    rounds.upload("s3", packed, upload="u", offset=10)
    rounds.take("s3", TRAIN)


def test_so_many_uploads_at_a_time(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, sites={f"s{number}": 1 for number in range(5)})
    packed = pack(ONE)
    whole = b"".join(packed.chunks())

    async def story() -> list[int]:
        lines = [Line(whole[:10]) for _ in range(5)]
        tasks = [begun(rounds, f"s{n}", "u", line, packed.size) for n, line in enumerate(lines)]
        read = []
        for number, line in enumerate(lines):
            await asyncio.sleep(0.01)
            arrived = [rounds.conductor.received(Address(site=f"s{n}", upload="u")) for n in range(5)]
            read.append(sum(each > 0 for each in arrived))
            line.put(whole[10:])
            line.put(None)
            await tasks[number]
            rounds.conductor.take(Results(f"s{number}", 0, TRAIN, 1, {}))  # its place is free when it counts
        return read

    assert rounds.do(story()) == [2, 2, 2, 2, 1]  # of five that have begun


def test_an_upload_is_given_up_when_its_round_is_over(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path, minimum_sites=1)
    packed = pack(ONE)
    line = Line(b"".join(packed.chunks())[:10])

    async def begin() -> asyncio.Task:
        task = begun(rounds, "small", "u", line, packed.size)
        await asyncio.sleep(0.01)
        return task

    task = rounds.do(begin())
    rounds.leaves("small")
    finish_round(rounds, 0, ONE, ["large"])
    line.put(b"more")
    with pytest.raises(RoundOver, match="round 1 is over"):
        rounds.do(task)
    assert not rounds.failures


def test_a_call_that_breaks_off_lets_go(tmp_path: Path) -> None:
    rounds = Conducted(tmp_path)
    packed = pack(ONE)
    whole = b"".join(packed.chunks())

    async def story() -> None:
        for number in range(10):
            task = begun(rounds, "small", "u", Line(whole[: 10 + number]), packed.size)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    rounds.do(story())
    rounds.upload("small", packed, upload="u")
    rounds.take("small", TRAIN)


# All of it, in any order


class Story(RuleBasedStateMachine):
    """Sites that are honest, late, mistaken or hostile, and a director that is killed, beside plain arithmetic."""

    SITES: ClassVar[dict[str, int]] = {"a": 1, "b": 3, "c": 70_000}
    ROUNDS: ClassVar[int] = 3

    @initialize(minimum=st.integers(1, 3))
    def begin(self, minimum: int) -> None:
        self.folder = tempfile.TemporaryDirectory()
        self.minimum = minimum
        self.rounds = Conducted(Path(self.folder.name), self.ROUNDS, sites=self.SITES, minimum_sites=minimum)
        self.round = self.uploads = 0
        self.expected = MODEL["w"]
        self.begin_round()

    def begin_round(self) -> None:
        self.whole: dict[str, np.ndarray] = {}  # what each site has sent last
        self.counted: dict[str, np.ndarray] = {}

    def teardown(self) -> None:
        if hasattr(self, "rounds"):
            self.rounds.runner.close()
            self.folder.cleanup()

    @rule(site=st.sampled_from("abc"), value=st.floats(-100, 100, width=32), number=st.sampled_from([0, 0, 0, -1, 1]))
    def sends(self, site: str, value: float, number: int) -> None:
        self.uploads += 1
        trained = np.full(2, value, np.float32)
        try:
            update = pack({"v": MODEL["v"], "w": trained})
            self.rounds.upload(site, update, self.round + number, upload=f"u{self.uploads}")
        except (RoundOver, ValueError):
            book = self.rounds.conductor.book
            assert number or book.phase is not Phase.OPEN or site in book.out or site not in book.asked
            return
        if site not in self.counted:
            self.whole[site] = trained

    @rule(site=st.sampled_from("abc"), broken=st.sampled_from([tensors for tensors, _ in BAD]))
    def sends_nonsense(self, site: str, broken: dict[str, np.ndarray]) -> None:
        self.uploads += 1
        with suppress(RoundOver, ValueError):
            self.rounds.upload(site, pack(broken), self.round, upload=f"u{self.uploads}")
            assert site in self.counted

    @rule(
        site=st.sampled_from("abc"),
        task=st.sampled_from([TRAIN, TRAIN, VALIDATE_LOCAL, VALIDATE_AGGREGATED, "made up"]),
        number=st.sampled_from([0, 0, 0, -1, 1]),
    )
    def answers(self, site: str, task: str, number: int) -> None:
        book = self.rounds.conductor.book
        try:
            taken = book.expects(site, task, self.round + number) is Reply.TAKEN
        except ValueError:
            taken = False
        if taken and task == TRAIN and site in self.whole:
            self.counted[site] = self.whole[site]
        with suppress(ValueError, UpdateLost):
            self.rounds.take(site, task, self.round + number)
        self.follow()

    @rule(site=st.sampled_from("abc"), value=st.floats(-100, 100, width=32), times=st.integers(1, 2))
    def does_all(self, site: str, value: float, times: int) -> None:
        """An honest site, which may send everything again."""
        number, tasks = self.round, self.rounds.asks(site).tasks
        for task in tasks * times:
            if task == TRAIN:
                self.sends(site, value, number - self.round)
            self.answers(site, task, number - self.round)

    @rule(site=st.sampled_from("abc"), for_good=st.sampled_from([False, False, False, True]))
    def leaves(self, site: str, for_good: bool) -> None:
        self.rounds.leaves(site, f"{site} left", for_good)
        self.follow()

    @rule()
    def is_killed(self) -> None:
        """What is on disk is as it was, and everybody is counted on."""
        if not self.rounds.failures and not self.rounds.finished:
            self.rounds.restart()
            self.begin_round()

    def follow(self) -> None:
        """Where a round has closed, the next model is the mean of what counted in it, to the bit."""
        if self.rounds.number == self.round:
            return
        assert self.rounds.number == self.round + 1
        took_part = [
            line["metric_origin"] for line in self.rounds.metrics
            if line["metric_name"] == "took_part" and line["round"] == self.round and line["metric_value"]
        ]  # fmt: skip
        if self.round < self.ROUNDS:
            assert sorted(took_part) == sorted(self.counted)
            assert len(took_part) >= self.minimum
            self.expected = mean(list(self.counted.values()), [self.SITES[site] for site in self.counted])
        self.round += 1
        self.begin_round()

    @invariant()
    def is_sound(self) -> None:
        if not hasattr(self, "rounds"):
            return
        rounds = self.rounds
        np.testing.assert_array_equal(rounds.model("last")["w"], self.expected)
        assert rounds.state.progress().next_round == self.round == rounds.number
        book = rounds.conductor.book
        assert (book.phase is Phase.FAILED) == bool(rounds.failures)
        assert book.phase is not Phase.CLOSING
        told = [(*tuple(line.values())[:3], line["round"]) for line in rounds.metrics]
        assert len(told) == len(set(told)), "told twice"


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
