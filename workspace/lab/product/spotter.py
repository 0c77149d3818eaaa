"""A saved model, ready to be asked: one of this project, one of the same task from the Hub, or an exported graph."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
import transformers
from safetensors import SafetensorError
from transformers.utils import logging

from kws.models import heads
from kws.models.classifier import Classifier
from kws.models.registry import FAMILIES

Floats = npt.NDArray[np.float32]

EXPORTED = "model.onnx"
WINDOW_SECONDS = 1.0
BATCH = 64


class SpotterError(ValueError):
    """A model that cannot be used; says which, why, and what to do."""


class Spotter(Protocol):
    """What answers.

    labels: names in the order of their ids. sample_rate: Hz. window: samples of a clip as it was trained on.
    """

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of their ids."""

    @property
    def sample_rate(self) -> int:
        """Hz."""

    @property
    def window(self) -> int:
        """Samples of a clip as the model was trained on."""

    def logits(self, waveforms: Floats) -> Floats:
        """Waveforms float32 (batch, num_samples) in [-1, 1] -> logits float32 (batch, num_labels)."""


@dataclass(frozen=True)
class TorchSpotter:
    """A model in PyTorch, as its training left it."""

    classifier: Classifier
    window: int

    @property
    def labels(self) -> tuple[str, ...]:
        """Names in the order of their ids."""
        return self.classifier.labels

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(self.classifier.extractor.sampling_rate)

    @torch.inference_mode()
    def logits(self, waveforms: Floats) -> Floats:
        """Waveforms float32 (batch, num_samples) -> logits float32 (batch, num_labels)."""
        device = next(self.classifier.parameters()).device
        answers: Floats = self.classifier(torch.from_numpy(waveforms).to(device)).float().cpu().numpy()
        return answers


def load(model: str, trust_code: bool = False) -> Spotter:
    """A model by its folder, its exported file or folder, or its name on the Hugging Face Hub.

    trust_code: run the Python code that lies beside the weights. A head of this project needs none of it.

    Raises:
        SpotterError: there is no such model, or it is none of this task.
    """
    path = Path(model).expanduser()
    if path.suffix == ".onnx" or (path / EXPORTED).is_file():
        return _exported(path if path.suffix == ".onnx" else path / EXPORTED)
    if (path / "model" / "config.json").is_file():  # a run
        path = path / "model"
    if path.is_dir() and not (path / "config.json").is_file():
        raise SpotterError(f"{model} holds no config.json, so it is no saved model; a run keeps its own in its `model`")
    if not path.exists() and (path.is_absolute() or model.startswith((".", "~")) or model.count("/") > 1):
        raise SpotterError(f"there is no folder {model}; give that of a saved model, such as runs/latest/model")
    return torch_spotter(str(path) if path.exists() else model, trust_code)


def torch_spotter(model: str, trust_code: bool = False) -> TorchSpotter:
    """A model in PyTorch by its folder or its name on the Hub.

    Raises:
        SpotterError: see `load`.
    """
    try:
        with quietly():
            network = _network(model, trust_code)
            extractor = _extractor(model, network)
    except SpotterError:
        raise
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise SpotterError(f"{model} cannot be loaded as a model that classifies audio: {reason}") from error
    network.eval()
    seconds = float(getattr(network.config, "clip_seconds", WINDOW_SECONDS))
    return TorchSpotter(Classifier(network, extractor), round(seconds * extractor.sampling_rate))


@contextmanager
def quietly() -> Iterator[None]:
    """Without the library's bars and reports of what it loads: what matters of them is an error here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def probabilities(logits: Floats) -> Floats:
    """Softmax over the labels: float32 (batch, num_labels), above 0, of sum 1."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    answers: Floats = (shifted / shifted.sum(axis=1, keepdims=True)).astype(np.float32)
    return answers


def answers(spotter: Spotter, waveforms: Floats, batch: int = BATCH) -> Iterator[Floats]:
    """Probabilities of many clips, float32 (batch, num_labels) at a time."""
    for first in range(0, len(waveforms), batch):
        yield probabilities(spotter.logits(waveforms[first : first + batch]))


def _network(model: str, trust_code: bool) -> Any:
    config, _ = transformers.PretrainedConfig.get_config_dict(model)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise SpotterError(f"{model} holds a model of type {kind!r}; this workspace knows {', '.join(FAMILIES)}")
    library: Any = transformers.AutoModelForAudioClassification
    more: dict[str, Any] = {}
    if "auto_map" in config:
        if isinstance(config.get("head"), str) and hasattr(heads, FAMILIES[kind].library):
            library = getattr(heads, FAMILIES[kind].library)  # the project's own code, not what lies in the folder
        elif trust_code:
            more = {"trust_remote_code": True}
        else:
            raise SpotterError(
                f"{model} comes with Python code of its own, which would run here; read it, and say --trust-code if it "
                f"may"
            )
    network, found = library.from_pretrained(model, dtype=torch.float32, output_loading_info=True, **more)
    missing = {key for key in found["missing_keys"] if not key.endswith("masked_spec_embed")}
    missing |= {key for key, *_ in found["mismatched_keys"]}
    if missing:
        raise SpotterError(
            f"{model} is a network whose classifier was never trained ({len(missing)} of its tensors are missing, "
            f"{min(missing)} for one); train one on it first: kws demo --model {model}"
        )
    return network


def _extractor(model: str, network: Any) -> Any:
    try:
        return transformers.AutoFeatureExtractor.from_pretrained(model)
    except (OSError, ValueError):
        return FAMILIES[network.config.model_type].default_extractor(network.config)


def _exported(path: Path) -> Spotter:
    from lab.product.runtime import open_exported

    return open_exported(path)


def labels_beside(path: Path) -> dict[str, Any]:
    """What `labels.json` beside an exported model tells: labels, sample_rate, window.

    Raises:
        SpotterError: it is missing or says something else.
    """
    beside = path.parent / "labels.json"
    try:
        told = json.loads(beside.read_text(encoding="utf-8"))
        labels, rate, window = told["labels"], int(told["sample_rate"]), int(told["window"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SpotterError(
            f"{beside} does not tell the labels of {path.name} ({error}); export the model again"
        ) from error
    return {"labels": tuple(map(str, labels)), "sample_rate": rate, "window": window}
