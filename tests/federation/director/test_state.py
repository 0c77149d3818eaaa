from pathlib import Path

import numpy as np
import pytest

from federation.director.state import ExperimentState, Progress
from federation.wire.models import best_path, round_path, save

MODEL = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}


def changed(by: float) -> dict[str, np.ndarray]:
    return {name: array + np.float32(by) for name, array in MODEL.items()}


def finish(state: ExperimentState, round_number: int, best: int | None = None) -> None:
    """A round of which the aggregator has written the model."""
    save(round_path(state.folder, round_number), changed(round_number))
    state.save(Progress(next_round=round_number, last_round=round_number, best_round=best, best_score=0.5))


@pytest.fixture
def state(tmp_path: Path) -> ExperimentState:
    archive = tmp_path / "upload"
    archive.write_bytes(b"zip")
    save(tmp_path / "initial", MODEL)
    about = {"name": "first/one", "collaborators": ["s"], "sender": "ada", "submitted": 1.0}
    return ExperimentState.create(tmp_path / "state", archive, tmp_path / "initial", about)


def names(state: ExperimentState) -> set[str]:
    return {path.name for path in state.folder.iterdir()}


def test_what_was_submitted_is_there_again(state: ExperimentState) -> None:
    (found,) = ExperimentState.all(state.folder.parent)
    assert found.about()["name"] == "first/one"
    assert found.progress() == Progress()
    assert found.archive.read_bytes() == b"zip"
    np.testing.assert_array_equal(found.last_model()["a"], MODEL["a"])
    assert found.best_model() is None
    assert found.finished_metrics() == []


def test_only_the_models_that_are_named_are_kept(state: ExperimentState) -> None:
    save(best_path(state.folder, 0), MODEL)
    finish(state, 1, best=0)
    finish(state, 2, best=0)
    assert {"round-2.safetensors", "best-0.safetensors"} <= names(state)
    assert not {"round-0.safetensors", "round-1.safetensors"} & names(state)
    np.testing.assert_array_equal(state.last_model()["b"], changed(2)["b"])
    best = state.best_model()
    assert best is not None
    np.testing.assert_array_equal(best["b"], MODEL["b"])
    state.end("failed", "why")
    assert (state.progress().status, state.progress().failure, state.progress().last_round) == ("failed", "why", 2)
    np.testing.assert_array_equal(state.last_model()["b"], changed(2)["b"])


def test_a_round_that_was_interrupted_is_measured_again(state: ExperimentState) -> None:
    for round_number in (0, 0, 1, 2):
        state.add_metric({"round": round_number, "metric_value": 0.1})
    with (state.folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "metric_va')  # the kill came here
    finish(state, 2)
    assert [metric["round"] for metric in state.finished_metrics()] == [0, 0, 1]
    assert [metric["round"] for metric in state.finished_metrics()] == [0, 0, 1]


def test_a_kill_between_model_and_progress_leaves_the_round_before(state: ExperimentState) -> None:
    finish(state, 1)
    (state.folder / "round-2.safetensors").write_bytes((state.folder / "round-1.safetensors").read_bytes())
    assert state.progress().last_round == 1
    (state.folder / ".round-2.safetensors").write_bytes(b"half")
    np.testing.assert_array_equal(state.last_model()["a"], changed(1)["a"])
    finish(state, 2)
    np.testing.assert_array_equal(state.last_model()["a"], changed(2)["a"])  # not what the kill had left


def test_half_a_submission_does_not_count(state: ExperimentState) -> None:
    half = state.folder.parent / ".second"
    half.mkdir()
    (half / "experiment.json").write_text("{}")
    assert len(ExperimentState.all(state.folder.parent)) == 1
    state.remove()
    assert ExperimentState.all(state.folder.parent) == []
