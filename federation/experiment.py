"""What an experiment's entry point returns, held to OpenFL's interfaces: a model, tasks and data.

The engine unpickles these objects (federated/plan/plan.py:756). Here a function of the shipped package makes them, from
settings that are JSON: at a site after its owner's approval, and in the notebook for the model before the first round.
"""

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from openfl.interface.interactive_api.experiment import DataInterface, ModelInterface, TaskInterface

from federation.errors import FederationError

Interfaces = tuple[ModelInterface, TaskInterface, DataInterface]


@dataclass(frozen=True)
class Task:
    """A function that the experiment has registered, and the names under which it takes what it is given.

    The names are those of OpenFL's contract: model, data_loader, device, optimizer and round_num; None: it takes none.
    """

    function: Callable[..., Mapping[str, Any]]
    contract: Mapping[str, str | None]
    settings: Mapping[str, Any]

    def __call__(self, **given: Any) -> Mapping[str, Any]:
        """The metrics that the function returns."""
        named = {name: given[part] for part, name in self.contract.items() if name is not None}
        return self.function(**named, **self.settings)


@dataclass(frozen=True)
class Experiment:
    """The parts of an experiment; the model is built when it is asked for."""

    model: ModelInterface
    adapter: Any
    train: Task
    validate: Task
    data: DataInterface

    def initial_tensors(self) -> dict[str, np.ndarray]:
        """The tensors that travel, before the first round."""
        return dict(self.adapter.get_tensor_dict(self.model.provide_model()))


def build(entry_point: str, settings: Mapping[str, Any]) -> Experiment:
    """Call an entry point, `package.module:function`, which can be imported here.

    Raises:
        FederationError: there is no such function, or it returns something else than OpenFL's interfaces.
    """
    module, _, name = entry_point.partition(":")
    function = getattr(import_module(module), name, None)
    if not callable(function):
        raise FederationError(f"entry_point {entry_point}: {module} has no function {name}")
    model, tasks, data = _checked(entry_point, function(settings))
    plugin, _, kind = str(model.framework_plugin).rpartition(".")
    adapter = getattr(import_module(plugin), kind)()
    return Experiment(model, adapter, *_tasks(entry_point, tasks), data)


@contextmanager
def shipped(package: Path) -> Iterator[None]:
    """Inside, this folder is the package of its name, as at a site; its files are read anew.

    Raises:
        FederationError: the folder is no package.
    """
    names = [name for name in sys.modules if name.partition(".")[0] == package.name]
    before = {name: sys.modules.pop(name) for name in names}
    spec = importlib.util.spec_from_file_location(
        package.name, package / "__init__.py", submodule_search_locations=[str(package)]
    )
    try:
        if spec is None or spec.loader is None or not (package / "__init__.py").is_file():
            raise FederationError(f"package {package} holds no __init__.py; name the folder of a Python package")
        importlib.invalidate_caches()
        sys.modules[package.name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[package.name])
        yield
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == package.name]:
            del sys.modules[name]
        sys.modules.update(before)


def _checked(entry_point: str, returned: Any) -> Interfaces:
    kinds = ModelInterface, TaskInterface, DataInterface
    if isinstance(returned, tuple) and len(returned) == 3 and all(map(isinstance, returned, kinds)):
        return returned
    given = [type(each).__name__ for each in returned] if isinstance(returned, tuple) else type(returned).__name__
    raise FederationError(
        f"entry_point {entry_point} returned {given}; it has to return a ModelInterface, a TaskInterface and a "
        f"DataInterface"
    )


def _tasks(entry_point: str, tasks: TaskInterface) -> tuple[Task, Task]:
    """The task that trains, which takes an optimizer, and the one that validates."""
    if tasks.aggregation_functions:
        raise FederationError(
            f"entry_point {entry_point}: {', '.join(sorted(tasks.aggregation_functions))} sets an aggregation "
            f"function, which the director would have to import; name one of the director's own rules instead: "
            f"submit(..., rule={{'name': 'median'}})"
        )
    train = [name for name, contract in tasks.task_contract.items() if contract["optimizer"]]
    validate = [name for name in tasks.task_contract if name not in train]
    if len(train) != 1 or len(validate) != 1:
        raise FederationError(
            f"entry_point {entry_point} registers {len(train)} tasks with an optimizer ({', '.join(train) or 'none'}) "
            f"and {len(validate)} without ({', '.join(validate) or 'none'}); needed: one to train and one to validate"
        )
    first, second = (
        Task(tasks.task_registry[name], tasks.task_contract[name], tasks.task_settings.get(name, {}))
        for name in (*train, *validate)
    )
    return first, second
