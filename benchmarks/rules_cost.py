"""What a rule costs beside the mean, with the files that a director has: updates on a disk, a model written to it.

Every rule makes two rounds of the same updates; the second is timed, in which one with state finds it again. The first
is held to what the same rule, or numpy, makes in memory of a part of every tensor.
"""

import asyncio
import itertools
import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
from sizes import shapes
from steps import Figures, StepError, machine

from federation.director.gathering import Gathering
from federation.director.room import Room
from federation.schedule import TRAIN
from federation.wire.models import ModelFile, round_path, rule_path, save, updates_folder
from federation.wire.updates import Update
from rules.contract import Rule
from rules.in_memory import begin as begin_of
from rules.in_memory import next_state
from rules.krum import Krum
from rules.registry import build

RULES: dict[str, tuple[str, dict[str, float], int]] = {
    "mean": ("mean", {}, 1),
    "mean, capped": ("mean", {"weight_cap": 2}, 1),
    "median": ("median", {}, 1),
    "trimmed_mean": ("trimmed_mean", {}, 1),
    "scaffold": ("scaffold", {"server_learning_rate": 0.5}, 1),
    "fedavgm": ("fedavgm", {}, 1),
    "fedadam": ("fedadam", {}, 1),
    "fedyogi": ("fedyogi", {}, 1),
    "fedadagrad": ("fedadagrad", {}, 1),
    "mean, bounded": ("mean", {"max_update_norm": 1.0}, 2),
    "krum": ("krum", {}, 2),
    "multi-krum": ("krum", {"select": 2}, 2),
}
"""Name, numbers, and how often the updates have to be read. (With two sites Krum cannot be; it is timed with ten.)"""

LIMITS = {1: 1.3, 2: 2.5}
LOOKED_AT = 1000


def measure_rules(size: str, counts: Sequence[int], folder: Path, repeats: int, say: Callable[[str], None]) -> Figures:
    """Seconds of a round of every rule, by the clock and of the CPU, for each number of updates.

    Rules take turns, so that noise is everybody's.
    """
    seconds: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for count in counts:
        say(f"{count} updates of {size}: making them")
        shutil.rmtree(folder, ignore_errors=True)
        updates = make(size, count, folder)
        there = [name for name, (rule, numbers, _) in RULES.items() if build(rule, numbers).least_sites <= count]
        seconds[str(count)] = {name: [] for name in there}
        for _ in range(repeats):
            for name in there:
                rule, numbers, _ = RULES[name]
                seconds[str(count)][name].append(once(build(rule, numbers), updates, folder))
                say(f"{count} updates, {name}: {seconds[str(count)][name][-1][0]:.1f} s")
    shutil.rmtree(folder, ignore_errors=True)
    return {"machine": machine(), "size": size, "seconds": seconds}


def make(size: str, count: int, folder: Path) -> list[Path]:
    """A model, and updates of it, as files."""
    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)

    def tensors(add: dict[str, np.ndarray] | None = None) -> dict[str, np.ndarray]:
        found = {}
        for name, shape in shapes(size).items():
            noise = generator.standard_normal(shape, np.float32) * np.float32(0.02 if add is None else 0.001)
            found[name] = noise if add is None else noise + add[name]
        return found

    model = tensors()
    save(round_path(folder, 0), model)
    paths = [folder / f"update-{number}.safetensors" for number in range(count)]
    for path in paths:
        save(path, tensors(model))
    return paths


def once(rule: Rule, paths: Sequence[Path], folder: Path) -> tuple[float, float]:
    """Two rounds of a rule on the same model and updates, the first one checked; seconds of the second, and of the CPU.

    Raises:
        StepError: it has made something else than numpy.
    """
    sites = {f"s{number}": path for number, path in enumerate(paths)}
    before = None
    for done in (0, 1):
        shutil.rmtree(updates_folder(folder), ignore_errors=True)
        gathering = Gathering(folder, done, 0, (TRAIN,), rule, frozenset(), asyncio.to_thread, Room(), 60.0)
        updates = {}
        for site, path in sites.items():  # what has come is the director's to delete
            os.link(path, gathering.folder / path.name)
            updates[site] = Update(gathering.folder / path.name, gathering.model)
        begun, busy = time.perf_counter(), time.process_time()
        for number, (site, update) in enumerate(updates.items(), 1):
            gathering.examples[TRAIN][site] = number
            gathering.add(update, site, number)
        _, keeps = gathering.next_model(TRAIN, list(sites), before)
        seconds = time.perf_counter() - begun, time.process_time() - busy
        if before is None:
            check(rule, paths, folder)
        if keeps:
            rule_path(folder, 1).replace(rule_path(folder, 0))
            before = ModelFile(rule_path(folder, 0))
    return seconds


def check(rule: Rule, paths: Sequence[Path], folder: Path) -> None:
    """Hold the model that a rule has made to the same rule in memory, on the first elements of every tensor.

    Krum, which looks at all elements, is held to the update that it is: one of those that were sent.

    Raises:
        StepError: they differ.
    """
    model, made = ModelFile(round_path(folder, 0)), ModelFile(round_path(folder, 1))
    sent = [ModelFile(path) for path in paths]
    part = {name: slice(0, min(LOOKED_AT, math.prod(shape))) for name, shape in model.shapes.items()}

    def head(file: ModelFile) -> dict[str, np.ndarray]:
        return {name: file.read(name, place).copy() for name, place in part.items()}

    found, heads = head(made), [head(each) for each in sent]
    if isinstance(rule, Krum):
        groups = itertools.combinations(heads, int(rule.select))
        wanted = [{name: np.mean([each[name] for each in group], axis=0) for name in part} for group in groups]
    elif rule.max_update_norm is not None:
        norms = [
            math.sqrt(sum(float(((each[n] - model[n]).astype(np.float64) ** 2).sum()) for n in part)) for each in sent
        ]
        scale = [min(1.0, rule.max_update_norm / norm) for norm in norms]
        begin, weights = head(model), np.arange(1, len(sent) + 1) / (len(sent) * (len(sent) + 1) / 2)
        wanted = [{
            n: begin[n] + sum(w * s * (h[n] - begin[n]) for w, s, h in zip(weights, scale, heads, strict=True))
            for n in part
        }]  # fmt: skip
    else:
        wanted = [dict(next_state(rule, begin_of(head(model)), heads, range(1, len(sent) + 1)).model)]
    if not any(all(np.allclose(found[n], each[n], rtol=1e-5, atol=1e-7) for n in part) for each in wanted):
        raise StepError(f"{rule} has made something else from files than in memory")


def figures(measured: Figures) -> list[list[str]]:
    """A row for each rule: seconds, and times the mean by the clock and of the CPU, and what it may be."""
    rows = []
    for name, (_, _, passes) in RULES.items():
        row = [name]
        for found in measured["seconds"].values():
            if name not in found:
                row += ["–", "–", "–"]
                continue
            times = [median(each[kind] for each in found[name]) for kind in (0, 1)]
            ratios = [
                median(one[kind] / other[kind] for one, other in zip(found[name], found["mean"], strict=True))
                for kind in (0, 1)
            ]
            row += [f"{times[0]:.1f}", *(f"{ratio:.2f}" for ratio in ratios)]
        rows.append([*row, f"at most {LIMITS[passes]}" if name != "mean" else "–"])
    return rows
