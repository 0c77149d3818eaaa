from pathlib import Path

import numpy as np
import pytest

from federation.state import ExperimentState, Progress

MODEL = {"a": np.arange(3, dtype=np.float32), "b": np.zeros((2, 2), np.float32)}


def changed(by: float) -> dict[str, np.ndarray]:
    return {name: array + np.float32(by) for name, array in MODEL.items()}


@pytest.fixture
def state(tmp_path: Path) -> ExperimentState:
    archive = tmp_path / "upload"
    archive.write_bytes(b"zip")
    about = {"name": "first/one", "collaborators": ["s"], "sender": "ada", "submitted": 1.0}
    return ExperimentState.create(tmp_path / "state", archive, MODEL, about)


def names(state: ExperimentState) -> set[str]:
    return {path.name for path in state.folder.iterdir()}


def test_what_was_submitted_is_there_again(state: ExperimentState) -> None:
    (found,) = ExperimentState.all(state.folder.parent)
    assert found.about()["name"] == "first/one"
    assert found.progress() == Progress()
    assert found.archive.read_bytes() == b"zip"
    np.testing.assert_array_equal(found.last_model()["a"], MODEL["a"])
    assert found.best_model() == {}
    assert found.finished_metrics() == []


def test_only_the_models_that_are_named_are_kept(state: ExperimentState) -> None:
    state.save(Progress(next_round=1, last_round=1, best_round=0, best_score=0.5), last=changed(1), best=MODEL)
    state.save(Progress(next_round=2, last_round=2, best_round=0, best_score=0.5), last=changed(2))
    assert {"round-2.safetensors", "best-0.safetensors"} <= names(state)
    assert not {"round-0.safetensors", "round-1.safetensors"} & names(state)
    np.testing.assert_array_equal(state.last_model()["b"], changed(2)["b"])
    np.testing.assert_array_equal(state.best_model()["b"], MODEL["b"])
    state.end("failed", "why")
    assert (state.progress().status, state.progress().failure, state.progress().last_round) == ("failed", "why", 2)
    np.testing.assert_array_equal(state.last_model()["b"], changed(2)["b"])


def test_a_round_that_was_interrupted_is_measured_again(state: ExperimentState) -> None:
    for round_number in (0, 0, 1, 2):
        state.add_metric({"round": round_number, "metric_value": 0.1})
    with (state.folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 1, "metric_va')  # the kill came here
    state.save(Progress(next_round=2, last_round=2), last=changed(2))
    assert [metric["round"] for metric in state.finished_metrics()] == [0, 0, 1]
    assert [metric["round"] for metric in state.finished_metrics()] == [0, 0, 1]


def test_a_kill_between_model_and_progress_leaves_the_round_before(state: ExperimentState) -> None:
    state.save(Progress(next_round=1, last_round=1), last=changed(1))
    (state.folder / "round-2.safetensors").write_bytes((state.folder / "round-1.safetensors").read_bytes())
    assert state.progress().last_round == 1
    (state.folder / ".round-3.safetensors").write_bytes(b"half")
    np.testing.assert_array_equal(state.last_model()["a"], changed(1)["a"])
    state.save(Progress(next_round=2, last_round=2), last=changed(2))
    np.testing.assert_array_equal(state.last_model()["a"], changed(2)["a"])  # not what the kill had left
    assert not any(name.startswith(".") for name in names(state))


def test_half_a_submission_does_not_count(state: ExperimentState) -> None:
    half = state.folder.parent / ".second"
    half.mkdir()
    (half / "experiment.json").write_text("{}")
    assert len(ExperimentState.all(state.folder.parent)) == 1
    state.remove()
    assert ExperimentState.all(state.folder.parent) == []
