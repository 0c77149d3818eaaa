"""A director that loses its power at any moment goes on to the same weights."""

import itertools
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from power import Disk, Keeps, Step, recorded, write

from federation.director.state import ExperimentState, Submitted, clear_leftovers, found
from federation.wire import files
from federation.wire.models import round_path, rule_path, save, updates_folder
from federation.wire.models import write as write_tensors
from rules.contract import InMemory

ROUNDS = 3
ABOUT = Submitted("one", ("small", "large"), "ada", 1.0, ROUNDS)
FIRST = {"v": np.arange(6, dtype=np.float32).reshape(2, 3), "w": np.ones(2, np.float32)}


def submit(root: Path) -> ExperimentState:
    outside = root.parent / "outside"
    shutil.rmtree(outside, ignore_errors=True)
    outside.mkdir()
    shutil.make_archive(str(outside / "experiment"), "zip", outside)
    save(outside / "model", FIRST)
    return ExperimentState.create(root, outside / "experiment.zip", outside / "model", ABOUT)


def go_on(state: ExperimentState, kept: Callable[[int], None] = lambda number: None) -> None:
    """What is left of an experiment whose rule remembers (momentum); its last round only measures."""
    if state.progress().over:
        return
    state.end("in_progress")
    for number in range(state.progress().next_round, ROUNDS + 1):
        model, momentum = state.last_model(), InMemory(state.rule_file() or {})
        progress = state.progress()
        score = float(np.sin(number))
        for site in ABOUT.collaborators:
            state.add_metrics([{"round": number, "origin": site, "value": float(model["w"][0])}])
        best = progress.best_score is None or score >= progress.best_score
        best_round, best_score = (number, score) if best else (progress.best_round, progress.best_score)
        if number == ROUNDS:
            state.save_round(next_round=number + 1, last_round=number, best_round=best_round, best_score=best_score)
            kept(number + 1)
            break
        if not updates_folder(state.folder).exists():
            files.make_folder(updates_folder(state.folder))
        files.append(updates_folder(state.folder) / f"{number}-small-x.safetensors", b"what a site has sent")
        for name in model:
            momentum[name] = np.float32(0.9) * momentum.get(name, np.float32(0)) + np.sin(model[name] + number)
        save(round_path(state.folder, number + 1), {name: model[name] + momentum[name] for name in model})
        write_tensors(rule_path(state.folder, number + 1), momentum, {"numbers": json.dumps({"steps": number + 1})})
        state.save_round(
            next_round=number + 1, last_round=number + 1, best_round=best_round, best_score=best_score, rule=True
        )
        state.forget_updates()
        kept(number + 1)
    state.end("finished")
    kept(ROUNDS + 2)


def result(state: ExperimentState) -> dict[str, object]:
    """All that anybody can have of an experiment that is over."""
    best = state.best_model()
    assert best is not None
    progress = state.progress()
    return {
        "last": {name: array.tobytes() for name, array in state.last_model().items()},
        "best": {name: array.tobytes() for name, array in best.items()},
        "rule": {name: array.tobytes() for name, array in (state.rule_file() or {}).items()},
        "metrics": list(state.all_metrics()),
        "progress": (progress.status, progress.next_round, progress.best_round, progress.best_score),
    }


class Run:
    """An undisturbed experiment: its file operations, what was promised after how many of them, and its result."""

    def __init__(self, folder: Path) -> None:
        root = folder / "state"
        root.mkdir(parents=True)
        self.empty = folder / "empty"
        self.empty.mkdir()
        self.promises: list[tuple[int, int]] = []
        with recorded(root) as recorder:
            state = submit(root)
            self.promises.append((len(recorder.steps), 0))
            go_on(state, lambda number: self.promises.append((len(recorder.steps), number)))
        self.steps: list[Step] = recorder.steps
        self.result = result(state)

    def promised(self, steps: int) -> int | None:
        """The round that a power cut after so many operations may not take away; None before the submission's end."""
        return max((number for count, number in self.promises if count <= steps), default=None)


@pytest.fixture(scope="module")
def memory() -> Iterator[Path]:
    """A folder in memory, where there is one: the disk of these tests is simulated, and a real one is slow."""
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if os.access(shared, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def run(memory: Path) -> Run:
    return Run(memory / "run")


def all_of(names: bool, data: bool) -> Keeps:
    return lambda kind, count: [names if kind == "names" else data] * count


OUTCOMES: dict[str, tuple[Keeps, Callable[[bytes], bytes]]] = {
    "all is lost": (all_of(False, False), bytes),
    "nothing is lost": (all_of(True, True), bytes),
    "names without data": (all_of(True, False), bytes),
    "data without names": (all_of(False, True), bytes),
    "the last piece is torn": (all_of(True, True), lambda piece: piece[: len(piece) // 2]),
    "the last piece is zeros": (all_of(True, True), lambda piece: bytes(len(piece))),
    "the last change only": (lambda kind, count: [False] * (count - 1) + [True] * min(count, 1), bytes),
}


def cut(disk: Disk, root: Path, outcome: tuple[Keeps, Callable[[bytes], bytes]]) -> None:
    shutil.rmtree(root, ignore_errors=True)
    write(disk.left(*outcome), root)


def started_again(root: Path, promised: int | None) -> ExperimentState | None:
    """What a director does at its start; the experiment, or None where the submission was not yet promised."""
    clear_leftovers(root)
    readable, unreadable = found(root)
    assert unreadable == {}
    if promised is None and not readable:
        return None
    (state,) = readable
    assert (promised or 0) <= reached(state) <= (promised or 0) + 1
    if not state.progress().over:
        assert state.resume() is None
    return state


def reached(state: ExperimentState) -> int:
    """The next round; of what is over the number after the last."""
    progress = state.progress()
    return ROUNDS + 2 if progress.over else progress.next_round


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_power_cut_at_any_moment_changes_nothing(run: Run, outcome: str, memory: Path) -> None:
    disk, root = Disk(run.empty), memory / "state"
    seen, accepted = set(), 0
    for number, step in enumerate(itertools.chain([None], run.steps)):
        if step:
            disk.do(step)
        promised, left = run.promised(number), disk.left(*OUTCOMES[outcome])
        accepted += promised is not None
        if (what := (promised, *sorted(left.items()))) in seen:
            continue
        seen.add(what)
        cut(disk, root, OUTCOMES[outcome])
        with recorded(root):
            if state := started_again(root, promised):
                go_on(state)
                assert result(state) == run.result
    assert accepted == len(run.steps) - run.promises[0][0] + 1 > 50
    assert len(seen) > ROUNDS


@given(seed=st.integers(0, 2**32), first=st.floats(0, 1), second=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_power_cut_that_takes_any_part_and_another_one_while_it_goes_on(
    run: Run, memory: Path, seed: int, first: float, second: float
) -> None:
    random = Random(seed)

    def outcome() -> tuple[Keeps, Callable[[bytes], bytes]]:
        share = random.choice((0.1, 0.5, 0.9))
        return (
            lambda kind, count: [random.random() < share for _ in range(count)],
            lambda piece: piece[: random.randint(0, len(piece))] + bytes(random.choice((0, len(piece)))),
        )

    steps = int(first * len(run.steps))
    disk, root, again = Disk(run.empty), memory / "first", memory / "second"
    for step in run.steps[:steps]:
        disk.do(step)
    cut(disk, root, outcome())
    disk = Disk(root)  # what is there after a power cut is on disk
    with recorded(root) as recorder:
        state = started_again(root, run.promised(steps))
        if state is None:
            return
        promises = [(0, reached(state))]
        go_on(state, lambda number: promises.append((len(recorder.steps), number)))
        assert result(state) == run.result
    more = int(second * len(recorder.steps))
    for step in recorder.steps[:more]:
        disk.do(step)
    cut(disk, again, outcome())
    with recorded(again):
        state = started_again(again, max(number for count, number in promises if count <= more))
        assert state is not None
        go_on(state)
        assert result(state) == run.result


def test_the_replay_finds_what_is_not_synced(run: Run, memory: Path) -> None:
    """The same operations without their syncs do lose rounds: the tests above can fail."""
    disk, root = Disk(run.empty), memory / "state"
    for step in run.steps:
        if step.what != "sync":
            disk.do(step)
    cut(disk, root, OUTCOMES["names without data"])
    assert found(root)[1]["one"].startswith("experiment.json: ")
    disk = Disk(run.empty)
    for step in run.steps:
        if step.what != "sync_folder":
            disk.do(step)
    cut(disk, root, OUTCOMES["all is lost"])
    assert found(root) == ([], {})


def test_the_order_of_a_round(run: Run) -> None:
    """What a person would look for: model, rule, metrics; then their names; then the progress; then older ones go."""
    begin, end = run.promises[1][0], run.promises[2][0]  # the second round
    told = [
        (step.what, step.path.removeprefix("one/"), step.other.removeprefix("one/")) for step in run.steps[begin:end]
    ]
    progress = told.index(("rename", "one/.progress.json".removeprefix("one/"), "progress.json"))
    named = max(place for place, each in enumerate(told[:progress]) if each[:2] == ("sync_folder", "one"))
    for name in ("round-2.safetensors", "rule-2.safetensors", "metrics.jsonl"):
        assert max(place for place, each in enumerate(told) if each[:2] == ("sync", name)) < named
    assert told[progress + 1][:2] == ("sync_folder", "one")
    gone = [place for place, each in enumerate(told) if each[0] == "unlink" and each[1].startswith("r")]
    assert [told[place][1] for place in gone] == ["round-0.safetensors"]
    assert min(gone) > progress + 1
    assert json.dumps(told)  # plain values, as the trace of a real director is compared with them
