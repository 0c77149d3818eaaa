"""What an entry point returns, and that it is the shipped package's own."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import toy.experiment
from openfl.interface.aggregation_functions import Median
from openfl.interface.interactive_api.experiment import DataInterface, ModelInterface, TaskInterface
from processes import TOYS

from federation.errors import FederationError
from federation.experiment import Task, build, shipped

MADE = """
from toy.experiment import VectorModel, TASKS, Numbers
def nothing(settings): return None
def two(settings): return VectorModel(), TASKS
def strangers(settings): return VectorModel(), TASKS, "data"
def backwards(settings): return Numbers(), TASKS, VectorModel()
number = 3
"""


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A copy of the toy package, with another step and a module more."""
    copy = tmp_path / "toy"
    shutil.copytree(TOYS / "toy", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "experiment.py"
    source.write_text(source.read_text().replace("STEP = 1.0", "STEP = 7.0"))
    (copy / "made.py").write_text(MADE)
    return copy


def test_the_parts_of_an_experiment() -> None:
    experiment = build("toy.experiment:experiment", {"length": 3, "faults": {"momentum": 0.5}})
    np.testing.assert_array_equal(experiment.initial_tensors()["vector"], np.zeros(3, np.float32))
    assert experiment.train.contract["optimizer"] == "optimizer"
    assert experiment.validate.contract["optimizer"] is None
    assert experiment.data.faults == {"momentum": 0.5}
    assert type(experiment.adapter).__name__ == "VectorAdapter"


def test_a_task_is_given_what_its_contract_names() -> None:
    tasks = TaskInterface()

    @tasks.add_kwargs(scale=3)
    @tasks.register_fl_task(model="net", data_loader="clips", device="where", optimizer="how", round_num="done")
    def train(net, clips, where, how, done, scale):  # type: ignore[no-untyped-def]
        return {"loss": f"{net} {clips} {where} {how} {done} {scale}"}

    task = Task(tasks.task_registry["train"], tasks.task_contract["train"], tasks.task_settings["train"])
    given = {"model": "m", "data_loader": "d", "device": "cpu", "optimizer": "o", "round_num": 2}
    assert task(**given) == {"loss": "m d cpu o 2 3"}


def test_the_shipped_files_are_the_package_of_their_name(package: Path) -> None:
    before = toy.experiment
    with shipped(package):
        inside = build("toy.experiment:experiment", {})
        assert sys.modules["toy.experiment"].STEP == 7.0
        assert inside.train.function.__module__ != "x"
    assert sys.modules["toy.experiment"] is before
    assert toy.experiment.STEP == 1.0
    assert "toy.made" not in sys.modules
    (package / "experiment.py").write_text("STEP = 8.0\n")
    with shipped(package):
        import toy.experiment as again

        assert again.STEP == 8.0
    (package / "__init__.py").write_text("1 / 0")
    with pytest.raises(ZeroDivisionError), shipped(package):
        pass
    assert sys.modules["toy.experiment"] is before
    with pytest.raises(FederationError, match=r"holds no __init__\.py"), shipped(package.parent):
        pass


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("absent", "toy.made has no function absent"),
        ("number", "toy.made has no function number"),
        ("nothing", "returned NoneType; it has to return a ModelInterface, a TaskInterface and a DataInterface"),
        ("two", r"returned \['VectorModel', 'TaskKeeper'\]; it has to return"),
        ("strangers", r"returned \['VectorModel', 'TaskKeeper', 'str'\]; it has to return"),
        ("backwards", "it has to return a ModelInterface, a TaskInterface"),
    ],
)
def test_an_entry_point_that_is_none(package: Path, name: str, words: str) -> None:
    with shipped(package), pytest.raises(FederationError, match=words):
        build(f"toy.made:{name}", {})


def contracts(*optimizers: str | None) -> TaskInterface:
    tasks = TaskInterface()
    for number, optimizer in enumerate(optimizers):

        def task(**_: object) -> dict[str, float]:
            return {}

        task.__name__ = f"task{number}"
        tasks.register_fl_task(model="m", data_loader="d", device="e", optimizer=optimizer)(task)
    return tasks


@pytest.mark.parametrize(
    ("optimizers", "words"),
    [
        ((), r"registers 0 tasks with an optimizer \(none\) and 0 without \(none\)"),
        (("o",), "1 tasks with an optimizer .* and 0 without"),
        (("o", "o", None), r"2 tasks with an optimizer \(task0, task1\) and 1 without"),
        (("o", None, None), r"and 2 without \(task1, task2\); needed: one to train and one to validate"),
    ],
)
def test_one_task_trains_and_one_validates(
    optimizers: tuple[str | None, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy.experiment, "TASKS", contracts(*optimizers))
    with pytest.raises(FederationError, match=words):
        build("toy.experiment:experiment", {})


def test_a_rule_of_the_experiments_own_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = contracts("o", None)
    tasks.set_aggregation_function(Median())(tasks.task_registry["task0"])
    monkeypatch.setattr(toy.experiment, "TASKS", tasks)
    with pytest.raises(
        FederationError, match=r"sets an aggregation function.*submit\(\.\.\., rule=\{'name': 'median'\}"
    ):
        build("toy.experiment:experiment", {})


def test_the_toys_parts_are_the_engines_interfaces() -> None:
    model, tasks, data = toy.experiment.experiment({})
    assert isinstance(model, ModelInterface)
    assert isinstance(tasks, TaskInterface)
    assert isinstance(data, DataInterface)
