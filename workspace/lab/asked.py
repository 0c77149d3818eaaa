"""What a run is to do: the experiment, its seeds, and what it is compared with.

A notebook's cell asks by `ask(...)`, `kws demo` by the environment. What stands in the cell holds; what is left out
there is what the environment says, so that the same notebook serves both.
"""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kws.config import ConfigError, ExperimentConfig
from lab.changes import changed
from lab.presets import asked_for, preset
from shard_descriptors.sources.speech_commands import SYNTHETIC

BASELINES = ("pooled", "alone")
"""What a federation can be compared with: all recordings in one place, and each site by itself."""
BUDGETS = ("epochs", "steps")

SYNTHETIC_ROUNDS = 10
"""Of the preset "tiny" where the sites hold synthetic speech: it is easy, people are not."""

_PREFIX = "KWS_"


@dataclass(frozen=True)
class Asked:
    """What a run is to do; lists are taken for tuples.

    preset, model, changes: the experiment, as `lab.presets.asked_for` takes them. baselines: which of `BASELINES` are
    trained. budget: how much of it, see `lab.baselines`; None: what suits the experiment. seeds: each is an experiment
    of its own; none: the experiment's own seed. simulate: rounds that are simulated first, in the notebook's process.
    recorded: the `config.json` of a run to be repeated, in place of preset and model.

    Raises:
        ConfigError: with every problem, one a line.
    """

    preset: str | None = None
    model: str | None = None
    changes: Sequence[str] = ()
    baselines: Sequence[str] = BASELINES
    budget: str | None = None
    seeds: Sequence[int] = ()
    simulate: int = 0
    recorded: str | None = None

    def __post_init__(self) -> None:
        for name in ("changes", "baselines", "seeds"):
            if isinstance(getattr(self, name), str) or not isinstance(getattr(self, name), Sequence):
                raise ConfigError(f"{name} is {getattr(self, name)!r}; give a list")
            object.__setattr__(self, name, tuple(getattr(self, name)))
        problems = [
            f"baselines names {each!r}; allowed: {', '.join(BASELINES)}, or none at all"
            for each in self.baselines
            if each not in BASELINES
        ]
        if self.budget not in (None, *BUDGETS):
            problems.append(f"budget is {self.budget!r}; allowed: {', '.join(BUDGETS)}, or None")
        problems += [
            f"seeds has {each!r}; allowed: whole numbers, 0 to {2**32 - 1}"
            for each in self.seeds
            if type(each) is not int or not 0 <= each < 2**32
        ]
        if len(set(self.seeds)) < len(self.seeds):
            problems.append(f"seeds has one twice: {list(self.seeds)}")
        if type(self.simulate) is not int or self.simulate < 0:
            problems.append(f"simulate is {self.simulate!r}; allowed: a number of rounds, 0 for none")
        if problems:
            raise ConfigError("\n".join(problems))

    def experiment(
        self, shards: Mapping[str, Mapping[str, Any]], usual: ExperimentConfig | None = None
    ) -> ExperimentConfig:
        """The experiment on these sites, with the first seed; where neither preset nor model is asked for, the usual.

        Raises:
            ConfigError: every name that does not exist and every value that is not allowed.
        """
        names = [change for change in self.changes if change.startswith("model.name")]
        changes = list(self.changes)
        if self.recorded and not (self.preset or self.model):
            record = json.loads(Path(self.recorded).read_text(encoding="utf-8"))
            config = ExperimentConfig.from_dict(record["config"])
        elif usual and not (self.preset or self.model or names):
            config = usual
        else:
            config = asked_for(self.preset, self.model, names)
            if config == preset("tiny") and next(iter(shards.values()))["corpus"] == SYNTHETIC:
                changes = [f"training.rounds={SYNTHETIC_ROUNDS}", *changes]
        config = changed(config, changes)
        return seeded(config, self.seeds[0]) if self.seeds else config

    def to_environment(self) -> dict[str, str]:
        """Variables from which `ask()` makes the same."""
        lists = {"changes": "\n", "baselines": ",", "seeds": ","}
        values = {
            name: lists[name].join(map(str, value)) if name in lists else value for name, value in vars(self).items()
        }
        return {f"{_PREFIX}{name.upper()}": str("" if value is None else value) for name, value in values.items()}

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for the record."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}


def ask(
    *,
    preset: str | None = None,
    model: str | None = None,
    changes: Sequence[str] | None = None,
    baselines: Sequence[str] | None = None,
    budget: str | None = None,
    seeds: Sequence[int] | None = None,
    simulate: int | None = None,
) -> Asked:
    """What is given here, and for each that is None what the environment says (`kws demo`), else the default.

    Raises:
        ConfigError: with every problem, one a line; something is given, and the environment says to repeat a record.
    """
    given = {name: value for name, value in locals().items() if value is not None}
    said = from_environment()
    if given and said.recorded:
        raise ConfigError(
            f"this run is to repeat {said.recorded}, and the notebook's cell asks for {', '.join(given)}; write None "
            f"there, or run the notebook without `kws run` (KWS_RECORDED)"
        )
    return replace(said, **given)


def from_environment() -> Asked:
    """What KWS_PRESET, KWS_MODEL, KWS_CHANGES (one a line), KWS_BASELINES ("pooled,alone"; 0: none; 1: all),
    KWS_BUDGET, KWS_SEEDS ("0,1,2"), KWS_SIMULATE and KWS_RECORDED say.

    Raises:
        ConfigError: with every problem, one a line.
    """
    said = {name: os.environ.get(f"{_PREFIX}{name.upper()}", "") for name in Asked.__dataclass_fields__}
    baselines = os.environ.get(f"{_PREFIX}BASELINES", "1")
    return Asked(
        preset=said["preset"] or None,
        model=said["model"] or None,
        changes=[line for line in said["changes"].splitlines() if line],
        baselines=names_of(baselines),
        budget=said["budget"] or None,
        seeds=numbers_of(said["seeds"]),
        simulate=next(iter(numbers_of(said["simulate"])), 0),
        recorded=said["recorded"] or None,
    )


def names_of(text: str) -> tuple[str, ...]:
    """Baselines as a word gives them: their names between commas; "1" for all of them, "0" or nothing for none.

    >>> names_of("1"), names_of("pooled"), names_of("0")
    (('pooled', 'alone'), ('pooled',), ())
    """
    if text.strip().lower() in ("1", "true", "yes"):
        return BASELINES
    if text.strip().lower() in ("0", "false", "no"):
        return ()
    return tuple(name.strip() for name in text.split(",") if name.strip())


def numbers_of(text: str) -> tuple[int, ...]:
    """Whole numbers between commas.

    >>> numbers_of("0, 1,2")
    (0, 1, 2)

    Raises:
        ConfigError: one is none.
    """
    try:
        return tuple(int(each) for each in text.split(",") if each.strip())
    except ValueError:
        raise ConfigError(f"{text!r} is no list of whole numbers; write them between commas, 0,1,2 say") from None


def seeded(config: ExperimentConfig, seed: int) -> ExperimentConfig:
    """The same experiment with another seed."""
    return replace(config, training=replace(config.training, seed=seed))
