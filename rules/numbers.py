"""The numbers that a rule takes: what is allowed stands beside each default, and all problems are reported at once."""

import math
from collections.abc import Mapping
from dataclasses import field, fields
from operator import ge, gt, le, lt
from typing import Any

_WITHIN = {"at least": ge, "at most": le, "above": gt, "below": lt}


def number(
    default: float | None,
    least: float = -math.inf,
    most: float = math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    whole: bool = False,
) -> Any:
    """A field of a rule, with its default and its limits; a default of None may be given, too: without."""
    limits = {"at least": least, "at most": most, "above": above, "below": below}
    limits = {name: limit for name, limit in limits.items() if math.isfinite(limit)}
    return field(default=default, metadata={"limits": limits, "whole": whole})


def problems(rule: type, given: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with numbers for a rule, a line each."""
    known = {each.name: each for each in fields(rule)}
    found = []
    for name, value in given.items():
        if name not in known:
            found.append(f"rule.{name} is no number of this rule; allowed: {', '.join(sorted(known)) or 'none'}")
            continue
        limits, whole = known[name].metadata.get("limits", {}), known[name].metadata.get("whole", False)
        if value is None and known[name].default is None:
            continue
        right = _is_number(value) and (not whole or value == int(value))
        if not right or not all(_WITHIN[limit](value, bound) for limit, bound in limits.items()):
            allowed = ["a whole number" if whole else "a finite number", *(f"{each} {limits[each]}" for each in limits)]
            found.append(f"rule.{name} is {value!r:.60}; allowed: {', '.join(allowed)}")
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
