"""What the federation is compared with: all data in one place, and each site alone.

As in the federation, the model of every round is validated on the validation speakers of all sites, and the best one by
`best_metric` is the baseline; of equals the last. As many epochs, and the same test set; an epoch of all data in one
place has as many steps as one of all sites together.

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

from kws.caching import heard_by
from kws.config import Algorithm, ExperimentConfig
from kws.metrics import METRICS, Evaluation
from kws.model import build_model, load_weights
from kws.training import evaluate
from lab.joined import Joined
from lab.records import Run
from lab.simulation import Weights, federated_averaging
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
    cores: int,
) -> dict[str, Evaluation]:
    """Train the pooled model and every site's own, side by side on `cores` cores.

    Args:
        config: the experiment of the federation.
        shards: by site, its training utterances.
        validation: clips by which the best round is chosen: those of all sites.
        test: clips to evaluate the best models on.
        run: gets a metrics line for every round.
        cores: cores to share; each training gets as many threads as there are cores for it.

    Returns:
        The evaluation of each baseline's best model on the test utterances, by its name.
    """
    jobs = [Baseline(POOLED, tuple(map(tuple, shards.values())))]
    jobs += [Baseline(alone(site), (tuple(own),)) for site, own in shards.items()]
    workers = min(cores, len(jobs))
    context = multiprocessing.get_context("spawn")
    with (
        _environment(OMP_NUM_THREADS=str(cores // workers), OMP_WAIT_POLICY="PASSIVE"),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent) as pool,
    ):
        results = {job.name: pool.submit(_train, config, job, validation, test, run) for job in jobs}
        return {name: result.result() for name, result in results.items()}


def _train(config: ExperimentConfig, job: Baseline, validation: ClipSet, test: ClipSet, run: Run) -> Evaluation:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(config.model, config.training.seed, test.format).to(torch.device(device))
    heard = heard_by(model, validation, config.training)
    best: tuple[float, Weights] | None = None

    def choose(done: int, weights: Weights) -> None:
        nonlocal best
        load_weights(model, weights)
        scores = evaluate(model, heard, config.training).scalars()
        run.add_metrics(done, job.name, "validate", scores)
        if best is None or METRICS[config.best_metric].better(scores[config.best_metric], best[0]):
            best = scores[config.best_metric], weights

    config = replace(config, algorithm=Algorithm())  # there is nobody to come together with
    clips = Joined([ClipSet(own, test.format) for own in job.sites])
    federated_averaging(config, {job.name: clips}, run.add_metrics, device, after_round=choose)
    assert best is not None
    load_weights(model, best[1])
    return evaluate(model, test, config.training)


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
