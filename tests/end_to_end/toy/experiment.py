"""The toy's experiment: training adds the site's number to every element of the vector."""

import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from openfl.interface.interactive_api.experiment import DataInterface, ModelInterface, TaskInterface
from openfl.plugins.frameworks_adapters.framework_adapter_interface import FrameworkAdapterPluginInterface

STEP = 1.0  # a test ships a copy of this package with another number


class VectorAdapter(FrameworkAdapterPluginInterface):
    @staticmethod
    def get_tensor_dict(model, optimizer=None):
        return {"vector": model["vector"].copy()}

    @staticmethod
    def set_tensor_dict(model, tensor_dict, optimizer=None, device="cpu"):
        model["vector"] = np.array(tensor_dict["vector"])

    @staticmethod
    def save_local_state(model, optimizer, path):
        path.write_bytes(optimizer["momentum"].tobytes())

    @staticmethod
    def load_local_state(model, optimizer, path, device="cpu"):
        optimizer["momentum"] = np.frombuffer(path.read_bytes(), np.float32)


def first_vector(length: int) -> np.ndarray:
    """Zeros; a long one, for tests of the transport, has another number in each place."""
    return np.zeros(length, np.float32) if length < 1000 else np.arange(length, dtype=np.float32) / length


class VectorModel(ModelInterface):
    def __init__(self, length: int = 4) -> None:
        super().__init__({"vector": first_vector(length)}, {}, "toy.experiment.VectorAdapter")

    def provide_optimizer(self):
        return {"momentum": np.zeros(1, np.float32)}


class Numbers(DataInterface):
    """What a site does wrong, by its number: {"raise_on": 2.0} and so on; "momentum" is the toy optimizer's."""

    def __init__(self, **faults: float) -> None:
        super().__init__()
        self.faults = faults
        self.trained = -1

    @property
    def shard_descriptor(self):
        return self._descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, descriptor):
        self._descriptor = descriptor

    def get_train_loader(self, **_):
        return self

    get_valid_loader = get_train_loader

    def get_train_data_size(self):
        return self._descriptor.size

    get_valid_data_size = get_train_data_size

    def misbehave(self, rounds_done: int) -> None:
        if rounds_done != self.faults.get("in_round", 0):
            return
        if self.faults.get("raise_on") == self._descriptor.value:
            raise ArithmeticError("the toy was told to fail")
        if self.faults.get("die_on") == self._descriptor.value:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.faults.get("crash_on") == self._descriptor.value:
            ctypes.string_at(0)
        if self.faults.get("die_once_on") == self._descriptor.value:
            self.once("die", lambda: os.kill(os.getpid(), signal.SIGKILL))
        if self.faults.get("nap_on") == self._descriptor.value:
            self.once("nap", lambda: time.sleep(60))
        if self.faults.get("start_on") == self._descriptor.value:
            self.start_another()
        if self.faults.get("sleep_on") == self._descriptor.value:
            time.sleep(self.faults["seconds"])

    def start_another(self) -> None:
        """Start a process in a session of its own, and note its number."""
        code = "import time; time.sleep(300)"
        started = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
        Path(tempfile.gettempdir(), f"started-{self._descriptor.value}").write_text(str(started.pid))

    def once(self, what: str, do: Callable[[], object]) -> None:
        """Do it the first time that it comes to this, in whatever process; a file tells that it was done."""
        done = Path(tempfile.gettempdir(), f"{what}-{self._descriptor.value}")
        if not done.exists():
            done.touch()
            do()


TASKS = TaskInterface()


@TASKS.register_fl_task(model="model", data_loader="data", device="device", optimizer="optimizer", round_num="done")
def train(model, data, device, optimizer, done):
    data.misbehave(done)
    data.trained = done
    if data.faults.get("nan_on") == data.shard_descriptor.value:
        model["vector"][1] = np.nan
    step = np.float32(STEP * data.shard_descriptor.value)
    optimizer["momentum"] = np.float32(data.faults.get("momentum", 0)) * optimizer["momentum"] + step
    model["vector"] = model["vector"] + optimizer["momentum"]
    returned = {"word_on": {"loss": "low"}, "nothing_on": None}
    for fault, what in returned.items():
        if data.faults.get(fault) == data.shard_descriptor.value:
            return what
    return {"loss": 5.0 + done}


@TASKS.register_fl_task(model="model", data_loader="data", device="device")
def validate(model, data, device):
    if data.faults.get("nap_validating_on") == data.shard_descriptor.value and data.trained == data.faults["in_round"]:
        data.once("nap", lambda: time.sleep(60))
    # The loss grows and is above any score; the score is best after two rounds.
    height = float(model["vector"][0])
    return {"loss": 100.0 + height, "accuracy": 1.0 - abs(height - 3.0) / 10}


def experiment(settings):
    """What a site and a notebook call; settings: the vector's length, and what goes wrong."""
    return VectorModel(settings.get("length", 4)), TASKS, Numbers(**settings.get("faults", {}))
