"""The rules by the names under which an experiment asks for them.

Beside the house's own there are those that an operator has installed with the director: Python packages with an entry
point of the group `federation.rules`, whose name is the rule's and whose object is its class (docs/algorithms.md).
"""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from rules.adaptive import FedAdagrad, FedAdam, FedYogi
from rules.contract import Rule
from rules.krum import Krum
from rules.mean import Mean
from rules.median import Median
from rules.momentum import FedAvgM
from rules.numbers import problems
from rules.scaffold import Scaffold
from rules.trimmed import TrimmedMean

GROUP = "federation.rules"

RULES: dict[str, type[Rule]] = {
    "mean": Mean,
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
    "median": Median,
    "trimmed_mean": TrimmedMean,
    "krum": Krum,
    "scaffold": Scaffold,
}
"""A rule's numbers are the fields of its class; those that have a default may be left out."""


def build(name: str, numbers: Mapping[str, float | None] | None = None) -> Rule:
    """The rule of this name with these numbers.

    >>> build("fedavgm", {"beta1": 0.5}).beta1
    0.5

    Raises:
        ValueError: there is no such rule, or it does not take these numbers; says each problem.
    """
    kind, given = kind_of(name), dict(numbers or {})
    if found := problems(kind, given):
        raise ValueError("\n".join(found))
    try:
        return kind(**given)  # type: ignore[arg-type]
    except TypeError as error:  # a number without a default is missing
        raise ValueError(f"rule {name}: {error}") from None


def kind_of(name: str) -> type[Rule]:
    """The class of the rule of this name.

    Raises:
        ValueError: there is no such rule, or what the operator has installed under this name is none.
    """
    if name in RULES:
        return RULES[name]
    found = _installed()
    if name not in found:
        raise ValueError(f"rule.name is {name!r:.60}; allowed: {', '.join([*RULES, *sorted(found)])}")
    try:
        kind = found[name].load()
    except Exception as error:  # whatever a package does when it is imported
        raise ValueError(f"rule {name} is installed ({found[name].value}), but cannot be loaded: {error!r}") from error
    if not (isinstance(kind, type) and issubclass(kind, Rule) and isinstance(getattr(kind, "of_the_mean", None), bool)):
        raise ValueError(f"rule {name}: {found[name].value} is no rule; it has to be a class made from rules.contract")
    return kind


def _installed() -> dict[str, EntryPoint]:
    """What operators have added, by name; a name of the house's own is the house's."""
    return {each.name: each for each in entry_points(group=GROUP) if each.name not in RULES}
