"""An experiment's algorithm as a rule: the same for the director, which is told it, and for the simulation."""

from typing import Any

from kws.config import Algorithm, ConfigError, ExperimentConfig
from rules.contract import Rule
from rules.registry import build, kind_of
from rules.sampling import Sampling


def described_rule(algorithm: Algorithm) -> dict[str, Any]:
    """The rule as an experiment's description has it.

    >>> described_rule(Algorithm(rule="fedavgm", beta1=0.5))
    {'name': 'fedavgm', 'beta1': 0.5}
    """
    return {"name": algorithm.rule, **algorithm.numbers}


def rule_of(algorithm: Algorithm) -> Rule:
    """The rule.

    Raises:
        ConfigError: there is no such rule here, or it does not take these numbers; says each problem.
    """
    try:
        return build(algorithm.rule, algorithm.numbers)
    except ValueError as error:
        text = str(error).replace("rule.name", "algorithm.rule")
        lines = [
            line.replace("rule.", "algorithm.", 1) if line.startswith("rule.") else line for line in text.split("\n")
        ]
        raise ConfigError("\n".join(lines)) from None


def sampling_of(config: ExperimentConfig) -> Sampling | None:
    """Which sites a round asks, by the experiment's seed; None: all.

    >>> sampling_of(ExperimentConfig(algorithm=Algorithm(sites_per_round=3)))
    Sampling(sites=3, seed=0)
    """
    wanted = config.algorithm.sites_per_round
    if wanted is None:
        return None
    return Sampling(int(wanted) if wanted >= 1 else wanted, config.training.seed)


def check_numbers(algorithm: Algorithm) -> None:
    """Hold the numbers to the rule, if it is one of those that are here; the director may have others.

    Raises:
        ConfigError: the rule does not take these numbers; says each problem.
    """
    try:
        kind_of(algorithm.rule)
    except ValueError:
        return
    rule_of(algorithm)
