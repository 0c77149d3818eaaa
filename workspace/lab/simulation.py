"""The whole federation in one process: plain rounds, the reference that the real one is tested against.

The same page makes the baselines: with one site that holds everything it is pooled training, with one site's shard
it is that site alone.
"""

from collections.abc import Callable, Mapping

from kws.batches import Clips
from kws.config import ExperimentConfig
from kws.model import build_model, load_weights, trained_weights
from kws.training import build_optimizer, train_round
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
    sites: Mapping[str, tuple[int, Clips]],
    report: Report,
    device: str = "cpu",
    rule: Rule = MEAN,
    after_round: Callable[[int, Weights], None] = lambda done, weights: None,
) -> Weights:
    """Train one model over several sites (McMahan et al. 2017, algorithm 1, every site in every round).

    Args:
        config: the experiment.
        sites: by site name, its shard number (which seeds its randomness) and its training clips.
        report: told what each site measured.
        device: where to compute.
        rule: how the sites' models become one; the director's own code.
        after_round: given the number of rounds that are done, from 0, and the weights that they have made.

    Returns:
        The trained tensors of the last round's model.
    """
    training = config.training
    models = {site: build_model(config.model, training.seed, own.format).to(device) for site, (_, own) in sites.items()}
    optimizers = {site: build_optimizer(models[site], training) for site in sites}
    state = begin(trained_weights(next(iter(models.values()))))
    after_round(0, state.model)
    for done in range(training.rounds):
        updates = []
        for site, (shard, clips) in sites.items():
            load_weights(models[site], state.model)
            if not training.keep_optimizer:
                optimizers[site] = build_optimizer(models[site], training)
            report(done + 1, site, "train", train_round(models[site], optimizers[site], clips, training, done, shard))
            updates.append(trained_weights(models[site]))
        state = next_state(rule, state, updates, [len(clips) for _, clips in sites.values()])
        after_round(done + 1, state.model)
    return state.model
