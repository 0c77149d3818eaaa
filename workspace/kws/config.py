"""What an experiment is, as frozen values that check themselves and report every problem at once."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kws.metrics import METRICS
from kws.settings import ConfigError as ConfigError
from kws.settings import check, setting, with_values

UPDATE_FORMATS = ("float32", "float16", "bfloat16", "int8")
HEADS = ("own", "weighted_sum", "adapter")
TRAINED = ("all", "all_but_feature_encoder", "top_layers", "head", "lora", "biases_and_norms")


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

    `cut_positions` cuts Whisper's positions from 30 s to a clip and a second of silence. `dropout` (0 to 1) is applied
    inside the transformer. `gradient_checkpointing` trades time for memory. `spec_augment` masks, in training, about a
    share `mask_time_prob` of the frames in runs of `mask_time_length`, and `mask_feature_prob` of the hidden dimensions
    in runs of `mask_feature_length` (Park et al. 2019).
    """

    name: str = "tiny"
    revision: str | None = None
    head: str = setting("own", one_of=HEADS)
    head_size: int = setting(256, least=1)
    adapter_hidden_size: int = setting(128, least=1)
    trained: str | None = setting(None, one_of=TRAINED)
    top_layers: int = setting(2, least=1)
    lora_rank: int = setting(8, least=1)
    lora_alpha: int = setting(16, least=1)
    cut_positions: bool = False
    dropout: float = setting(0.1, least=0, below=1)
    gradient_checkpointing: bool = False
    spec_augment: bool = False
    mask_time_prob: float = setting(0.05, least=0, below=1)
    mask_time_length: int = setting(10, least=1)
    mask_feature_prob: float = setting(0.0, least=0, below=1)
    mask_feature_length: int = setting(10, least=1)

    def __post_init__(self) -> None:
        check(
            self,
            "model.",
            (not self.name, "model.name is empty; give 'tiny', a hub name or a folder"),
            (
                self.name == "tiny" and self.trained not in (None, "all"),
                f"model.trained is {self.trained!r}: 'tiny' starts untrained, all of it must be trained",
            ),
            (
                self.name == "tiny" and self.revision is not None,
                "model.revision is for models of the hub; 'tiny' has none",
            ),
            (
                self.spec_augment is True and self.trained == "head",
                "model.spec_augment has no effect where model.trained is 'head': the encoder is in evaluation mode",
            ),
        )

    @property
    def trains(self) -> str:
        """What of it is trained, where `trained` leaves that to the kind of model."""
        return self.trained or ("all" if self.name == "tiny" else "all_but_feature_encoder")


@dataclass(frozen=True)
class Augmentation:
    """Random changes of each training clip, drawn anew each time that it is heard.

    `max_shift` moves a clip by up to so many seconds either way; `max_speed` plays it faster or slower by up to that
    share; `noise_probability` is the share of clips into which sound of the site's own silence clips is mixed, at a
    signal-to-noise ratio between `min_snr_db` and `max_snr_db`.
    """

    max_shift: float = setting(0.1, least=0, below=1)
    max_speed: float = setting(0.05, least=0, below=1)
    noise_probability: float = setting(0.2, least=0, most=1)
    min_snr_db: float = setting(0.0, least=-100, most=100)
    max_snr_db: float = setting(20.0, least=-100, most=100)

    def __post_init__(self) -> None:
        check(self, "augmentation.")
        if self.min_snr_db > self.max_snr_db:
            raise ConfigError(
                f"augmentation.min_snr_db is {self.min_snr_db}, above augmentation.max_snr_db, {self.max_snr_db}"
            )

    @classmethod
    def none(cls) -> "Augmentation":
        """Clips as they are."""
        return cls(max_shift=0.0, max_speed=0.0, noise_probability=0.0)

    @property
    def changes(self) -> bool:
        """Whether it changes clips at all."""
        return max(self.max_shift, self.max_speed, self.noise_probability) > 0


@dataclass(frozen=True)
class Training:
    """One site's local training, the same on every site. The defaults are those of the model "tiny".

    How long: `rounds` rounds; in each, `local_steps` steps, or else `local_epochs` passes through the site's clips (a
    share of one is allowed, and rounded up to whole steps). A round goes on in the clips where the last one stopped.
    `patience`: end after so many rounds without a better average by `best_metric`; None: never.

    A step: `accumulation` batches of `batch_size` clips, whose loss is averaged over all their clips. `sampling` says
    which clips make an epoch: "all" of them once, or as many drawn with replacement, every label equally often
    ("balanced"). `class_weights` weights each clip's loss by n / (labels * count of its label), from the site's own
    counts. Gradients longer than `max_grad_norm` are shortened to it; None: never.

    Optimizer: "adamw", "adam" (weight decay is part of the gradient), or "sgd" (likewise) with `momentum`; `beta2` is
    for the first two. `keep_optimizer` keeps each site's moments from round to round. `head_learning_rate`: the head's.

    Schedule over all rounds: warm-up in a straight line over `warmup` (a share of all steps) to `learning_rate`; then a
    "cosine" or "linear" decay to nothing at the end of the last round, or "constant".

    Arithmetic: `autocast` "auto" uses bfloat16 on a GPU that has it, and float32 on every CPU, so that all of them
    compute the same within rounding; "bfloat16" also on a CPU that has it; "off" nowhere. `deterministic`: on one CPU,
    with the same number of threads, the same weights to the bit; on a GPU as far as PyTorch can, and slower.

    `cache`: what a frozen network makes of a clip is computed once: "probe" keeps the mean over time of every hidden
    state, "conv" the feature encoder's output. `cached_copies`: "probe" keeps so many randomly changed copies of each.
    """

    rounds: int = setting(20, least=1)
    local_epochs: float = setting(1.0, above=0)
    local_steps: int | None = setting(None, least=1)
    patience: int | None = setting(None, least=1)
    batch_size: int = setting(16, least=1)
    accumulation: int = setting(1, least=1)
    sampling: str = setting("all", one_of=("all", "balanced"))
    class_weights: bool = False
    label_smoothing: float = setting(0.05, least=0, below=1)
    max_grad_norm: float | None = setting(1.0, above=0)
    optimizer: str = setting("adamw", one_of=("adamw", "adam", "sgd"))
    learning_rate: float = setting(1.5e-3, above=0, below=1)
    head_learning_rate: float | None = setting(None, above=0, below=1)
    weight_decay: float = setting(0.02, least=0)
    beta2: float = setting(0.98, least=0, below=1)
    momentum: float = setting(0.9, least=0, below=1)
    keep_optimizer: bool = True
    schedule: str = setting("cosine", one_of=("cosine", "linear", "constant"))
    warmup: float = setting(0.1, least=0, below=1)
    autocast: str = setting("auto", one_of=("auto", "bfloat16", "off"))
    deterministic: bool = True
    cache: str = setting("none", one_of=("none", "probe", "conv"))
    cached_copies: int = setting(0, least=0)
    seed: int = setting(0, least=0, most=2**32 - 1)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        changes = isinstance(self.augmentation, Augmentation) and self.augmentation.changes
        check(
            self,
            "training.",
            (
                self.class_weights is True and self.sampling == "balanced",
                "training.class_weights and training.sampling=balanced both make up for rare labels; choose one",
            ),
            (
                self.cached_copies != 0 and (self.cache != "probe" or not changes),
                "training.cached_copies keeps changed clips: it needs training.cache=probe, and a "
                "training.augmentation that changes clips",
            ),
            (
                self.cache != "none" and changes and not self.cached_copies,
                f"training.cache={self.cache} keeps what the network makes of a clip, and training.augmentation changes"
                f" the clip each time: set its max_shift, max_speed and noise_probability to 0, or training.cache to "
                f"none; or, for the probe, training.cached_copies to a number of changed copies",
            ),
        )


@dataclass(frozen=True)
class Algorithm:
    """What becomes of what the sites have trained, and how they are kept together (docs/algorithms.md).

    `rule` is the name of one of the director's rules; its numbers follow, None is the rule's own default, and which
    rule takes which is in `rules/`. "scaffold" has a part at the sites, too.

    `proximal`: FedProx's mu, how strongly each site is held to the round's model; 0: not at all. `personal` "head":
    the head does not travel, and each site keeps its own. `sites_per_round`: how many sites a round asks, of those that
    are there, or below 1 which share of all of the experiment's; None: all.
    """

    rule: str = "mean"
    weight_cap: int | None = None
    max_update_norm: float | None = None
    server_learning_rate: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    tau: float | None = None
    trim: float | None = None
    byzantine: int | None = None
    select: int | None = None
    proximal: float = setting(0.0, least=0)
    personal: str = setting("none", one_of=("none", "head"))
    sites_per_round: float | None = setting(None, above=0)

    def __post_init__(self) -> None:
        per_round = self.sites_per_round
        check(
            self,
            "algorithm.",
            (not self.rule, "algorithm.rule is empty; give a rule's name"),
            (
                isinstance(per_round, int | float) and per_round >= 1 and per_round != int(per_round),
                f"algorithm.sites_per_round is {per_round}; allowed: a whole number from 1, or a share below 1",
            ),
        )

    @property
    def numbers(self) -> dict[str, float]:
        """The rule's numbers that are given, by name."""
        names = ("weight_cap", "max_update_norm", "server_learning_rate", "beta1", "beta2", "tau", "trim")
        given = {name: getattr(self, name) for name in (*names, "byzantine", "select")}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def keeps(self) -> bool:
        """Whether a site keeps something of its own from round to round, whatever becomes of its optimizer."""
        return self.rule == "scaffold" or self.personal != "none"


@dataclass(frozen=True)
class ExperimentConfig:
    """A whole experiment: model, local training, algorithm, and the metric by which the best model is chosen.

    `update_format` is how the sites send what they have trained: "float32", or the change in fewer bits, where what is
    rounded off is made up for in the next round ("float16" and "bfloat16": half the bytes, "int8": a quarter).
    """

    model: ModelRecipe = field(default_factory=ModelRecipe)
    training: Training = field(default_factory=Training)
    best_metric: str = setting("accuracy", one_of=tuple(METRICS))
    update_format: str = setting("float32", one_of=UPDATE_FORMATS)
    algorithm: Algorithm = field(default_factory=Algorithm)

    def __post_init__(self) -> None:
        check(self, "")
        cache = self.training.cache
        check(
            self,
            "",
            (
                self.training == Training() and self.model.name != "tiny",
                f"model.name is {self.model.name!r}, and training is that of 'tiny', whose rate of "
                f"{Training().learning_rate} ruins pretrained weights; take a preset (kws demo --model, or "
                f"lab.presets.preset(model=...)), or say how to train",
            ),
            (
                cache == "probe" and (self.model.trains != "head" or self.model.head == "adapter"),
                "training.cache=probe keeps the mean over time of what a frozen encoder gives: it needs "
                "model.trained=head, and a model.head that is linear up to that mean (own, weighted_sum)",
            ),
            (
                cache == "conv" and self.model.trains in ("all", "biases_and_norms"),
                f"training.cache=conv keeps the output of a frozen feature encoder, and model.trained is "
                f"{self.model.trains}, which trains it; give another, or training.cache=none",
            ),
            (
                self.training.head_learning_rate is not None and self.model.trains == "head",
                "training.head_learning_rate: only the head is trained; give training.learning_rate alone",
            ),
            (
                self.algorithm.personal == "head" and self.model.trains == "head",
                "algorithm.personal=head leaves nothing to travel where model.trained is 'head'; choose another",
            ),
            (
                self.algorithm.rule == "scaffold" and (self.training.optimizer, self.training.momentum) != ("sgd", 0),
                f"algorithm.rule=scaffold corrects plain gradient steps: set training.optimizer to sgd and "
                f"training.momentum to 0 (they are {self.training.optimizer} and {self.training.momentum})",
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain values, for the run record and for the sites."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ExperimentConfig":
        """The configuration that `to_dict` has described; what is not given has its default.

        Raises:
            ConfigError: every name that does not exist and every value that is not allowed.
        """
        return with_values(cls(), values)
