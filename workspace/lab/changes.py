"""Changes of an experiment as they are given on the command line: `--change training.rounds=5`."""

import re
from collections.abc import Sequence
from typing import Any

import yaml

from kws.settings import ConfigError, Settings, with_values

POWER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?[eE][+-]?[0-9]+")
"""1e-3, which is a number everywhere but in YAML 1.1."""


def changed(config: Settings, changes: Sequence[str]) -> Settings:
    """A copy of a configuration with values changed by name, each given as "training.rounds=5"; the last one wins.

    Values are numbers, true, false, null or words. All of them are put in before the whole is checked, so that two
    that only go together may come in any order.

    Raises:
        ConfigError: every name that does not exist and every value that is not allowed.
    """
    return with_values(config, as_mapping(changes))


def as_mapping(changes: Sequence[str]) -> dict[str, Any]:
    """The changes by name, those of a group in a mapping of their own.

    >>> as_mapping(["training.rounds=5", "training.learning_rate=1e-3", "best_metric=macro_f1"])
    {'training': {'rounds': 5, 'learning_rate': 0.001}, 'best_metric': 'macro_f1'}

    Raises:
        ConfigError: one is not of the form name=value, or its value is not one.
    """
    values: dict[str, Any] = {}
    for change in changes:
        path, equals, text = change.partition("=")
        if not equals:
            raise ConfigError(f"{change!r} is not a change; write name=value, e.g. training.rounds=5")
        try:
            value = float(text) if POWER.fullmatch(text.strip()) else yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"{change!r}: {text!r} is not a value; write a number, true, false or a word") from error
        *groups, name = path.strip().split(".")
        group = values
        for each in groups:
            if not isinstance(group.setdefault(each, {}), dict):
                raise ConfigError(f"{change!r}: {each} has no values of its own; it was given as {group[each]!r}")
            group = group[each]
        group[name] = value
    return values
