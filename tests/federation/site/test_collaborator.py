"""A site's tasks, with a director on paper: what is done, what is sent, and what is sent again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy.experiment import VectorAdapter
from toy_shard import ToyShard

from federation.errors import FederationError
from federation.experiment import build
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL
from federation.site.collaborator import SENDINGS, Collaborator
from federation.site.failure import TaskFailed
from federation.site.local_state import LocalState
from federation.site.worker import Worker
from federation.wire.models import ModelFile, ModelParts, Packed, save
from federation.wire.transfer import RoundOver, UpdateLost
from federation.wire.updates import Encoder, Update

ALL = (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL)


class Paper:
    """Hands out a model for each round, and keeps what arrives: the bytes of an update, the numbers of a task."""

    def __init__(self, folder: Path, **values: float) -> None:
        self.folder = folder
        self.models: dict[int, ModelParts] = {}
        self.heard: list[tuple[str, int, int, dict[str, float]]] = []
        self.updates: list[np.ndarray] = []
        self.closed: set[int] = set()
        self.received_bytes = 100
        self.loses = 0  # so many updates
        self.best: int | None = None

    def model(self, round_number: int) -> ModelParts:
        """The model of a round: all its elements are ten times the round's number."""
        if round_number in self.closed:
            raise RoundOver(f"round {round_number} is over")
        if round_number not in self.models:
            tensors = {"vector": np.full(4, 10.0 * round_number, np.float32)}
            file = save(self.folder / f"{round_number}.safetensors", tensors)
            self.models[round_number] = ModelParts(dict.fromkeys(file, file))
        return self.models[round_number]

    def send(self, round_number: int, packed: Packed) -> None:
        path = self.folder / f"update-{len(self.updates)}"
        path.write_bytes(b"".join(packed.chunks()))
        model = ModelFile(self.folder / f"{round_number}.safetensors")
        self.updates.append(Update(path, model).read("vector", slice(0, 4)))

    def send_results(self, task: str, engine_round: int, examples: int, metrics: dict[str, float]) -> None:
        if task == TRAIN and self.loses:
            self.loses -= 1
            raise UpdateLost("the trained model has not arrived")
        self.heard.append((task, engine_round, examples, metrics))

    @property
    def order(self) -> list[str]:
        return [task for task, *_ in self.heard]


@pytest.fixture
def paper(tmp_path: Path) -> Paper:
    return Paper(tmp_path)


@pytest.fixture
def site(paper: Paper, tmp_path: Path) -> Callable[..., Collaborator]:
    """A process of the site "north", whose number is 1; `kept`: with a folder for the optimizer's state."""

    def start(kept: bool = True, keep_optimizer: bool = True, update_format: str = "float32", **faults: float) -> Any:
        experiment = build("toy.experiment:experiment", {"faults": {"momentum": 0.5, **faults}})
        experiment.data.shard_descriptor = ToyShard(1.0)
        (tmp_path / "state").mkdir(exist_ok=True)
        return Collaborator(
            "north",
            Worker(experiment),
            paper,
            paper,
            Encoder(update_format),
            keep_optimizer=keep_optimizer,
            local_state=LocalState(tmp_path / "state") if kept else None,
        )

    return start


def test_a_round_is_measured_trained_and_measured_again(site: Any, paper: Paper, tmp_path: Path) -> None:
    site().do(ALL, 2)
    assert paper.order == list(ALL)
    assert [engine_round for _, engine_round, *_ in paper.heard] == [2, 2, 2]
    np.testing.assert_array_equal(paper.updates, [[21.0] * 4])
    assert paper.heard[0][3] == {"loss": 120.0, "accuracy": pytest.approx(1.0 - 17.0 / 10)}
    measured = paper.heard[1][3]
    assert measured.pop("seconds") >= 0
    assert measured.pop("bytes_up") == (tmp_path / "update-0").stat().st_size
    assert measured == {"loss": 7.0, "bytes_down": 100.0, "update_norm": pytest.approx(2.0)}, (
        "four elements, each by one"
    )
    assert paper.heard[2][3]["loss"] == 121.0  # the trained model's
    assert {examples for *_, examples, _ in paper.heard} == {1}


def test_the_optimizer_goes_on_from_round_to_round_unless_it_is_not_to(site: Any, paper: Paper) -> None:
    one = site()
    for number in range(3):
        one.do(ALL, number)
    np.testing.assert_array_equal([update[0] for update in paper.updates], [1.0, 11.5, 21.75])
    fresh = site(keep_optimizer=False)
    for number in range(3):
        fresh.do(ALL, number)
    np.testing.assert_array_equal([update[0] for update in paper.updates[3:]], [1.0, 11.0, 21.0])


@pytest.mark.parametrize("times", [1, SENDINGS - 1])
def test_an_update_that_a_director_has_lost_is_sent_again(times: int, site: Any, paper: Paper) -> None:
    paper.loses = times
    site().do(ALL, 0)
    assert paper.order == list(ALL)
    np.testing.assert_array_equal(paper.updates, [[1.0] * 4] * (times + 1))


def test_a_director_that_loses_every_update_is_given_up(site: Any, paper: Paper) -> None:
    paper.loses = SENDINGS
    with pytest.raises(TaskFailed, match="the trained model has not arrived"):
        site().do(ALL, 0)


def test_what_a_director_has_lost_is_sent_again_and_not_done_again(site: Any, paper: Paper) -> None:
    one = site()
    one.do(ALL, 0)
    one.do(ALL, 0)
    assert paper.heard[3:] == paper.heard[:3]
    np.testing.assert_array_equal(paper.updates, [[1.0] * 4] * 2)
    one.do(ALL, 1)
    np.testing.assert_array_equal(paper.updates[2], [11.5] * 4)


@pytest.mark.parametrize("first", [(TRAIN,), (TRAIN, VALIDATE_LOCAL)])
def test_what_was_trained_is_sent_again_before_another_model_is_loaded_over_it(
    site: Any, paper: Paper, first: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process before had measured the round's model; then the director is restarted, and asks for everything."""
    monkeypatch.setattr(VectorAdapter, "get_tensor_dict", staticmethod(lambda model: dict(model)))  # copies nothing
    monkeypatch.setattr(
        VectorAdapter,
        "set_tensor_dict",
        staticmethod(lambda model, new, **_: np.copyto(model["vector"], new["vector"])),
    )
    one = site()
    one.do(first, 1)
    one.do(ALL, 1)
    one.do((VALIDATE_AGGREGATED,), 1)
    one.do((TRAIN,), 1)  # it is lost once more
    np.testing.assert_array_equal(paper.updates, [[11.0] * 4] * 3)
    losses = {(task, metrics["loss"]) for task, *_, metrics in paper.heard}
    assert losses == {(VALIDATE_AGGREGATED, 110.0), (TRAIN, 6.0), (VALIDATE_LOCAL, 111.0)}


def test_a_process_that_takes_over_trains_again_on_the_same_state(site: Any, paper: Paper) -> None:
    one = site()
    one.do(ALL, 0)
    one.do((VALIDATE_AGGREGATED, TRAIN), 1)  # and dies; the director has its update
    two = site()
    two.do((VALIDATE_LOCAL,), 1)
    assert len(paper.updates) == 2  # trained again, not sent again
    assert paper.heard[-1][3]["loss"] == 111.5
    two.do(ALL, 2)
    np.testing.assert_array_equal(paper.updates[-1], [21.75] * 4)


def test_without_kept_state_it_says_what_that_costs(site: Any, paper: Paper, caplog: pytest.LogCaptureFixture) -> None:
    site().do(ALL, 3)
    assert "no state of an earlier round on this site: training begins with a fresh optimizer" in caplog.text
    np.testing.assert_array_equal(paper.updates[-1], [31.0] * 4)


def test_a_round_that_is_closed_meanwhile_ends_nothing(
    site: Any, paper: Paper, caplog: pytest.LogCaptureFixture
) -> None:
    paper.closed.add(0)
    one = site()
    one.do(ALL, 0)
    assert paper.heard == []
    assert caplog.text.count("round 0 is over") == 3
    one.do(ALL, 1)
    assert paper.order == list(ALL)


@pytest.mark.parametrize(
    ("faults", "where", "words"),
    [
        ({"raise_on": 1.0}, "site north, round 1, task train", "ArithmeticError: the toy was told to fail"),
        ({"word_on": 1.0}, "site north, round 1, task train", "metric loss is str; a task returns numbers by name"),
        ({"nothing_on": 1.0}, "site north, round 1, task train", "the task returned NoneType; it has to return"),
    ],
)
def test_an_error_says_where(site: Any, faults: dict[str, float], where: str, words: str) -> None:
    with pytest.raises(TaskFailed, match=words) as failed:
        site(**faults).do(ALL, 0)
    assert failed.value.where == where
    assert failed.value.__cause__ is not None


def test_a_task_that_nobody_knows(site: Any) -> None:
    with pytest.raises(
        FederationError, match="asks for a task 'junk'; this site knows aggregated_model_validate, train"
    ):
        site().do(("junk",), 0)


def test_a_model_that_is_held_is_not_loaded_again(site: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = []
    load = VectorAdapter.set_tensor_dict
    monkeypatch.setattr(
        VectorAdapter, "set_tensor_dict", staticmethod(lambda *given, **more: loaded.append(1) or load(*given, **more))
    )
    one = site()
    one.do(ALL, 0)
    assert len(loaded) == 1
    one.do(ALL, 1)
    assert len(loaded) == 2


def test_a_process_that_takes_over_measures_with_what_is_the_sites_own(
    site: Any, paper: Paper, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The toy's momentum stands for a head of the site's own: before it measures, it is that of the round before."""
    measured = []

    def noting(self: Worker, tensors: Any, done: int) -> dict[str, float]:
        measured.append(float(self._optimizer["momentum"][0]))
        return validate(self, tensors, done)

    validate = Worker.validate
    monkeypatch.setattr(Worker, "validate", noting)
    one = site()
    one.do(ALL, 0)
    one.do(ALL, 1)
    site().do((VALIDATE_AGGREGATED,), 2)  # the process before has died
    site().do((VALIDATE_AGGREGATED,), 1)  # the director has gone back a round, too
    assert measured == [0.0, 1.0, 1.0, 1.5, 1.5, 1.0]


def test_own_tensors_are_kept_for_the_model_that_they_go_with(
    site: Any, paper: Paper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        VectorAdapter, "own_tensors", staticmethod(lambda model: {"own": model["vector"].copy()}), raising=False
    )
    one = site()
    one._local_state = LocalState(tmp_path / "state", tmp_path / "own")
    for number in range(5):
        paper.best = 1 if number else None
        one.do(ALL, number)
    assert {path.stem for path in (tmp_path / "own").iterdir()} == {"round-1", "round-3", "round-4", "round-5"}
    own = ModelFile(tmp_path / "own" / "round-1.safetensors")["own"]
    np.testing.assert_array_equal(own, paper.updates[0])
