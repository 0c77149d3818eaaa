"""What the federation is compared with: all data in one place, and each site alone.

As in the federation, the model of every round is validated on the validation speakers of all sites, and the best one
by `best_metric` is the baseline; of equals the last. The test set is the same, and so are the rounds. How much is
trained in a round is one of two things that cannot both be equal, since sites work side by side:

- "epochs": a baseline hears its clips as often as its sites do in the federation. Two equal sites of 100 steps are then
  compared with 200 steps one after the other in one place.
- "steps": every baseline takes as many steps, one after the other, as the site with the most.

By default it is what the experiment itself is counted in: steps with `training.local_steps`, else epochs. What was
trained is in the metric lines (`steps`, `samples`), from which the results table has it.

These need the sites' recordings in one place, so they exist only for a public or synthetic corpus that the experimenter
has too.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.connection import wait

import torch

from kws.config import Algorithm, ExperimentConfig, Training
from kws.metrics import Evaluation
from kws.training import evaluate, steps_in_round
from lab.asked import BASELINES
from lab.joined import Joined
from lab.records import Run
from lab.selection import Selection
from lab.simulation import federated_averaging
from lab.tables import POOLED, alone
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Baseline:
    """One training run without a federation, on the training utterances of some sites.

    name: "pooled" or "<site> alone".
    """

    name: str
    sites: tuple[tuple[Utterance, ...], ...]


def train_baselines(
    config: ExperimentConfig,
    shards: Mapping[str, Sequence[Utterance]],
    validation: ClipSet,
    test: ClipSet,
    run: Run,
    cores: int | None = None,
    which: Sequence[str] = BASELINES,
    budget: str | None = None,
) -> dict[str, Evaluation]:
    """Train the pooled model and every site's own, side by side on `cores` cores; on a GPU one after the other.

    Args:
        config: the experiment of the federation.
        shards: by site, its training utterances.
        validation: clips by which the best round is chosen: those of all sites.
        test: clips to evaluate the best models on.
        run: gets a metrics line for every round.
        cores: cores to share, None: all; each training gets as many threads as there are cores for it.
        which: "pooled", "alone", both or none.
        budget: "epochs" or "steps", as above; None: what the experiment is counted in.

    Returns:
        The evaluation of each baseline's best model on the test utterances, by its name.
    """
    jobs = [Baseline(POOLED, tuple(map(tuple, shards.values())))] if "pooled" in which else []
    jobs += [Baseline(alone(site), (tuple(own),)) for site, own in shards.items() if "alone" in which]
    if not jobs:
        return {}
    cores = cores or os.cpu_count() or 1
    workers = workers_for(len(jobs), cores, torch.cuda.is_available())
    sizes = [len(own) for own in shards.values()]
    context = multiprocessing.get_context("spawn")
    with (
        _environment(OMP_NUM_THREADS=str(cores // workers), OMP_WAIT_POLICY="PASSIVE"),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent) as pool,
    ):
        results = {
            job.name: pool.submit(_train, with_budget(config, job, sizes, budget), job, validation, test, run)
            for job in jobs
        }
        return {name: result.result() for name, result in results.items()}


def workers_for(jobs: int, cores: int, gpu: bool) -> int:
    """How many train at a time: on a GPU one, which has its memory and its speed to itself."""
    return 1 if gpu else min(cores, jobs)


def with_budget(
    config: ExperimentConfig, job: Baseline, sizes: Sequence[int], budget: str | None = None
) -> ExperimentConfig:
    """The experiment with as much training in a round as a baseline is to have.

    sizes: how many training clips each site of the federation has. budget: see above.
    """
    training = config.training
    if (budget or ("steps" if training.local_steps else "epochs")) == "steps":
        steps = max(steps_in_round(training, size) for size in sizes)
    elif training.local_steps:
        steps = training.local_steps * len(job.sites)
    else:
        return config
    longer: Training = replace(training, local_steps=steps)
    return replace(config, training=longer)


def _train(config: ExperimentConfig, job: Baseline, validation: ClipSet, test: ClipSet, run: Run) -> Evaluation:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = replace(config, algorithm=Algorithm())  # there is nobody to come together with
    chosen = Selection(
        config, validation, device, lambda done, scores: run.add_metrics(done, job.name, "validate", scores)
    )
    clips = Joined([ClipSet(own, test.format) for own in job.sites])
    federated_averaging(config, {job.name: clips}, run.add_metrics, device, after_round=chosen)
    return evaluate(chosen.best_model(), test, config.training)


def _leave_with_parent() -> None:
    """End this worker when the process that started it is gone, however it went."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    sentinel = parent.sentinel

    def watch() -> None:
        wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Variables that child processes inherit while the context lasts."""
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
