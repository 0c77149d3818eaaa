"""Values that check themselves: what is allowed stands beside each default, and all problems are reported at once."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from operator import ge, gt, le, lt
from types import NoneType
from typing import Any, TypeVar, get_args


class ConfigError(ValueError):
    """A configuration that cannot be used; lists every problem found."""


def setting(
    default: Any,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    one_of: Sequence[str] = (),
) -> Any:
    """A field with its default and what is allowed: one of several words, or finite numbers between limits."""
    limits = {"at least": least, "at most": most, "above": above, "below": below}
    limits = {name: limit for name, limit in limits.items() if math.isfinite(limit)}
    return field(default=default, metadata={"one_of": one_of, "limits": limits})


Settings = TypeVar("Settings")


def with_values(config: Settings, values: Mapping[str, Any], group: str = "") -> Settings:
    """A copy of a configuration with other values by name; groups of values are mappings.

    Raises:
        ConfigError: every name that does not exist and every value that is not allowed.
    """
    known = [each.name for each in dataclasses.fields(config)]  # type: ignore[arg-type]
    new: dict[str, Any] = {}
    problems = []
    for name, value in values.items():
        old = getattr(config, name, None)
        if name not in known:
            problems.append(f"there is no {group}{name}; allowed here: {', '.join(known)}")
        elif not dataclasses.is_dataclass(old):
            new[name] = value
        elif isinstance(value, Mapping):
            try:
                new[name] = with_values(old, value, f"{group}{name}.")
            except ConfigError as error:
                problems.append(str(error))
        else:
            problems.append(f"{group}{name} is {value!r}; it has values of its own: {', '.join(vars(old))}")
    try:
        config = dataclasses.replace(config, **new)  # type: ignore[type-var]
    except ConfigError as error:
        problems.append(str(error))
    if problems:
        raise ConfigError("\n".join(problems))
    return config


def check(config: Any, group: str, *rules: tuple[bool, str]) -> None:
    """Hold every value to its setting, and the whole to rules, each of them what is wrong and how to say it."""
    problems = []
    for each in dataclasses.fields(config):
        value = getattr(config, each.name)
        limits, one_of = each.metadata.get("limits", {}), each.metadata.get("one_of", ())
        allowed: tuple[Any, ...] = get_args(each.type) or (each.type,)
        kind = float if type(value) is int and int not in allowed else type(value)
        right = kind in allowed and (not one_of or value in one_of or value is None)
        if right and kind in (int, float):
            right = abs(value) < 2**53 and all(_WITHIN[name](value, limit) for name, limit in limits.items())
        if not right:
            words = list(one_of) or [_KINDS.get(kind, kind.__name__) for kind in allowed if kind is not NoneType]
            words[-1] += "".join(f", {name} {limit}" for name, limit in limits.items())
            words += ["null"] * (NoneType in allowed)
            problems.append(f"{group}{each.name} is {getattr(config, each.name)!r}; allowed: {', '.join(words)}")
    problems += [text for wrong, text in rules if wrong]
    if problems:
        raise ConfigError("\n".join(problems))


_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}
_WITHIN = {"at least": ge, "at most": le, "above": gt, "below": lt}
