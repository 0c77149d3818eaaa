"""The job for OpenFL's interactive API: what this project's director and the stock one ship to the sites."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from openfl.interface.interactive_api.experiment import DataInterface, ModelInterface, TaskInterface
from openfl.plugins.frameworks_adapters.framework_adapter_interface import FrameworkAdapterPluginInterface

from addition.job import Job, SiteModel


class Adapter(FrameworkAdapterPluginInterface):  # type: ignore[misc]
    """Between OpenFL's dictionaries and the model."""

    @staticmethod
    def get_tensor_dict(model: SiteModel, optimizer: Any = None) -> dict[str, np.ndarray]:
        """The tensors of a site, or, before it has any, the first ones of all."""
        return model.tensors if model.loaded else model.job.initial_model()

    @staticmethod
    def set_tensor_dict(
        model: SiteModel, tensor_dict: dict[str, np.ndarray], optimizer: Any = None, device: str = "cpu"
    ) -> None:
        """Copy a received model in."""
        model.load(tensor_dict)


class Provider(ModelInterface):  # type: ignore[misc]
    """Makes the model where it is used; what the stock engine pickles is only this recipe."""

    def __init__(self) -> None:
        super().__init__(model=None, optimizer=None, framework_plugin="addition.tasks.Adapter")
        self.model: SiteModel | None = None

    def provide_model(self) -> SiteModel:
        """The one model of this process."""
        if self.model is None:
            self.model = SiteModel(Job.from_environment())
        return self.model

    def provide_optimizer(self) -> None:
        """There is none."""

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"model": None}


class Examples(DataInterface):  # type: ignore[misc]
    """A site's shard descriptor, which has its number and its size."""

    @property
    def shard_descriptor(self) -> Any:
        """The site's shard descriptor; set by the envoy."""
        return self._descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, descriptor: Any) -> None:
        self._descriptor = descriptor

    def get_train_loader(self, **_: Any) -> "Examples":
        """What the training task reads."""
        return self

    def get_valid_loader(self, **_: Any) -> "Examples":
        """What the validation tasks read."""
        return self

    def get_train_data_size(self) -> int:
        """The site's weight."""
        return int(self._descriptor.size)

    def get_valid_data_size(self) -> int:
        """The site's weight."""
        return int(self._descriptor.size)


TASKS = TaskInterface()


@TASKS.register_fl_task(model="model", data_loader="data", device="device", optimizer="optimizer", round_num="done")  # type: ignore[untyped-decorator]
def train(model: SiteModel, data: Examples, device: str, optimizer: Any, done: int) -> dict[str, float]:
    """One round."""
    model.train(int(data.shard_descriptor.value), done + 1)
    return {"loss": 0.0}


@TASKS.register_fl_task(model="model", data_loader="data", device="device")  # type: ignore[untyped-decorator]
def validate(model: SiteModel, data: Examples, device: str) -> dict[str, float]:
    """Nothing is measured; the time is noted, since the last validation is an experiment's last work."""
    model.job.note("validated", int(data.shard_descriptor.value), 0)
    return {"accuracy": 0.0}


def experiment(settings: Mapping[str, Any]) -> tuple[Provider, TaskInterface, Examples]:
    """What this project's sites call; the job is in their environment."""
    return Provider(), TASKS, Examples()
