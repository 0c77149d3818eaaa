"""The whole federation in one process: plain rounds, the reference that the real one is tested against.

The same page makes the baselines: with one site that holds everything it is pooled training, with one site's shard
it is that site alone.
"""

from collections.abc import Callable, Mapping

import torch

from kws.clips import Clips
from kws.config import ExperimentConfig
from kws.model import build_model, load_weights, trained_weights
from kws.training import build_optimizer, train_round
from lab.joined import heard_by
from rules.contract import Floats, Rule
from rules.in_memory import begin, next_state
from rules.mean import Mean

Weights = Mapping[str, Floats]
"""Trained tensors by name, float32."""

MEAN = Mean()
Report = Callable[[int, str, str, dict[str, float]], None]
"""Called with round, site, task and scalar metrics, in the terms of `metrics.jsonl`."""


def federated_averaging(
    config: ExperimentConfig,
    sites: Mapping[str, Clips],
    report: Report,
    device: str = "cpu",
    rule: Rule = MEAN,
    after_round: Callable[[int, Weights], None] = lambda done, weights: None,
) -> Weights:
    """Train one model over several sites (McMahan et al. 2017, algorithm 1, every site in every round).

    Args:
        config: the experiment.
        sites: by site name, its training clips (which also seed its randomness).
        report: told what each site measured.
        device: where to compute.
        rule: how the sites' models become one; the director's own code.
        after_round: given the number of rounds that are done, from 0, and the weights that they have made.

    Returns:
        The trained tensors of the last round's model.
    """
    training = config.training
    form = next(iter(sites.values())).format
    model = build_model(config.model, training.seed, form).to(torch.device(device))
    heard = {site: heard_by(model, clips, training, changed=True) for site, clips in sites.items()}
    optimizers = {site: build_optimizer(model, training) for site in sites}
    state = begin(trained_weights(model))
    after_round(0, state.model)
    for done in range(training.rounds):
        updates = []
        for site in sites:
            load_weights(model, state.model)  # one model for all: sites differ in weights and in their optimizers
            if not training.keep_optimizer:
                optimizers[site] = build_optimizer(model, training)
            report(done + 1, site, "train", train_round(model, optimizers[site], heard[site], training, done))
            updates.append(trained_weights(model))
        state = next_state(rule, state, updates, [len(clips) for clips in sites.values()])
        after_round(done + 1, state.model)
    return state.model
