"""What each algorithm is good for: a frozen encoder's probe on real recordings, shared out in several ways.

A cell is one algorithm on one partition with one seed, and is kept as soon as it is there (`results/algorithms.json`),
so that a run that was ended goes on where it was. The encoder hears every clip once; a round of the probe then takes a
fraction of a second.
"""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import ClassVar

import numpy as np
import torch
import transformers

from kws.batches import Heard, Inputs
from kws.caching import heard_by
from kws.clips import Keys, Numbers
from kws.config import Algorithm, ExperimentConfig
from kws.model import Classifier, build_model, load_weights
from kws.training import evaluate
from lab.algorithms import rule_of
from lab.presets import preset
from lab.simulation import Weights, federated_averaging
from rules.contract import InMemory, Rule, State, Tensors
from rules.in_memory import StateInMemory, next_state
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.utterances import Utterance

SEEDS = (0, 1, 2)
ROUNDS = 4
PARTITIONS: dict[str, tuple[Mapping[str, object], int]] = {
    "2 sites by speaker": ({"scheme": "speakers"}, 2),
    "10 sites by speaker": ({"scheme": "speakers"}, 10),
    "10 sites, Dirichlet 0.3": ({"scheme": "dirichlet", "alpha": 0.3}, 10),
}
SGD = {"optimizer": "sgd", "momentum": 0.0, "learning_rate": 0.5}
"""What SCAFFOLD corrects; the rate was not searched for."""

ALGORITHMS: dict[str, tuple[Algorithm, Mapping[str, object]]] = {
    "mean": (Algorithm(), {}),
    "mean, every site equal": (Algorithm(weight_cap=1), {}),
    "mean, bounded at 2": (Algorithm(max_update_norm=2.0), {}),
    "mean, bounded at 8": (Algorithm(max_update_norm=8.0), {}),
    "fedavgm": (Algorithm(rule="fedavgm", beta1=0.5), {}),
    "fedadam": (Algorithm(rule="fedadam"), {}),
    "fedadam, rate 0.03": (Algorithm(rule="fedadam", server_learning_rate=0.03), {}),
    "fedyogi": (Algorithm(rule="fedyogi"), {}),
    "fedadagrad": (Algorithm(rule="fedadagrad"), {}),
    "median": (Algorithm(rule="median"), {}),
    "trimmed_mean": (Algorithm(rule="trimmed_mean"), {}),
    "krum": (Algorithm(rule="krum"), {}),
    "multi-krum": (Algorithm(rule="krum", select=4), {}),
    "fedprox 0.1": (Algorithm(proximal=0.1), {}),
    "fedprox 0.001": (Algorithm(proximal=0.001), {}),
    "mean, SGD": (Algorithm(), SGD),
    "scaffold, SGD": (Algorithm(rule="scaffold"), SGD),
}
"""By what the table calls them: the algorithm, and how the training differs from the preset's."""

ATTACKED = (
    "mean",
    "mean, bounded at 2",
    "mean, bounded at 8",
    "fedavgm",
    "fedadam",
    "median",
    "trimmed_mean",
    "krum",
    "multi-krum",
)
SITES_ATTACKED = 5

Update = dict[str, np.ndarray]
GARBAGE: dict[str, Callable[[Update, Update, np.random.Generator], Update]] = {
    "none": lambda sent, model, generator: sent,
    "random": lambda sent, model, generator: {
        name: generator.normal(size=array.shape).astype(np.float32) for name, array in sent.items()
    },
    "sign flipped": lambda sent, model, generator: {name: 2 * model[name] - array for name, array in sent.items()},
    "scaled by 100": lambda sent, model, generator: {
        name: model[name] + 100 * (array - model[name]) for name, array in sent.items()
    },
}
"""What one site of five sends in the place of what it has trained, in every round."""


@dataclass(frozen=True)
class Spoiled(Rule):
    """A rule, of whose first site the update is spoiled before it is given to the rule."""

    of_the_mean: ClassVar[bool] = False
    rule: Rule
    garbage: str
    seed: int

    def __post_init__(self) -> None:
        """The rule has checked itself."""

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """What the rule makes of it."""
        model, arrays, sent = InMemory.of(state.model), InMemory.of(state.arrays), [InMemory.of(e) for e in updates]
        generator = np.random.default_rng([self.seed, int(np.abs(sent[0][next(iter(sent[0]))]).sum() * 1e6)])
        spoiled = GARBAGE[self.garbage](sent[0], model, generator)
        kept = next_state(self.rule, StateInMemory(model, arrays, state.numbers), [spoiled, *sent[1:]], weights)
        return State(kept.model, kept.arrays, kept.numbers), kept.model


@dataclass(frozen=True)
class Cell:
    """One training: an algorithm on a partition, perhaps with garbage, with one seed."""

    partition: str
    algorithm: str
    garbage: str
    seed: int

    @property
    def key(self) -> str:
        """Its name in the results."""
        return f"{self.partition} / {self.algorithm} / {self.garbage} / {self.seed}"


def cells(seeds: Sequence[int] = SEEDS) -> list[Cell]:
    """All of them, one seed after the other; Krum is left out where there are too few sites."""
    honest = [
        (partition, algorithm, "none")
        for partition, (_, sites) in PARTITIONS.items()
        for algorithm, (settings, _) in ALGORITHMS.items()
        if rule_of(settings).least_sites <= sites
    ]
    spoiled = [(f"{SITES_ATTACKED} sites by speaker", name, kind) for name in ATTACKED for kind in GARBAGE]
    return [Cell(*each, seed) for seed in seeds for each in (*honest, *spoiled)]


def measure_algorithms(
    corpus: Path, encoder: Path, kept: Path, rounds: int, seeds: Sequence[int], say: Callable[[str], None]
) -> dict[str, object]:
    """Every cell's federated test scores; those that `kept` has are not measured again."""
    found: dict[str, dict[str, float]] = {}
    about = {"corpus": corpus.name, "encoder": encoder.name, "rounds": rounds}
    if kept.exists():
        before = json.loads(kept.read_text())
        found = before["cells"] if before["about"] == about else {}
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    base = preset("superb_ks", model=str(encoder))
    base = replace(base, training=replace(base.training, rounds=rounds))
    utterances = load(corpus).utterances
    todo = [cell for cell in cells(seeds) if cell.key not in found]
    if not todo:
        return {"about": about, "cells": found}
    train, test = (heard(base, utterances, split) for split in ("train", "test"))
    partitions = {name: sites_of(name, utterances, train) for name in dict.fromkeys(cell.partition for cell in todo)}
    judge = build_model(base.model, 0, test.clips.format)
    for number, cell in enumerate(todo, 1):
        begun = time.perf_counter()
        config, weights = trained(cell, base, partitions[cell.partition])
        load_weights(judge, weights)  # all that a cell has trained
        told = evaluate(judge, test, config.training).scalars()
        found[cell.key] = scores = {name: told[name] for name in ("accuracy", "macro_f1")}
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps({"about": about, "cells": found}, indent=1))
        seconds = time.perf_counter() - begun
        say(f"{number} of {len(todo)}: {cell.key}: accuracy {scores['accuracy']:.3f}, {seconds:.1f} s")
    return {"about": about, "cells": found}


@dataclass(frozen=True, kw_only=True)
class Part(Heard):
    """Some of a set's clips, from what is kept of the set."""

    whole: Heard
    numbers: Numbers

    def inputs(self, numbers: Numbers, keys: Keys | None = None) -> Inputs:
        """What `logits` takes."""
        return self.whole.inputs(self.numbers[numbers], keys)

    def logits(self, model: Classifier, inputs: Inputs) -> torch.Tensor:
        """The answers: float32 (batch, num_labels)."""
        return self.whole.logits(model, inputs)


def heard(base: ExperimentConfig, utterances: Sequence[Utterance], split: str) -> Heard:
    """A split as the frozen encoder hears it: computed once, whoever gets which part of it."""
    clips = ClipSet([each for each in utterances if each.split == split])
    return heard_by(build_model(base.model, 0, clips.format), clips, base.training, changed=split == "train")


def sites_of(partition: str, utterances: Sequence[Utterance], train: Heard) -> dict[str, Heard]:
    """The training clips of each site."""
    scheme, count = PARTITIONS.get(partition, ({"scheme": "speakers"}, SITES_ATTACKED))
    assigned = assign(utterances, scheme_of(scheme), count, 0)
    place = {each: number for number, each in enumerate(u for u in utterances if u.split == "train")}
    sites = {}
    for number in range(1, count + 1):
        own = [each for each in shard_of(utterances, assigned, number) if each.split == "train"]
        places = np.array([place[each] for each in own])
        sites[f"site{number:02}"] = Part(ClipSet(own), whole=train, numbers=places)
    return sites


def trained(cell: Cell, base: ExperimentConfig, sites: Mapping[str, Heard]) -> tuple[ExperimentConfig, Weights]:
    """The cell's experiment, and the weights after its last round."""
    algorithm, changes = ALGORITHMS[cell.algorithm]
    config = replace(base, algorithm=algorithm, training=replace(base.training, seed=cell.seed, **changes))
    rule = Spoiled(rule=rule_of(algorithm), garbage=cell.garbage, seed=cell.seed) if cell.garbage != "none" else None
    return config, federated_averaging(config, sites, lambda *_: None, rule=rule)


def spread(found: Mapping[str, Mapping[str, float]], cell: Cell, seeds: Sequence[int], metric: str) -> str:
    """The mean over the seeds and, where there are several, their standard deviation, in points of a hundred."""
    values = [found[key][metric] for seed in seeds if (key := replace(cell, seed=seed).key) in found]
    if not values:
        return "–"
    return f"{100 * mean(values):.1f}" + (f" ± {100 * stdev(values):.1f}" if len(values) > 1 else "")


def tables(found: Mapping[str, Mapping[str, float]], seeds: Sequence[int]) -> tuple[list[list[str]], list[list[str]]]:
    """Rows of the algorithms by partition (accuracy, macro-F1), and of the rules by garbage (accuracy)."""
    honest = [
        [name, *(spread(found, Cell(each, name, "none", 0), seeds, metric)
                 for each in PARTITIONS for metric in ("accuracy", "macro_f1"))]
        for name in ALGORITHMS
    ]  # fmt: skip
    attacked = f"{SITES_ATTACKED} sites by speaker"
    spoiled = [
        [name, *(spread(found, Cell(attacked, name, kind, 0), seeds, "accuracy") for kind in GARBAGE)]
        for name in ATTACKED
    ]
    return honest, spoiled
