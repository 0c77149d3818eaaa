"""What the federation is compared with: all data in one place, and each site alone. Same budget, same test set.

These need the sites' recordings in one place, so they exist only for a public or synthetic corpus that the experimenter
has too.
"""

import multiprocessing
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait

import torch

from kws.config import ExperimentConfig
from kws.metrics import Evaluation
from kws.model import build_model, load_weights
from kws.training import evaluate
from lab.joined import Joined
from lab.records import Run
from lab.simulation import federated_averaging
from lab.tables import POOLED, alone
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat
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
    test: ClipSet,
    run: Run,
    cores: int,
) -> dict[str, Evaluation]:
    """Train the pooled model and every site's own, side by side on `cores` cores.

    Args:
        config: the experiment of the federation.
        shards: by site, its training utterances.
        test: clips of speakers that are in none of them.
        run: gets a metrics line for every round.
        cores: cores to share; each training gets as many threads as there are cores for it.

    Returns:
        The evaluation of each final model on the test utterances, by baseline.
    """
    jobs = [Baseline(POOLED, tuple(map(tuple, shards.values())))]
    jobs += [Baseline(alone(site), (tuple(own),)) for site, own in shards.items()]
    workers = min(cores, len(jobs))
    context = multiprocessing.get_context("spawn")
    with (
        _environment(OMP_NUM_THREADS=str(cores // workers), OMP_WAIT_POLICY="PASSIVE"),
        ProcessPoolExecutor(workers, mp_context=context, initializer=_leave_with_parent) as pool,
    ):
        results = {job.name: pool.submit(_train, config, job, test.utterances, test.format, run) for job in jobs}
        return {name: result.result() for name, result in results.items()}


def _train(
    config: ExperimentConfig, job: Baseline, test: tuple[Utterance, ...], form: ClipFormat, run: Run
) -> Evaluation:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    clips = Joined([ClipSet(own, form) for own in job.sites])
    weights = federated_averaging(config, {job.name: clips}, run.add_metrics, device)
    model = build_model(config.model, config.training.seed, form).to(torch.device(device))
    load_weights(model, weights)
    return evaluate(model, ClipSet(test, form), config.training)


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
