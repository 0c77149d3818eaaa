"""An experiment as data: what an archive's `experiment.json` says, and the only part of it that a director reads.

The engine describes an experiment by a plan that names classes to import, and by pickles that the director loads
(federated/plan/plan.py:317), so that whoever submits runs code there. Here the director is told numbers and names that
it looks up among its own; the one thing that names code, the entry point, is called at a site after its owner has
approved it, and in the notebook.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import rules.scores
from federation.policy import RoundPolicy
from federation.wire.updates import FORMATS
from rules.sampling import Sampling

VERSION = 1
MAX_BYTES = 256 * 1024
MAX_DEPTH = 20
MAX_ROUNDS = 1_000_000
MAX_RULE_NUMBERS = 50
MAX_PROBLEMS = 30
DIRECTIONS = ("max", "min")

_ID = re.compile(r"[0-9a-f]{32}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,49}")
_ENTRY_POINT = re.compile(r"(?=.{1,200}\Z)[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*")
_KEYS = {"version", "id", "rounds", "rule", "best", "scores", "policy", "update_format", "keep_optimizer"} | {
    "entry_point",
    "settings",
    "sampling",
    "patience",
}
OF_THE_ROUNDS = ("id", "policy", "sampling", "patience")
"""What the sites' owners need not approve: it changes nothing of what runs beside their recordings."""

_INTEGERS = 2**64
"""Integers lie between this and its negative: seeds fit, and nobody is kept busy with a number of a million digits."""


@dataclass(frozen=True)
class Description:
    """What an experiment is, beside the source that it ships.

    id: 32 hexadecimal digits, drawn anew for each submission; sites and director name the experiment by it.
    rounds: rounds of training, 1 to `MAX_ROUNDS`; a last validation follows.
    best_metric, best_direction: the metric of the aggregated validation by which the best model is chosen, and whether
        a larger ("max") or a smaller ("min") value is better.
    entry_point: `package.module:function` in the shipped source; called with `settings`, which are JSON values.
    policy: when a round may close without some of the sites; `minimum_sites` is a number.
    rule: the name of a rule of the director's own, and finite numbers that it takes.
    scores: what the director computes of the sums that sites send, by name (`rules.scores.problems`).
    update_format: how sites send what they have trained (`federation.wire.updates.FORMATS`).
    keep_optimizer: whether each site keeps its optimizer's state from round to round.
    sampling: how many sites each round of training asks; None: all.
    patience: after so many rounds without a better best model the experiment is over; None: never before its last.

    Raises:
        ValueError: with every problem, one a line.
    """

    id: str
    rounds: int
    best_metric: str
    entry_point: str
    policy: RoundPolicy
    rule: Mapping[str, Any] = field(default_factory=lambda: {"name": "mean"})
    best_direction: str = "max"
    scores: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    update_format: str = "float32"
    keep_optimizer: bool = True
    settings: Mapping[str, Any] = field(default_factory=dict)
    sampling: Sampling | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        _raise_all(list(_problems(self._document())))

    @property
    def rule_name(self) -> str:
        """The name of the rule."""
        return str(self.rule["name"])

    @property
    def rule_numbers(self) -> dict[str, float]:
        """What the rule takes, by name."""
        return {name: value for name, value in self.rule.items() if name != "name"}

    @property
    def package(self) -> str:
        """The shipped package in which the entry point lies."""
        return self.entry_point.partition(":")[0].partition(".")[0]

    def to_bytes(self) -> bytes:
        """The text of `experiment.json`: ASCII, keys sorted, so that equal descriptions are equal bytes."""
        return _text(self._document())

    def lasting(self) -> bytes:
        """The same without what differs between submissions of the same code: the id, and who is asked, and when."""
        return _text({name: value for name, value in self._document().items() if name not in OF_THE_ROUNDS})

    @classmethod
    def from_bytes(cls, content: bytes) -> "Description":
        """Read an `experiment.json`, whoever wrote it.

        Raises:
            ValueError: it is not one; with every problem, one a line.
        """
        if len(content) > MAX_BYTES:
            raise ValueError(
                f"an experiment's description has up to {MAX_BYTES // 1024} KiB; this: {len(content)} bytes"
            )
        twice: list[str] = []

        def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
            counts = Counter(name for name, _ in pairs)
            if len(counts) < len(pairs):
                twice.extend(f"{_shown(name)} is there {count} times" for name, count in counts.items() if count > 1)
            return dict(pairs)

        try:
            document = json.loads(content.decode("utf-8"), object_pairs_hook=once)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the experiment's description is not JSON in UTF-8: {error}") from None
        if not isinstance(document, dict):
            raise ValueError(f"the experiment's description is {_shown(document)}; it has to be an object")
        _raise_all(twice + list(_problems(document)))
        given = {each.name: document[each.name] for each in fields(cls) if each.name in document}
        best = {"best_metric": document["best"]["metric"], "best_direction": document["best"]["direction"]}
        sampling = Sampling(**document["sampling"]) if document["sampling"] else None
        return cls(**{**given, **best, "policy": RoundPolicy(**document["policy"]), "sampling": sampling})

    def _document(self) -> dict[str, Any]:
        best = {"metric": self.best_metric, "direction": self.best_direction}
        policy = asdict(self.policy) if isinstance(self.policy, RoundPolicy) else self.policy
        sampling = asdict(self.sampling) if isinstance(self.sampling, Sampling) else self.sampling
        own = {each.name: getattr(self, each.name) for each in fields(self) if not each.name.startswith("best_")}
        return {**own, "version": VERSION, "best": best, "policy": policy, "sampling": sampling}


def _problems(document: Mapping[str, Any]) -> Iterator[str]:
    """Everything that is wrong with a description as JSON has it."""
    if not _is_integer(document.get("version", VERSION), VERSION, VERSION):
        yield f"version is {_shown(document['version'])}; this federation reads version {VERSION}: use its own notebook"
        return  # what else another version holds is not ours to judge
    yield from _other_keys("", document, _KEYS)
    checks = {
        "id": _id_problems,
        "rounds": _rounds_problems,
        "rule": _rule_problems,
        "best": _best_problems,
        "scores": rules.scores.problems,
        "policy": _policy_problems,
        "update_format": _format_problems,
        "keep_optimizer": _flag_problems,
        "entry_point": _entry_point_problems,
        "settings": _settings_problems,
        "sampling": _sampling_problems,
        "patience": _patience_problems,
    }
    for name, check in checks.items():
        if name in document:
            yield from check(document[name])


def _other_keys(where: str, found: Mapping[Any, Any], wanted: set[str]) -> Iterator[str]:
    for name in sorted(wanted - found.keys()):
        yield f"{where}{name} is missing"
    for key in found:
        if key not in wanted:
            yield f"{where}{_shown(key)} is not known here; allowed: {', '.join(sorted(wanted))}"


def _id_problems(value: Any) -> Iterator[str]:
    if not (isinstance(value, str) and _ID.fullmatch(value)):
        yield f"id is {_shown(value)}; allowed: 32 hexadecimal digits"


def _rounds_problems(value: Any) -> Iterator[str]:
    if not _is_integer(value, 1, MAX_ROUNDS):
        yield f"rounds is {_shown(value)}; allowed: 1 to {MAX_ROUNDS}"


def _rule_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"rule is {_shown(value)}; allowed: an object with a name and numbers"
        return
    if not (isinstance(value.get("name"), str) and _NAME.fullmatch(value["name"])):
        yield f"rule.name is {_shown(value.get('name'))}; allowed: up to 50 letters, digits and '_'"
    if len(value) > MAX_RULE_NUMBERS:
        yield f"rule has {len(value)} entries; allowed: {MAX_RULE_NUMBERS}"
    for name, number in value.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            yield f"rule.{_shown(name)}: allowed: up to 50 letters, digits and '_'"
        elif name != "name" and not _is_number(number):
            yield f"rule.{name} is {_shown(number)}; allowed: a finite number"


def _best_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"best is {_shown(value)}; allowed: an object with metric and direction"
        return
    yield from _other_keys("best.", value, {"metric", "direction"})
    metric = value.get("metric", "-")
    if not (isinstance(metric, str) and 1 <= len(metric) <= 100 and metric.isprintable()):
        yield f"best.metric is {_shown(metric)}; allowed: up to 100 characters that can be printed"
    if value.get("direction", "max") not in DIRECTIONS:
        yield f"best.direction is {_shown(value['direction'])}; allowed: {', '.join(DIRECTIONS)}"


def _policy_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"policy is {_shown(value)}; allowed: an object"
        return
    names = {each.name for each in fields(RoundPolicy)}
    yield from _other_keys("policy.", value, names)
    if value.get("minimum_sites", 1) is None:
        yield "policy.minimum_sites is null; give the number of sites"
    try:
        RoundPolicy(**{name: value[name] for name in names if name in value})
    except ValueError as error:
        yield from (f"policy.{problem}" for problem in str(error).splitlines())


def _sampling_problems(value: Any) -> Iterator[str]:
    if value is None:
        return
    if not isinstance(value, Mapping):
        yield f"sampling is {_shown(value)}; allowed: null, or an object with sites and seed"
        return
    names = {each.name for each in fields(Sampling)}
    others = list(_other_keys("sampling.", value, names))
    yield from others
    if not others:
        try:
            Sampling(**value)
        except ValueError as error:
            yield from (f"sampling.{problem}" for problem in str(error).splitlines())


def _patience_problems(value: Any) -> Iterator[str]:
    if value is not None and not _is_integer(value, 1, MAX_ROUNDS):
        yield f"patience is {_shown(value)}; allowed: 1 to {MAX_ROUNDS}, or null"


def _format_problems(value: Any) -> Iterator[str]:
    if not (isinstance(value, str) and value in FORMATS):
        yield f"update_format is {_shown(value)}; allowed: {', '.join(FORMATS)}"


def _flag_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, bool):
        yield f"keep_optimizer is {_shown(value)}; allowed: true, false"


def _entry_point_problems(value: Any) -> Iterator[str]:
    if not (isinstance(value, str) and _ENTRY_POINT.fullmatch(value)):
        yield f"entry_point is {_shown(value)}; allowed: package.module:function, of letters, digits and '_'"


def _settings_problems(value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping):
        yield f"settings is {_shown(value)}; allowed: an object"
        return
    problems = list(_json_problems("settings", value, 1))
    yield from problems
    if not problems and len(_text(value)) > MAX_BYTES // 2:
        yield f"settings have up to {MAX_BYTES // 2048} KiB; ship data with the sites, not with an experiment"


def _json_problems(where: str, value: Any, depth: int) -> Iterator[str]:
    """What JSON could not carry there and back."""
    if depth > MAX_DEPTH:
        yield f"{where} is nested more than {MAX_DEPTH} deep"
    elif isinstance(value, Mapping):
        for key, each in value.items():
            if isinstance(key, str):
                yield from _json_problems(f"{where}.{_shown(key)[1:-1]}", each, depth + 1)
            else:
                yield f"{where}: the key {_shown(key)} is no text"
    elif isinstance(value, list):
        for number, each in enumerate(value):
            yield from _json_problems(f"{where}[{number}]", each, depth + 1)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        if not _is_number(value):
            yield f"{where} is {_shown(value)}; allowed: finite numbers, integers of up to 64 bits"
    elif value is not None and not isinstance(value, str | bool):
        yield f"{where} is {_shown(value)}, which JSON does not have"


def _is_integer(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: Any) -> bool:
    return _is_integer(value, -_INTEGERS, _INTEGERS) or (isinstance(value, float) and math.isfinite(value))


def _text(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True, indent=1, allow_nan=False).encode("ascii") + b"\n"


def _shown(value: Any) -> str:
    """A value in ASCII, as short as a message wants it; it may hold anything."""
    try:
        shown = ascii(value)
    except (ValueError, RecursionError):  # an integer of thousands of digits, a list in a list in a list
        shown = f"<{type(value).__name__}>"
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _raise_all(problems: list[str]) -> None:
    if len(problems) > MAX_PROBLEMS:
        problems[MAX_PROBLEMS:] = [f"and {len(problems) - MAX_PROBLEMS} problems more"]
    if problems:
        raise ValueError("\n".join(problems))
