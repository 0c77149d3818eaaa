import asyncio
import json
import re
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.director.director import Director
from federation.director.state import (
    VERSION,
    ExperimentState,
    Progress,
    Submitted,
    Unreadable,
    clear_leftovers,
    found,
)
from federation.wire.models import ModelFile, round_path, rule_path, save, updates_folder, write
from rules.contract import InMemory

MODEL = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}
ABOUT = Submitted("first/one", ("s",), "ada", 1.0, rounds=5)


def changed(by: float) -> dict[str, np.ndarray]:
    return {name: array + np.float32(by) for name, array in MODEL.items()}


def finish(state: ExperimentState, number: int, best: int | None = None, momentum: float | None = None) -> None:
    """A round of which the model is written, and what the rule keeps."""
    state.add_metrics([{"round": number - 1, "metric_value": number}])
    save(round_path(state.folder, number), changed(number))
    if momentum is not None:
        write(rule_path(state.folder, number), InMemory(m=np.full(3, momentum, np.float32)), {"numbers": f"{number}"})
    state.save_round(next_round=number, last_round=number, best_round=best, best_score=0.5, rule=momentum is not None)


def submit(root: Path, about: Submitted = ABOUT) -> ExperimentState:
    root.mkdir(exist_ok=True)
    outside = root.parent / "upload"
    outside.mkdir(exist_ok=True)
    shutil.make_archive(str(outside / "archive"), "zip", outside)
    save(outside / "initial", MODEL)
    return ExperimentState.create(root, outside / "archive.zip", outside / "initial", about)


@pytest.fixture
def state(tmp_path: Path) -> ExperimentState:
    return submit(tmp_path / "state")


def names(state: ExperimentState) -> set[str]:
    return {path.name for path in state.folder.iterdir()}


def test_what_was_submitted_is_there_again(state: ExperimentState) -> None:
    (readable,), unreadable = found(state.folder.parent)
    assert unreadable == {}
    assert readable.about() == ABOUT
    assert readable.progress().status == "pending"
    assert readable.archive.read_bytes().startswith(b"PK")
    np.testing.assert_array_equal(readable.last_model()["a"], MODEL["a"])
    assert readable.best_model() is None
    assert list(readable.all_metrics()) == []
    for name in ("experiment.json", "progress.json", "metrics.jsonl"):
        assert json.loads((state.folder / name).read_text().splitlines()[0])["version"] == VERSION


def test_the_model_before_stays_until_the_one_after(state: ExperimentState) -> None:
    finish(state, 1, best=0)
    assert {"round-0.safetensors", "round-1.safetensors", "best-0.safetensors"} <= names(state)
    finish(state, 2, best=0)
    finish(state, 3, best=2)
    kept = {name for name in names(state) if name.endswith(".safetensors")}
    assert kept == {"round-3.safetensors", "round-2.safetensors", "best-2.safetensors", "best-0.safetensors"}
    np.testing.assert_array_equal(state.last_model()["b"], changed(3)["b"])
    best = state.best_model()
    assert best is not None
    np.testing.assert_array_equal(best["b"], changed(2)["b"])
    # A last round that only validates brings no model, so the one before stays.
    state.save_round(next_round=4, last_round=3, best_round=3, best_score=0.9)
    assert state.progress().before == replace(state.progress(), status="pending", next_round=2, last_round=2,
        best_round=0, best_score=0.5, metrics=state.progress().before.metrics, before=None)  # type: ignore[union-attr]  # fmt: skip
    assert "round-2.safetensors" in names(state)
    # What is over needs two models.
    state.end("finished")
    kept = {name for name in names(state) if name.endswith(".safetensors")}
    assert kept == {"round-3.safetensors", "best-3.safetensors"}
    assert state.progress().over


def test_an_end_says_why(state: ExperimentState) -> None:
    finish(state, 1)
    state.end("failed", "why")
    assert (state.progress().status, state.progress().failure, state.progress().last_round) == ("failed", "why", 1)
    np.testing.assert_array_equal(state.last_model()["b"], changed(1)["b"])


def test_a_rule_finds_its_state_with_the_models_round(state: ExperimentState) -> None:
    assert state.rule_file() is None
    for number in (1, 2):
        finish(state, number, momentum=number)
    again = ExperimentState(state.folder).rule_file()
    assert again is not None
    assert again.metadata == {"numbers": "2"}
    np.testing.assert_array_equal(again["m"], np.full(3, 2.0))
    assert {"rule-1.safetensors", "rule-2.safetensors"} <= names(state)
    finish(state, 3)  # a rule may have nothing to remember any more
    assert state.rule_file() is None


def test_a_round_that_was_interrupted_is_measured_again(state: ExperimentState) -> None:
    finish(state, 1)
    state.add_metrics([{"round": 1, "metric_value": 0.1}])
    with (state.folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "metric_va')  # the kill came here
    updates_folder(state.folder).mkdir()
    (updates_folder(state.folder) / "0-s-1.safetensors").write_bytes(b"half")
    save(round_path(state.folder, 2), changed(99))  # of a round that no progress names
    (state.folder / ".progress.json").write_bytes(b"half")
    assert state.resume() is None
    assert names(state) == {
        "experiment.json", "experiment.zip", "progress.json", "metrics.jsonl", "round-0.safetensors",
        "round-1.safetensors",
    }  # fmt: skip
    assert list(state.all_metrics()) == [{"round": 0, "metric_value": 1}]
    state.add_metrics([{"round": 1, "metric_value": 0.2}])
    assert [each["metric_value"] for each in state.all_metrics()] == [1, 0.2]


def test_metrics_are_read_in_parts(state: ExperimentState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.director.state.READ_BYTES", 100)
    told = [{"round": 0, "metric_value": number} for number in range(50)]
    for start in range(0, 50, 7):
        state.add_metrics(told[start : start + 7])
    assert list(state.all_metrics()) == told
    lines, place = state.metrics()
    assert 0 < len(lines) < 5
    with (state.folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"round"')  # the rest of the line is on its way
    for _ in range(60):
        lines, place = state.metrics(place)
    assert state.metrics(place) == ([], place)


def test_what_a_failed_round_has_told_is_kept(state: ExperimentState) -> None:
    finish(state, 1)
    state.add_metrics([{"round": 1, "metric_value": 7}])
    state.end("failed", "why")
    state.add_metrics([{"round": 1, "metric_value": 8}])  # a site that has not heard of the end
    assert [each["metric_value"] for each in state.all_metrics()] == [1, 7]


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "zeros"])
@pytest.mark.parametrize("damaged", ["round-2", "rule-2", "best-1"])
def test_a_damaged_model_costs_one_round(state: ExperimentState, damaged: str, damage: str) -> None:
    for number in (1, 2):
        finish(state, number, best=number - 1, momentum=number)
    path = state.folder / f"{damaged}.safetensors"
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        left = {"empty": b"", "cut": content[:-1], "zeros": bytes(len(content))}[damage]
        path.write_bytes(left)
    state.end("in_progress")
    if damaged == "best-1":  # is the model of round 1 under a second name
        assert state.progress().before.best_round == 0  # type: ignore[union-attr]
    state.check()
    repeats = state.resume()
    assert repeats == "the model of round 2 is damaged: that round is done again"
    progress = state.progress()
    assert (progress.status, progress.next_round, progress.last_round) == ("in_progress", 1, 1)
    np.testing.assert_array_equal(state.last_model()["a"], changed(1)["a"])
    rule = state.rule_file()
    assert rule is not None
    assert rule.metadata == {"numbers": "1"}
    assert list(state.all_metrics()) == [{"round": 0, "metric_value": 1}]
    finish(state, 2, best=1, momentum=2)
    np.testing.assert_array_equal(state.last_model()["a"], changed(2)["a"])


def rewritten(path: Path, **values: object) -> None:
    told = json.loads(path.read_text()) | values
    path.write_text(json.dumps({name: value for name, value in told.items() if value is not ...}))


DAMAGES = {
    "empty progress": (lambda f: (f / "progress.json").write_bytes(b""), "progress.json"),
    "half a progress": (lambda f: (f / "progress.json").write_bytes(b'{"version": 2, "sta'), "progress.json"),
    "zeros for a progress": (lambda f: (f / "progress.json").write_bytes(bytes(200)), "progress.json"),
    "no progress": (lambda f: (f / "progress.json").unlink(), "progress.json: No such file"),
    "a list for a progress": (lambda f: (f / "progress.json").write_text("[]"), "progress.json holds no object"),
    "a newer progress": (lambda f: rewritten(f / "progress.json", version=3), "progress.json is of version 3"),
    "a version that is none": (lambda f: rewritten(f / "progress.json", version="2"), "version '2'"),
    "a progress that tells more": (lambda f: rewritten(f / "progress.json", optimizer="adam"), "tells of optimizer"),
    "a status of its own": (lambda f: rewritten(f / "progress.json", status="paused"), "status is 'paused'"),
    "rounds that are none": (lambda f: rewritten(f / "progress.json", last_round=-1), "last_round is -1"),
    "a score that is none": (lambda f: rewritten(f / "progress.json", best_score="x"), "best_score is 'x'"),
    "a past that is none": (lambda f: rewritten(f / "progress.json", before=5), "before is 5"),
    "empty experiment": (lambda f: (f / "experiment.json").write_bytes(b""), "experiment.json"),
    "no experiment": (lambda f: (f / "experiment.json").unlink(), "experiment.json: No such file"),
    "a newer experiment": (lambda f: rewritten(f / "experiment.json", version=9), "experiment.json is of version 9"),
    "no sites": (lambda f: rewritten(f / "experiment.json", collaborators=[]), "collaborators are not"),
    "sites untold": (lambda f: rewritten(f / "experiment.json", collaborators=...), "collaborators"),
    "not a list of sites": (lambda f: rewritten(f / "experiment.json", collaborators={"a": 1}), "collaborators are"),
    "no time": (lambda f: rewritten(f / "experiment.json", submitted="yesterday"), "submitted is 'yesterday'"),
    "text that is none": (lambda f: (f / "experiment.json").write_bytes(b'{"name": "\xff"}'), "experiment.json"),
    "newer metrics": (lambda f: (f / "metrics.jsonl").write_text('{"version": 3}\n'), "metrics.jsonl is of version 3"),
    "no metrics": (lambda f: (f / "metrics.jsonl").unlink(), "metrics.jsonl"),
    "lost metrics": (
        lambda f: (f / "metrics.jsonl").write_bytes((f / "metrics.jsonl").read_bytes()[:-1]),
        "metrics.jsonl: 1 of .* bytes are missing",
    ),
    "an archive that is none": (lambda f: (f / "experiment.zip").write_bytes(b"PK"), "experiment.zip is damaged"),
    "no models": (lambda f: [path.unlink() for path in f.glob("*.safetensors")], "round-1.safetensors: .*; round-0"),
    "a copy": (lambda f: shutil.copytree(f, f.with_name("copy")) and shutil.rmtree(f), "another name: a copy"),
    "nothing": (lambda f: [path.unlink() for path in f.iterdir()], "experiment.json"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_folder_that_cannot_be_read_is_named_skipped_and_left(state: ExperimentState, damage: str) -> None:
    root = state.folder.parent
    other = submit(root, replace(ABOUT, name="other", submitted=0.5))
    finish(state, 1)
    harm, told = DAMAGES[damage]
    harm(state.folder)  # type: ignore[operator]
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    readable, unreadable = found(root)
    assert [each.folder for each in readable] == [other.folder]
    (reason,) = unreadable.values()
    assert re.search(told, reason), reason
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"name is ''; collaborators are not .*; submitted is nan; rounds is -1"):
        Submitted("", (), "ada", float("nan"), rounds=-1)
    with pytest.raises(ValueError, match="status is 'odd'; next_round is True; best_score is inf"):
        Progress("odd", next_round=True, best_score=float("inf"))


def test_an_older_version_is_read_and_goes_on(tmp_path: Path) -> None:
    state = submit(tmp_path / "state")
    finish(state, 1, best=0)
    for name, untold in {"experiment.json": ("rounds",), "progress.json": ("rule", "metrics", "before")}.items():
        rewritten(state.folder / name, version=..., **dict.fromkeys(untold, ...))
    lines = [{"round": number, "metric_value": 0.5} for number in (0, 0, 1)]
    (state.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"roun')
    (readable,), unreadable = found(tmp_path / "state")
    assert unreadable == {}
    assert readable.about() == replace(ABOUT, rounds=None)
    assert list(readable.all_metrics()) == lines[:2]
    for _ in range(2):
        readable.resume()
        assert list(readable.all_metrics()) == lines[:2]
    finish(readable, 2, best=1)
    assert json.loads((state.folder / "progress.json").read_text())["version"] == VERSION
    assert [each["round"] for each in readable.all_metrics()] == [0, 0, 1]
    found(tmp_path / "state")[0][0].check()


def test_an_older_version_that_is_over_is_only_read(tmp_path: Path) -> None:
    state = submit(tmp_path / "state")
    finish(state, 1, best=0)
    state.end("finished")
    for name, untold in {"experiment.json": ("rounds",), "progress.json": ("rule", "metrics", "before")}.items():
        rewritten(state.folder / name, version=..., **dict.fromkeys(untold, ...))
    (state.folder / "metrics.jsonl").write_text('{"round": 0, "metric_value": 0.5}\n')
    (readable,), _ = found(tmp_path / "state")
    assert list(readable.all_metrics()) == [{"round": 0, "metric_value": 0.5}]
    np.testing.assert_array_equal(readable.last_model()["a"], changed(1)["a"])


def test_what_is_over_can_be_told_of_although_a_model_is_damaged(state: ExperimentState) -> None:
    finish(state, 1, best=0)
    state.end("finished")
    round_path(state.folder, 1).write_bytes(b"")
    (readable,), unreadable = found(state.folder.parent)
    assert unreadable == {}
    assert isinstance(readable.best_model(), ModelFile)
    with pytest.raises(ValueError, match=r"round-1.safetensors is not a safetensors file"):
        readable.last_model()


def test_half_a_submission_does_not_count(state: ExperimentState, tmp_path: Path) -> None:
    root = state.folder.parent
    half = root / ".second"
    half.mkdir()
    (half / "experiment.json").write_text("{}")
    assert [len(each) for each in found(root)] == [1, 0]
    clear_leftovers(root)
    assert {path.name for path in root.iterdir()} == {state.folder.name}


def test_a_submission_that_does_not_fit_leaves_nothing(tmp_path: Path) -> None:
    root = tmp_path / "state"
    root.mkdir()
    with pytest.raises(OSError, match="missing"):
        ExperimentState.create(root, tmp_path / "missing", tmp_path / "missing", ABOUT)
    assert list(root.iterdir()) == []


def test_a_removed_experiment_is_gone(state: ExperimentState) -> None:
    updates_folder(state.folder).mkdir()
    size = state.size()
    assert size > sum(path.stat().st_size for path in state.folder.glob("*.json"))
    state.remove()
    assert list(state.folder.parent.iterdir()) == []
    with pytest.raises(Unreadable):
        state.progress()


def test_what_is_over_takes_no_memory(tmp_path: Path) -> None:
    """300 experiments with 200 metrics each would be some 30 MB as Python's values."""
    root = tmp_path / "state"
    first = submit(root, replace(ABOUT, name="0"))
    for number in range(200):
        first.add_metrics([{"round": 0, "metric_origin": f"site{number}", "task_name": "train", "metric_value": 0.5}])
    save(round_path(first.folder, 1), MODEL)
    first.save_round(next_round=1, last_round=1, best_round=None, best_score=None)
    first.end("finished")
    for number in range(1, 300):
        shutil.copytree(first.folder, root / str(number))
        rewritten(root / str(number) / "experiment.json", name=str(number))

    async def run() -> None:
        tracemalloc.start()
        director = Director(state_root=root, tls=False, sample_shape=[], target_shape=[], envoy_health_check_period=1)
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert len(director.experiments_registry) == 300
        assert taken < 5e6
        lines = [line async for line in director.stream_metrics("7", "ada")]
        assert [line["metric_origin"] for line in lines] == [f"site{number}" for number in range(200)]

    asyncio.run(run())
