"""Hands the experiment to OpenFL: translates, decides nothing."""

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from openfl.interface.interactive_api.experiment import DataInterface, ModelInterface, TaskInterface
from openfl.plugins.frameworks_adapters.framework_adapter_interface import FrameworkAdapterPluginInterface

from federation.errors import FederationError
from federation.experiment import Experiment, Federation, Site
from federation.policy import RoundPolicy
from federation.settings import Certificates, certificates_beside, load_director
from kws import HOUSE
from kws.config import ExperimentConfig
from kws.model import Classifier, build_model, load_weights, trained_tensors
from kws.records import Run
from kws.session import brings_own
from kws.training import build_optimizer, evaluate, train_round
from shard_descriptors.corpus import ClipFormat


class TrainedTensors(FrameworkAdapterPluginInterface):  # type: ignore[misc]
    """Between OpenFL's dictionaries and the model: only what is trained travels, never optimizer state.

    The engine asks for the optimizer's state whatever is to become of it (federated/task/task_runner.py:52), and
    its own adapter for PyTorch gives it: with AdamW three times the bytes.
    """

    @staticmethod
    def get_tensor_dict(model: Classifier, optimizer: Any = None) -> dict[str, np.ndarray]:
        """The trained tensors by name; not copied, since they are sent before the model changes again."""
        return trained_tensors(model)

    @staticmethod
    def set_tensor_dict(
        model: Classifier, tensor_dict: dict[str, np.ndarray], optimizer: Any = None, device: str = "cpu"
    ) -> None:
        """Put the trained tensors into the model and the model onto the device."""
        load_weights(model.to(device), tensor_dict)

    @staticmethod
    def save_local_state(model: Classifier, optimizer: torch.optim.Optimizer, path: Path) -> None:
        """Write the optimizer's moments, which stay on the site (`federation.local_state`)."""
        torch.save(optimizer.state_dict(), path)

    @staticmethod
    def load_local_state(model: Classifier, optimizer: torch.optim.Optimizer, path: Path, device: str = "cpu") -> None:
        """Go on with these moments; they go to where the model is, as the optimizer keeps them."""
        model.to(device)
        optimizer.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))


class ClassifierProvider(ModelInterface):  # type: ignore[misc]
    """The recipe of the model; the model itself is built where it is used (a Wav2Vec2 module cannot be pickled)."""

    def __init__(self, config: ExperimentConfig, form: ClipFormat) -> None:
        super().__init__(model=None, optimizer=None, framework_plugin="kws.federated.TrainedTensors")
        self.config, self.format = config, form
        self.model: Classifier | None = None

    def provide_model(self) -> Classifier:
        """The one model of this process."""
        if self.model is None:
            self.model = build_model(self.config.model, self.config.training.seed, self.format)
        return self.model

    def provide_optimizer(self) -> Any:
        """A fresh optimizer for the model."""
        return build_optimizer(self.provide_model(), self.config.training)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"model": None}


class ShardData(DataInterface):  # type: ignore[misc]
    """A site's training and validation clips."""

    def __init__(self, config: ExperimentConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def shard_descriptor(self) -> Any:
        """The site's shard descriptor; set by the envoy."""
        return self._shard_descriptor

    @shard_descriptor.setter
    def shard_descriptor(self, descriptor: Any) -> None:
        self._shard_descriptor = descriptor
        self.shard = descriptor.number
        self.train_clips = descriptor.get_dataset("train")
        self.validation_clips = descriptor.get_dataset("validation")

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
def train(model: Classifier, data: ShardData, device: str, optimizer: Any, rounds_done: int) -> dict[str, float]:
    """One round of local training."""
    return train_round(model, optimizer, data.train_clips, data.config.training, rounds_done, data.shard)


@TASKS.register_fl_task(model="model", data_loader="data", device="device")  # type: ignore[untyped-decorator]
def validate(model: Classifier, data: ShardData, device: str) -> dict[str, float]:
    """Validation on the site's own validation speakers."""
    return evaluate(model, data.validation_clips).scalars()


def connect() -> Federation:
    """Connect to the director of `director/director.yaml`, or to `host:port` in the environment's KWS_DIRECTOR.

    With TLS, KWS_CERTIFICATE names the experimenter's certificate; its key and root_ca.crt lie beside it.

    Raises:
        FederationError: no director answers there, it refuses the certificate, or it wants one and none is named.
    """
    settings = load_director(HOUSE / "director" / "director.yaml")
    host, _, port = os.environ.get("KWS_DIRECTOR", f"{settings.listen_host}:{settings.listen_port}").rpartition(":")
    named = os.environ.get("KWS_CERTIFICATE")
    if settings.certificates.tls and not named:
        raise FederationError(
            "director.yaml asks for certificates: set KWS_CERTIFICATE to the path of the one issued to you "
            "(python -m federation.certificates issue FOLDER experimenter NAME)"
        )
    return Federation(host, int(port), certificates_beside(HOUSE / named) if named else Certificates())


def wait_for_shards(federation: Federation, timeout: float = 600, sites: int = 1) -> dict[str, dict[str, Any]]:
    """What every site tells of its shard, as soon as all shards of the corpus are there, or that many sites.

    Args:
        timeout: seconds to wait.
        sites: the least number of sites. That there are as many as shards is known without it; how many bring
            recordings of their own is not.

    Raises:
        FederationError: the sites do not agree on the partition or on the form of a clip, or some are still missing
            after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    found = federation.wait_for_sites(sites, timeout)
    while len(found) < described(found[0])["of"]:
        found = federation.wait_for_sites(len(found) + 1, deadline - time.monotonic())
    shards = {site.name: described(site) for site in found}
    _refuse_other_clips(shards)
    if any(brings_own(shard) for shard in shards.values()):
        _refuse_a_mixture(shards)
        return shards
    partitions = {(shard["of"], shard["partition"]) for shard in shards.values()}
    if len(partitions) > 1 or len({shard["shard"] for shard in shards.values()}) < len(shards):
        held = "; ".join(f"{name}: shard {s['shard']} of {s['of']} of {s['corpus']}" for name, s in shards.items())
        raise FederationError(
            f"the sites do not share out one corpus ({held}). Every envoy.yaml must name the same corpus, `of` and "
            f"`seed`, and a `shard` of its own; change them and start those envoys again"
        )
    return shards


def _refuse_other_clips(shards: dict[str, dict[str, Any]]) -> None:
    (first, expected), *others = ((name, shard["format"]) for name, shard in shards.items())
    for name, given in others:
        for setting, value in expected.items():
            if given[setting] != value:
                raise FederationError(
                    f"the sites' clips differ in {setting}: {first} has {value}, {name} has {given[setting]}. One "
                    f"model needs the same everywhere; change one envoy.yaml (labels: give the same list to all) and "
                    f"start that envoy again"
                )


def _refuse_a_mixture(shards: dict[str, dict[str, Any]]) -> None:
    if shared := [name for name, shard in shards.items() if not brings_own(shard)]:
        raise FederationError(
            f"{', '.join(shared)} hold shards of a common corpus, the other sites recordings of their own; set "
            f"`partition` in every envoy.yaml to `own`, or in none"
        )


def described(site: Site) -> dict[str, Any]:
    """The description that the site's shard descriptor gave."""
    description: dict[str, Any] = json.loads(site.description) | {"devices": ", ".join(site.devices)}
    return description


def shard_table(shards: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row for each site: its shard, devices, speakers and utterances by split."""
    rows = {
        name: {
            "shard": "own" if brings_own(shard) else f"{shard['shard']} of {shard['of']}",
            "devices": shard["devices"],
        }
        | {f"{split} speakers": count for split, count in shard["speakers"].items()}
        | {f"{split} utterances": count for split, count in shard["utterances"].items()}
        for name, shard in shards.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")


def submit(
    federation: Federation,
    config: ExperimentConfig,
    name: str,
    form: ClipFormat,
    policy: RoundPolicy | None = None,
) -> Experiment:
    """Send the experiment and this package's source to the director."""
    return federation.submit(
        name,
        package=Path(__file__).resolve().parent,
        model=ClassifierProvider(config, form),
        tasks=TASKS,
        data=ShardData(config),
        rounds=config.training.rounds,
        best_metric=config.best_metric,
        keep_optimizer=config.training.keep_optimizer,
        policy=policy,
        update_format=config.update_format,
    )


def best_model(experiment: Experiment, config: ExperimentConfig, form: ClipFormat) -> Classifier:
    """The model that scored best in the aggregated validation."""
    model = build_model(config.model, config.training.seed, form)
    load_weights(model, experiment.best_weights())
    return model


def record(experiment: Experiment, run: Run, draw: Callable[..., None]) -> float:
    """Write every metric into the run as it arrives, and draw; returns the seconds it took.

    Raises:
        ExperimentFailed: with site, round, task and the remote traceback.
    """
    started = time.monotonic()
    for metric in experiment.metrics():
        run.add_metric(metric.round, metric.site, metric.task, metric.metric, metric.value)
        draw(run.metrics())
    draw(run.metrics(), now=True)
    return time.monotonic() - started
