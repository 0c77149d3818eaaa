"""The list of schemes. To add one: a file with a frozen dataclass that has `assign`, and a line in `SCHEMES`.

Whole speakers (no speaker is on two sites): `Speakers`, `Clients`, `Quantity`; by another column: `Column`.
By utterance (speakers are torn apart, which a report on them must say): `Dirichlet`, `Pathological`, `Iid`.
No partition at all: `Own`.
"""

from collections.abc import Mapping
from dataclasses import asdict, fields
from typing import Any

from shard_descriptors.partition.clients import Clients
from shard_descriptors.partition.column import Column
from shard_descriptors.partition.contract import PartitionError, Scheme
from shard_descriptors.partition.dirichlet import Dirichlet
from shard_descriptors.partition.iid import Iid
from shard_descriptors.partition.own import Own
from shard_descriptors.partition.pathological import Pathological
from shard_descriptors.partition.quantity import Quantity
from shard_descriptors.partition.speakers import Speakers

SCHEMES: dict[str, type[Scheme]] = {
    "speakers": Speakers,
    "clients": Clients,
    "quantity": Quantity,
    "column": Column,
    "dirichlet": Dirichlet,
    "pathological": Pathological,
    "iid": Iid,
    "own": Own,
}
"""Schemes by the name that `envoy.yaml` and the command line use."""


def scheme_of(given: str | Mapping[str, Any]) -> Scheme:
    """The scheme of a name, or of a mapping with `scheme` and its settings, as in `envoy.yaml`.

    >>> scheme_of({"scheme": "dirichlet", "alpha": 0.3})
    Dirichlet(alpha=0.3, min_utterances=10)

    PartitionError for a name, a setting or a value that is not allowed.
    """
    settings = {"scheme": given} if isinstance(given, str) else dict(given)
    name = settings.pop("scheme", None)
    if name not in SCHEMES:
        raise PartitionError(f"the partition scheme is {name!r}; allowed: {', '.join(SCHEMES)}")
    allowed = [field.name for field in fields(SCHEMES[name])]  # type: ignore[arg-type]
    if wrong := sorted(settings.keys() - set(allowed)):
        raise PartitionError(f"the scheme {name} has no setting {wrong[0]!r}; allowed: {', '.join(allowed) or 'none'}")
    try:
        return SCHEMES[name](**settings)
    except TypeError as error:
        raise PartitionError(f"the scheme {name} needs {', '.join(allowed)}") from error


def described(scheme: Scheme) -> dict[str, Any]:
    """The scheme as a mapping from which `scheme_of` makes it again."""
    name = next(name for name, kind in SCHEMES.items() if type(scheme) is kind)
    return {"scheme": name, **asdict(scheme)}  # type: ignore[call-overload]
