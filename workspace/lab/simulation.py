"""The whole federation in one process: plain rounds, the reference that the real one is tested against.

The same page makes the baselines: with one site that holds everything it is pooled training, with one site's shard
it is that site alone.
"""

from collections.abc import Callable, Mapping

import torch

from kws.algorithms import Local
from kws.batches import Heard
from kws.clips import Clips
from kws.config import ExperimentConfig
from kws.model import build_model
from kws.training import build_optimizer
from lab.algorithms import rule_of, sampling_of
from lab.joined import heard_by
from rules.contract import Floats, Rule
from rules.in_memory import begin, next_state

Weights = Mapping[str, Floats]
"""What travels by name, float32: the trained tensors, but for those that are a site's own."""

Report = Callable[[int, str, str, dict[str, float]], None]
"""Called with round, site, task and scalar metrics, in the terms of `metrics.jsonl`."""


def federated_averaging(
    config: ExperimentConfig,
    sites: Mapping[str, Clips | Heard],
    report: Report,
    device: str = "cpu",
    rule: Rule | None = None,
    after_round: Callable[[int, Weights], bool | None] = lambda done, weights: False,
    at_the_end: Callable[[Mapping[str, Local]], None] = lambda sites: None,
) -> Weights:
    """Train one model over several sites (McMahan et al. 2017, algorithm 1).

    Args:
        config: the experiment.
        sites: by site name, its training clips (which also seed its randomness), or those as the model hears them.
        report: told what each site measured.
        device: where to compute.
        rule: how the sites' models become one, by the director's own code; None: as the experiment says.
        after_round: given the number of rounds that are done, from 0, and the weights that they have made; whether to
            end early. One more round is trained then, as at the director, where a model is measured while the sites
            train it.
        at_the_end: given every site's own part; they share one model, and one has to `load` before it is used.

    Returns:
        What travels of the last round's model.

    Raises:
        ConfigError: the experiment's rule is not there, or does not take its numbers.
    """
    rule = rule or rule_of(config.algorithm)
    training = config.training
    first = next(iter(sites.values()))
    form = (first.clips if isinstance(first, Heard) else first).format
    model = build_model(config.model, training.seed, form).to(torch.device(device))
    heard = {
        site: clips if isinstance(clips, Heard) else heard_by(model, clips, training, changed=True)
        for site, clips in sites.items()
    }
    optimizers = {site: build_optimizer(model, training) for site in sites}
    local = {site: Local(model, config.algorithm) for site in sites}  # one model for all: they differ in what they keep
    state = begin(_copied(next(iter(local.values()))))
    sampling = sampling_of(config)
    ends = after_round(0, state.model)
    for done in range(training.rounds):
        updates = []
        asked = sampling.draw(done, sites, sites) if sampling else tuple(sites)
        for site in asked:
            local[site].load(state.model)
            report(done + 1, site, "train", local[site].train(optimizers[site], heard[site], training, done))
            updates.append(_copied(local[site]))
        weights = [len(heard[site].labels) for site in asked]
        state = next_state(rule, state, updates, weights, share=len(asked) / len(sites))
        last, ends = ends, after_round(done + 1, state.model)
        if last:
            break
    at_the_end(local)
    return state.model


def _copied(local: Local) -> dict[str, Floats]:
    return {name: array.copy() for name, array in local.tensors().items()}
