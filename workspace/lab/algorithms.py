"""An experiment's algorithm as a rule: the same for the director, which is told it, and for the simulation."""

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from kws.config import Algorithm, ConfigError, ExperimentConfig
from rules.contract import Rule
from rules.registry import build, kind_of
from rules.sampling import Sampling

NO_NUMBERS = ("rule", "proximal", "personal", "sites_per_round")
"""What of an algorithm is no number of its rule."""


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
    return _built(algorithm.rule, algorithm.numbers)


def rule_problems(given: Mapping[str, Any]) -> list[str]:
    """What the rule has against values of an algorithm that nobody else has looked at yet.

    >>> rule_problems({"rule": "krum", "byzantine": -1, "proximal": "?"})
    ['algorithm.byzantine is -1; allowed: a whole number, at least 0']
    """
    known = [each.name for each in fields(Algorithm) if each.name not in NO_NUMBERS]
    name = given.get("rule", Algorithm().rule)
    numbers = {each: given[each] for each in known if given.get(each) is not None}
    try:
        if isinstance(name, str) and name:
            _built(name, numbers)
    except ConfigError as error:
        return str(error).split("\n")
    return []


def _built(name: str, numbers: Mapping[str, Any]) -> Rule:
    try:
        return build(name, numbers)
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
