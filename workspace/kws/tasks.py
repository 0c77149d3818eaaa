"""What OpenFL runs at a site: translates between its interfaces and `kws.training`, decides nothing.

`experiment` is what a site calls, after its owner has approved this package, and the notebook for the initial model.
"""

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from openfl.interface.interactive_api.experiment import DataInterface, ModelInterface, TaskInterface
from openfl.plugins.frameworks_adapters.framework_adapter_interface import FrameworkAdapterPluginInterface

from kws.algorithms import Local
from kws.batches import Heard
from kws.caching import heard_by
from kws.config import ExperimentConfig
from kws.model import Classifier, build_model, check_frozen
from kws.training import build_optimizer, evaluate
from shard_descriptors.corpus import ClipFormat


class TrainedTensors(FrameworkAdapterPluginInterface):  # type: ignore[misc]
    """Between OpenFL's dictionaries and the model: only what is trained travels, never optimizer state.

    The engine asks for the optimizer's state whatever is to become of it (federated/task/task_runner.py:52), and
    its own adapter for PyTorch gives it: with AdamW three times the bytes.
    """

    @staticmethod
    def get_tensor_dict(model: Local, optimizer: Any = None) -> dict[str, np.ndarray]:
        """What travels, by name; not copied, since it is sent before the model changes again."""
        return model.tensors()

    @staticmethod
    def set_tensor_dict(
        model: Local, tensor_dict: dict[str, np.ndarray], optimizer: Any = None, device: str = "cpu"
    ) -> None:
        """Put what has come into the model and the model onto the device."""
        model.model.to(device)
        model.load(tensor_dict)

    @staticmethod
    def save_local_state(model: Local, optimizer: torch.optim.Optimizer, path: Path) -> None:
        """Write what stays on the site: the optimizer's moments, and what the algorithm keeps there."""
        torch.save({"optimizer": optimizer.state_dict(), "kept": model.kept()}, path)

    @staticmethod
    def load_local_state(model: Local, optimizer: torch.optim.Optimizer, path: Path, device: str = "cpu") -> None:
        """Go on with that; it goes to where the model is, as the optimizer keeps it."""
        model.model.to(device)
        state = torch.load(path, map_location="cpu", weights_only=True)
        optimizer.load_state_dict(state["optimizer"])
        model.restore(state["kept"])

    @staticmethod
    def own_tensors(model: Local) -> dict[str, np.ndarray]:
        """The tensors that are the site's own, which it keeps after the end (`federation.site.local_state`)."""
        return model.own_tensors()


class ClassifierProvider(ModelInterface):  # type: ignore[misc]
    """The recipe of the model, which is built when it is asked for.

    frozen: the digest that its frozen part has to have; None: any.
    """

    def __init__(self, config: ExperimentConfig, form: ClipFormat, frozen: str | None = None) -> None:
        super().__init__(model=None, optimizer=None, framework_plugin="kws.tasks.TrainedTensors")
        self.config, self.format, self.frozen = config, form, frozen
        self.model: Local | None = None

    def provide_model(self) -> Local:
        """The one model of this process.

        Raises:
            ModelError: it cannot be built here, or its frozen part is not the experimenter's.
        """
        if self.model is None:
            model = build_model(self.config.model, self.config.training.seed, self.format)
            if self.frozen is not None:
                check_frozen(model, self.frozen)
            self.model = Local(model, self.config.algorithm)
        return self.model

    def provide_optimizer(self) -> Any:
        """A fresh optimizer for the model, which forgets what the site has kept, too."""
        local = self.provide_model()
        local.restore(None)
        return build_optimizer(local.model, self.config.training)


class ShardData(DataInterface):  # type: ignore[misc]
    """A site's training and validation clips."""

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.config = config
        self._heard: dict[str, Heard] = {}

    @property
    def shard_descriptor(self) -> Any:
        """The site's shard descriptor; set by the envoy."""
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, descriptor: Any) -> None:
        self._shard_descriptor = descriptor
        self.train_clips = descriptor.get_dataset("train")
        self.validation_clips = descriptor.get_dataset("validation")

    def heard(self, model: Classifier, split: str) -> Heard:
        """The clips of "train" or "validation" as the model hears them; what is kept is computed at the first call."""
        if split not in self._heard:
            train = split == "train"
            clips = self.train_clips if train else self.validation_clips
            self._heard[split] = heard_by(model, clips, self.config.training, changed=train)
        return self._heard[split]

    def get_train_loader(self, **_: Any) -> "ShardData":
        """What the training task reads."""
        return self

    def get_valid_loader(self, **_: Any) -> "ShardData":
        """What the validation tasks read."""
        return self

    def get_train_data_size(self) -> int:
        """The site's weight in the average of the models."""
        return len(self.train_clips)

    def get_valid_data_size(self) -> int:
        """The site's weight in the average of the validation metrics."""
        return len(self.validation_clips)


TASKS = TaskInterface()


@TASKS.register_fl_task(
    model="model", data_loader="data", device="device", optimizer="optimizer", round_num="rounds_done"
)  # type: ignore[untyped-decorator]
def train(model: Local, data: ShardData, device: str, optimizer: Any, rounds_done: int) -> dict[str, float]:
    """One round of local training, and how fast it was."""
    heard = data.heard(model.model, "train")  # what is computed once is not part of the speed
    started = time.perf_counter()
    metrics = model.train(optimizer, heard, data.config.training, rounds_done)
    return metrics | {"samples_per_second": metrics["samples"] / (time.perf_counter() - started)}


@TASKS.register_fl_task(model="model", data_loader="data", device="device")  # type: ignore[untyped-decorator]
def validate(model: Local, data: ShardData, device: str) -> dict[str, float]:
    """Validation on the site's own validation speakers: counts, of which the director makes scores."""
    return evaluate(model.model, data.heard(model.model, "validation"), data.config.training).sums()


def settings_of(config: ExperimentConfig, form: ClipFormat, frozen: str | None = None) -> dict[str, Any]:
    """What `experiment` is to be given.

    frozen: the digest of what does not travel of the experimenter's model; None: it is not compared.
    """
    return {"config": config.to_dict(), "format": asdict(form), "frozen": frozen}


def experiment(settings: Mapping[str, Any]) -> tuple[ClassifierProvider, TaskInterface, ShardData]:
    """The model, the tasks and the data of an experiment, of the values that `settings_of` makes.

    Raises:
        ConfigError: a value that is not allowed.
    """
    config = ExperimentConfig.from_dict(settings["config"])
    given = settings["format"]
    form = ClipFormat(**{**given, "labels": tuple(given["labels"])})
    return ClassifierProvider(config, form, settings["frozen"]), TASKS, ShardData(config)
