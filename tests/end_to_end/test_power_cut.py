"""A real director under strace: what it asked of the disk, and what a power cut at any moment would have left."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from power import CALLS, Disk, Keeps, Step, traced, write
from processes import PYTHON, ToyFederation
from test_federation import submit

from federation.director.state import ExperimentState, clear_leftovers, found
from federation.notebook.handle import FederationHandle

pytestmark = pytest.mark.slow
ROUNDS = 4


class TracedFederation(ToyFederation):
    """Its director's calls are written down."""

    def start_director(self, port: int = 0) -> int:
        self.trace = self.logs / "trace"
        super_start = self.start

        def start(name: str, *command: str | Path, **more: object) -> object:
            strace = ("strace", "-f", "--seccomp-bpf", "-y", "-s", "99999999", "-e", f"trace={CALLS}", "-o", self.trace)
            return super_start(name, *(strace if name == "director" else ()), *command, **more)  # type: ignore[arg-type]

        self.start = start  # type: ignore[method-assign, assignment]
        try:
            return super().start_director(port)
        finally:
            del self.start  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TracedFederation]:
    try:
        subprocess.run(["strace", "-f", "--seccomp-bpf", "-o", "/dev/null", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"strace cannot be used here: {error}")
    federation = TracedFederation(tmp_path_factory.mktemp("power"))
    yield federation
    federation.stop()


@pytest.fixture(scope="module")
def steps(toys: TracedFederation) -> list[Step]:
    """An experiment of which the director was killed in the last round of training, as the disk saw it."""
    experiment = submit(toys, "cut", rounds=ROUNDS, sleep_on=1.0, in_round=ROUNDS - 1, seconds=6)
    for metric in experiment.metrics():
        if (metric.site, metric.task, metric.round) == ("site2", "validate_local", ROUNDS):
            break
    tracer = toys.running["director"].pid
    children = Path(f"/proc/{tracer}/task/{tracer}/children").read_text().split()
    subprocess.run(["kill", "-9", *children], check=True)
    toys.wait("director")
    return traced(toys.trace, toys.logs, ("state", "tmp"))


def keeps(names: bool, data: bool) -> Keeps:
    return lambda kind, count: [names if kind == "names" else data] * count


OUTCOMES = {
    "all is lost": (keeps(False, False), bytes),
    "nothing is lost": (keeps(True, True), bytes),
    "names without data": (keeps(True, False), bytes),
    "the last piece is torn": (keeps(True, True), lambda piece: piece[: len(piece) // 2]),
    "the last change only": (lambda kind, count: [False] * (count - 1) + [True] * min(count, 1), bytes),
}


def base(toys: TracedFederation, folder: Path) -> Disk:
    """The disk before the director was started."""
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "tmp").mkdir(parents=True)
    return Disk(folder)


def plain(toys: ToyFederation) -> tuple[str | Path, ...]:
    """A director without strace."""
    config = toys.logs / "director.yaml"
    return PYTHON, "-m", "federation.director", "--config", config, "--port", str(toys.port)


def lines(state: ExperimentState, rounds: int) -> list[str]:
    """The metrics of the rounds before one, in any order: the two sites are as fast as they are."""
    return sorted(json.dumps(line, sort_keys=True) for line in state.all_metrics() if line["round"] < rounds)


@pytest.mark.parametrize("outcome", OUTCOMES)
def test_a_power_cut_at_any_moment(toys: TracedFederation, steps: list[Step], outcome: str, tmp_path: Path) -> None:
    (whole,), _ = found(toys.logs / "state")
    assert whole.progress().next_round == ROUNDS - 1
    disk, root = base(toys, tmp_path / "base"), tmp_path / "left"
    seen, reached = set(), [-1]
    for step in steps:
        disk.do(step)
        if step.path.startswith("state/cut/updates"):
            continue
        left = disk.left(*OUTCOMES[outcome])  # type: ignore[arg-type]
        image = {path: content for path, content in left.items() if path.startswith("state/")}
        if (what := tuple(sorted(image.items()))) in seen:
            continue
        seen.add(what)
        shutil.rmtree(root, ignore_errors=True)
        write({"state": None, **image}, root)
        clear_leftovers(root / "state")
        readable, unreadable = found(root / "state")
        assert unreadable == {}
        if not readable:
            assert reached == [-1]
            continue
        (state,) = readable
        assert state.resume() is None
        progress = state.progress()
        reached.append(progress.next_round)
        assert reached[-2] <= reached[-1] <= reached[-2] + 1
        np.testing.assert_array_equal(state.last_model()["vector"], np.full(4, 1.5 * progress.last_round, np.float32))
        assert lines(state, 99) == lines(whole, progress.next_round)
    assert reached[-1] == ROUNDS - 1
    assert set(range(ROUNDS)) <= set(reached)


def test_it_goes_on_from_what_a_power_cut_has_left(toys: TracedFederation, steps: list[Step], tmp_path: Path) -> None:
    disk = base(toys, tmp_path / "base")
    for step in steps:
        disk.do(step)
    left = disk.left(*OUTCOMES["all is lost"])  # type: ignore[arg-type]
    shutil.rmtree(toys.logs / "state")
    state = {path.removeprefix("state/"): content for path, content in left.items() if path.startswith("state/")}
    write(state, toys.logs / "state")
    toys.start("director", *plain(toys), env=toys.env)
    toys.wait_for("director", "listening on")
    assert "experiment cut: goes on with round 3" in toys.log("director")
    experiment = FederationHandle("localhost", toys.port).attach("cut")
    metrics = list(experiment.metrics())
    np.testing.assert_array_equal(experiment.last_weights()["vector"], np.full(4, 1.5 * ROUNDS, np.float32))
    told = [(m.round, m.site, m.task, m.metric) for m in metrics]
    assert len(set(told)) == len(told)
    assert {m.round for m in metrics if (m.site, m.task) == ("site2", "train")} == set(range(1, ROUNDS + 1))
    assert experiment.status() == "finished"


def test_a_model_that_is_damaged_all_the_same_costs_one_round(toys: TracedFederation) -> None:
    """Also where the sites have trained the next one already: they go back to the optimizer's state of that time."""
    experiment = submit(toys, "back", rounds=5, momentum=0.5, sleep_on=1.0, in_round=3, seconds=4)
    for metric in experiment.metrics():
        if (metric.site, metric.task, metric.round) == ("site2", "validate_local", 4):
            break
    toys.kill("director")
    newest = toys.logs / "state" / "back" / "round-3.safetensors"
    newest.write_bytes(newest.read_bytes()[:-3])
    toys.start("director", *plain(toys), env=toys.env)
    toys.wait_for("director", "listening on")
    assert "experiment back: the model of round 3 is damaged: that round is done again" in toys.log("director")
    experiment = FederationHandle("localhost", toys.port).attach("back")
    metrics = list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], 1.5 * (1 + 1.5 + 1.75 + 1.875 + 1.9375), rtol=0)
    told = [(m.round, m.site, m.task, m.metric) for m in metrics]
    assert len(set(told)) == len(told)


def test_the_trace_is_read(toys: TracedFederation, steps: list[Step]) -> None:
    """Nothing but what goes through `federation.wire.files`, and sites' updates, changes an experiment's folder."""
    assert {step.what for step in steps} >= {"create", "write", "sync", "sync_folder", "rename", "link", "unlink"}
    names = {re.sub(r"\d+", "N", step.path.removeprefix("state/cut/")) for step in steps if "/cut/" in step.path}
    assert {name for name in names if not name.startswith("updates")} <= {
        ".progress.json", ".round-N.safetensors", "round-N.safetensors", ".best-N.safetensors", "best-N.safetensors",
        "metrics.jsonl",
    }  # fmt: skip
