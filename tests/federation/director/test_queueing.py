"""The queue over experiments of which only the round is missing: they start, wait for owners, give way and end here."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from federation.director.queueing import Queue
from federation.director.registry import ExperimentsRegistry
from federation.director.running import RunningExperiment
from federation.director.state import ExperimentState, Submitted
from federation.wire.models import save

DIGEST = "a" * 64


class Experiment(RunningExperiment):
    """Starts without an aggregator, and gives way as long as any owner has not decided."""

    @property
    def gives_way(self) -> bool:
        return self.status == "in_progress" and bool(self.awaiting)

    def give_way(self) -> None:
        self.status, self.started = "pending", False

    def begin(self) -> None:
        self.status, self.started = "in_progress", True


class Federation:
    """A queue, and what a director and its sites do with it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.experiments = ExperimentsRegistry()
        self.queue = Queue(self.experiments)

    def submit(self, name: str, *sites: str) -> Experiment:
        outside = self._folder / "outside"
        outside.mkdir(exist_ok=True)
        shutil.make_archive(str(outside / "experiment"), "zip", outside)
        save(outside / "model", {"v": np.zeros(1, np.float32)})
        about = Submitted(name, sites, "ada", float(len(self.experiments)))
        state = ExperimentState.create(self._folder, outside / "experiment.zip", outside / "model", about)
        experiment = Experiment(state)
        self.experiments.add(experiment)
        return experiment

    def turn(self) -> list[str]:
        started = self.queue.next()
        for each in started:
            each.begin()  # type: ignore[attr-defined]
        return [each.name for each in started]

    def end(self, name: str) -> list[str]:
        self.experiments[name].fail("over")
        return self.turn()


def queue_test(test: Callable[[Federation], None]) -> Callable[[Path], None]:
    """A test in an event loop, which experiments need."""

    def run(tmp_path: Path) -> None:
        async def body() -> None:
            test(Federation(tmp_path))

        made: Coroutine[Any, Any, None] = body()
        asyncio.run(made)

    return run


@queue_test
def test_sites_work_side_by_side(all_: Federation) -> None:
    all_.submit("one", "a", "b")
    all_.submit("two", "b")
    all_.submit("three", "c")
    assert all_.turn() == ["one", "three"]
    assert [all_.queue.work(site) for site in "abcd"] == ["one", "one", "three", ""]
    assert all_.queue.status(all_.experiments["two"]) == "pending, 1 before it"
    assert all_.end("one") == ["two"]
    assert [all_.queue.work(site) for site in "abc"] == ["", "two", "three"]
    assert all_.queue.is_over("one", "b")
    assert not all_.queue.is_over("two", "b")
    assert all_.queue.is_over("never", "b")


@queue_test
def test_a_site_with_slots_works_on_several(all_: Federation) -> None:
    for name in ("one", "two", "three"):
        all_.submit(name, "a")
    all_.queue.hear("a", 2)
    assert all_.queue.changed.is_set()
    assert all_.turn() == ["one", "two"]
    assert all_.queue.work("a") == "one"
    assert all_.queue.work("a", {"one"}) == "two"
    assert all_.queue.work("a", {"one", "two"}) == ""
    assert not all_.queue.is_over("one", "a")  # other work is no reason to let it go
    assert all_.end("one") == ["three"]
    all_.queue.hear("a", 1)  # fewer: nobody is stopped, and nobody starts
    all_.submit("four", "a")
    assert all_.end("two") == []
    assert all_.end("three") == ["four"]


@queue_test
def test_what_waits_for_an_owner_holds_nobody_up(all_: Federation) -> None:
    first = all_.submit("first", "a", "b")
    all_.submit("second", "a", "b")
    assert all_.turn() == ["first"]
    assert first.await_approval("b", DIGEST)
    assert not first.await_approval("b", DIGEST)  # no news
    assert all_.queue.status(first) == "in_progress, waiting for approval at b"
    assert all_.turn() == ["second"]
    assert all_.queue.status(first) == "pending, waiting for approval at b"
    # The other site lets it go; the one whose owner decides keeps it in hand, and works on the second one.
    assert all_.queue.is_over("first", "a")
    assert not all_.queue.is_over("first", "b")
    assert all_.queue.work("b", {"first"}) == "second"
    # The owner decides while the second one runs: the first has its turn before a third one.
    all_.submit("third", "a", "b")
    first.await_approval("b", None)
    assert all_.queue.is_over("first", "b")  # it is told of it again when its turn comes
    assert all_.turn() == []
    assert all_.queue.status(first) == "pending, 1 before it"
    assert all_.end("second") == ["first"]
    assert all_.queue.work("a") == all_.queue.work("b") == "first"
    assert all_.end("first") == ["third"]


@queue_test
def test_nobody_stops_for_an_owner_while_no_slot_is_needed(all_: Federation) -> None:
    first = all_.submit("first", "a", "b")
    assert all_.turn() == ["first"]
    first.await_approval("b", DIGEST)
    assert all_.turn() == []
    assert first.status == "in_progress"
    first.await_approval("b", None)
    all_.submit("second", "a")
    assert all_.turn() == []  # it is no longer in doubt, and holds its slots


@queue_test
def test_many_that_wait_for_owners_hold_nobody_up(all_: Federation) -> None:
    for number in range(20):
        waits = all_.submit(f"waits {number}", "a", "b")
        assert all_.turn() == [waits.name]
        waits.await_approval("b", DIGEST)
    all_.submit("runs", "a", "b")
    assert all_.turn() == ["runs"]
    assert {each.status for each in all_.experiments.values() if each.name != "runs"} == {"pending"}


@queue_test
def test_what_was_under_way_when_the_director_was_stopped_goes_on_at_once(all_: Federation) -> None:
    for name in ("one", "two"):
        all_.submit(name, "a").status = "in_progress"
    assert all_.turn() == ["one", "two"]
    assert all_.turn() == []


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_the_first_come_is_the_first_served(tmp_path: Path, order: str) -> None:
    async def run() -> None:
        all_ = Federation(tmp_path)
        for name in order:
            all_.submit(name, "site")
        assert all_.turn() == [order[0]]
        assert all_.end(order[0]) == [order[1]]

    asyncio.run(run())
