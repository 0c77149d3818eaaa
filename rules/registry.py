"""The rules by the names under which an experiment asks for them."""

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rules.contract import Rule
from rules.mean import Mean
from rules.median import Median

RULES: dict[str, type[Rule]] = {"mean": Mean, "median": Median}
"""A rule's numbers are the fields of its class; those that have a default may be left out."""


def build(name: str, numbers: Mapping[str, float] | None = None) -> Rule:
    """The rule of this name with these numbers.

    >>> build("mean")
    Mean()

    Raises:
        ValueError: there is no such rule, or it does not take these numbers; says each problem.
    """
    if name not in RULES:
        raise ValueError(f"rule.name is {name!r:.60}; allowed: {', '.join(sorted(RULES))}")
    kind, given = RULES[name], dict(numbers or {})
    allowed = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    problems = [
        f"rule.{each} is no number of {name!r}; allowed: {', '.join(sorted(allowed)) or 'none'}"
        for each in sorted(given.keys() - allowed)
    ]
    problems += [
        f"rule.{each} is {given[each]!r:.60}; allowed: a finite number" for each in given if not _is_number(given[each])
    ]
    if problems:
        raise ValueError("\n".join(problems))
    try:
        return kind(**given)
    except TypeError as error:  # a number without a default is missing
        raise ValueError(f"rule {name}: {error}") from None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
