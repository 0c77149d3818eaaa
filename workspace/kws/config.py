"""What an experiment is, as frozen values that check themselves and report every problem at once."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, get_type_hints

import yaml

from kws.metrics import METRICS

UPDATE_FORMATS = ("float32", "float16", "bfloat16", "int8")
SAMPLINGS = ("all", "balanced")
HEADS = ("own", "weighted_sum", "adapter")
TRAINED = ("all", "all_but_feature_encoder", "top_layers", "head", "lora", "biases_and_norms")


class ConfigError(ValueError):
    """A configuration that cannot be used; lists every problem found."""


@dataclass(frozen=True)
class ModelRecipe:
    """How the classifier is made.

    `name` is "tiny" (a small network trained from scratch), the name of a model on the Hugging Face hub
    ("facebook/wav2vec2-base"), or a local folder in the same form; `revision` pins a hub model to a commit or tag.

    `head`: "own" is the library's; "weighted_sum" is linear on the softmax-weighted sum of all layers, by way of
    `head_size` (SUPERB: Yang et al. 2021); "adapter" goes through `adapter_hidden_size` in every frame and has a
    classifier of two layers.

    `trained` says which tensors are trained and therefore federated: "all", "all_but_feature_encoder", the
    `top_layers` last layers of the encoder ("top_layers"), "head", "lora" (of rank `lora_rank`, scaled by
    `lora_alpha` / rank; FFA-LoRA: Sun et al. 2024), or "biases_and_norms" (BitFit: Zaken et al. 2022); all but the
    first with the head. None means all for "tiny", all but the feature encoder for pretrained weights. What is frozen
    behaves in training as it does in evaluation.

    `cut_positions` cuts Whisper's positions from 30 s to the length of a clip. `dropout` (0 to 1) is applied inside
    the transformer. `gradient_checkpointing` trades time for memory. `spec_augment` masks, in training, about a share
    `mask_time_prob` of the frames in runs of `mask_time_length`, and `mask_feature_prob` of the hidden dimensions in
    runs of `mask_feature_length` (Park et al. 2019).
    """

    name: str = "tiny"
    revision: str | None = None
    head: str = "own"
    head_size: int = 256
    adapter_hidden_size: int = 128
    trained: str | None = None
    top_layers: int = 2
    lora_rank: int = 8
    lora_alpha: int = 16
    cut_positions: bool = False
    dropout: float = 0.1
    gradient_checkpointing: bool = False
    spec_augment: bool = False
    mask_time_prob: float = 0.05
    mask_time_length: int = 10
    mask_feature_prob: float = 0.0
    mask_feature_length: int = 10

    def __post_init__(self) -> None:
        _check(
            (not self.name, "model.name is empty; give 'tiny', a hub name or a folder"),
            (self.head not in HEADS, f"model.head is {self.head!r}; allowed: {', '.join(HEADS)}"),
            (
                self.trained not in (None, *TRAINED),
                f"model.trained is {self.trained!r}; allowed: {', '.join(TRAINED)} or null",
            ),
            (
                self.name == "tiny" and self.trained not in (None, "all"),
                f"model.trained is {self.trained!r}: 'tiny' starts untrained, all of it must be trained",
            ),
            (
                self.name == "tiny" and self.revision is not None,
                "model.revision is for models of the hub; 'tiny' has none",
            ),
            (
                self.spec_augment and self.trained == "head",
                "model.spec_augment has no effect where model.trained is 'head': the encoder is in evaluation mode",
            ),
            *(
                (not _whole(value, 1), f"model.{name} is {value}; a whole number, at least 1")
                for name, value in self._of(*_MODEL_COUNTS)
            ),
            *(
                (not isinstance(value, bool), f"model.{name} is {value!r}; allowed: true, false")
                for name, value in self._of("cut_positions", "gradient_checkpointing", "spec_augment")
            ),
            *(
                (not 0 <= value < 1, f"model.{name} is {value}; allowed: 0 to below 1")
                for name, value in self._of("dropout", "mask_time_prob", "mask_feature_prob")
            ),
        )

    def _of(self, *names: str) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in names]

    @property
    def trains(self) -> str:
        """What of it is trained, where `trained` leaves that to the kind of model."""
        return self.trained or ("all" if self.name == "tiny" else "all_but_feature_encoder")


_MODEL_COUNTS = (
    "head_size", "adapter_hidden_size", "top_layers", "lora_rank", "lora_alpha",
    "mask_time_length", "mask_feature_length",
)  # fmt: skip


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training clip, drawn anew each time.

    `max_shift` moves a clip by up to so many seconds either way; `max_speed` plays it faster or slower by up to that
    share; `noise_probability` is the share of clips into which sound of the site's own silence clips is mixed, at a
    signal-to-noise ratio between `min_snr_db` and `max_snr_db`.
    """

    max_shift: float = 0.1
    max_speed: float = 0.05
    noise_probability: float = 0.2
    min_snr_db: float = 0.0
    max_snr_db: float = 20.0

    def __post_init__(self) -> None:
        _check(
            (not 0 <= self.max_shift < 1, f"augmentation.max_shift is {self.max_shift} s; allowed: 0 to below 1"),
            (not 0 <= self.max_speed < 1, f"augmentation.max_speed is {self.max_speed}; allowed: 0 to below 1"),
            (
                not 0 <= self.noise_probability <= 1,
                f"augmentation.noise_probability is {self.noise_probability}; allowed: 0 to 1",
            ),
            (self.min_snr_db > self.max_snr_db, "augmentation.min_snr_db is above augmentation.max_snr_db"),
        )


@dataclass(frozen=True)
class Training:
    """One site's local training, the same on every site.

    AdamW with linear warm-up over `warmup` (a share of all steps) to `learning_rate`, then a cosine to zero at the end
    of the last round. `keep_optimizer` keeps each site's moments from round to round. `sampling` says which clips make
    an epoch: "all" of them once, or as many drawn with replacement, every label equally often ("balanced").
    """

    rounds: int = 20
    local_epochs: int = 1
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    weight_decay: float = 0.02
    warmup: float = 0.1
    label_smoothing: float = 0.05
    keep_optimizer: bool = True
    sampling: str = "all"
    seed: int = 0
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        _check(
            *(
                (not _whole(getattr(self, n), 1), f"training.{n} is {getattr(self, n)}; a whole number, at least 1")
                for n in _COUNTS
            ),
            (
                not 0 < self.learning_rate < 1,
                f"training.learning_rate is {self.learning_rate}; allowed: above 0, below 1",
            ),
            (
                not math.isfinite(self.weight_decay) or self.weight_decay < 0,
                "training.weight_decay must not be negative",
            ),
            (not 0 <= self.warmup < 1, f"training.warmup is {self.warmup}; allowed: 0 to below 1"),
            (
                not 0 <= self.label_smoothing < 1,
                f"training.label_smoothing is {self.label_smoothing}; allowed: 0 to below 1",
            ),
            (
                self.sampling not in SAMPLINGS,
                f"training.sampling is {self.sampling!r}; allowed: {', '.join(SAMPLINGS)}",
            ),
            (not _whole(self.seed, 0), f"training.seed is {self.seed}; a whole number, not negative"),
        )


_COUNTS = ("rounds", "local_epochs", "batch_size")


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment: model, local training and the metric by which the best model is chosen (one of `METRICS`).

    `update_format` is how the sites send what they have trained: "float32", or the change in fewer bits, where what is
    rounded off is made up for in the next round ("float16" and "bfloat16": half the bytes, "int8": a quarter).
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    training: Training = field(default_factory=Training)
    best_metric: str = "accuracy"
    update_format: str = "float32"

    def __post_init__(self) -> None:
        allowed = ", ".join(METRICS)
        formats = ", ".join(UPDATE_FORMATS)
        _check(
            (self.best_metric not in METRICS, f"best_metric is {self.best_metric!r}; allowed: {allowed}"),
            (self.update_format not in UPDATE_FORMATS, f"update_format is {self.update_format!r}; allowed: {formats}"),
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for the run record and for the sites."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """The configuration of such values; what is not given has its default.

        Raises:
            ConfigError: a name that does not exist, or a value that is not allowed.
        """
        return _built(cls, values, "")


Settings = TypeVar("Settings")


def _built(kind: type[Settings], values: Mapping[str, Any], group: str) -> Settings:
    """A dataclass of values by name, those of a dataclass within it in a mapping of their own."""
    kinds = get_type_hints(kind)
    known = {each.name for each in dataclasses.fields(kind)}  # type: ignore[arg-type]
    if unknown := sorted(values.keys() - known):
        raise ConfigError(f"there is no {group}{unknown[0]}; allowed here: {', '.join(sorted(known))}")
    return kind(
        **{
            name: _built(kinds[name], value, f"{group}{name}.") if dataclasses.is_dataclass(kinds[name]) else value
            for name, value in values.items()
        }
    )


def changed(config: Settings, changes: Sequence[str]) -> Settings:
    """A copy of a configuration with values changed by name, each given as "training.rounds=5".

    Raises:
        ConfigError: a name that does not exist, or a value that is not allowed.
    """
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"{change!r} is not a change; write name=value, e.g. training.rounds=5")
        try:
            value = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{change!r}: {text!r} is not a value; write a number, true, false or a word") from error
        config = _with(config, path.strip().split("."), value, change)
    return config


def _with(config: Any, path: Sequence[str], value: Any, change: str) -> Any:
    names = [each.name for each in dataclasses.fields(config)] if dataclasses.is_dataclass(config) else []
    if path[0] not in names:
        raise ConfigError(f"{change!r}: there is no {path[0]!r}; allowed here: {', '.join(names) or 'nothing'}")
    old = getattr(config, path[0])
    new = _with(old, path[1:], value, change) if path[1:] else value
    if isinstance(old, float) and not isinstance(new, bool):
        with suppress(TypeError, ValueError, OverflowError):  # so that 1 will do, and 1e-3, which YAML takes for text
            new = float(new)
    if old is not None and type(new) is not type(old):
        raise ConfigError(f"{change!r}: {value!r} is not of the kind of the default, {old!r}")
    return dataclasses.replace(config, **{path[0]: new})


def _whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and value >= least


def _check(*rules: tuple[bool, str]) -> None:
    problems = [text for wrong, text in rules if wrong]
    if problems:
        raise ConfigError("\n".join(problems))
