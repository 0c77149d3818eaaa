"""`director.yaml` and `envoy.yaml` as frozen, self-checking values.

The sections and names are the engine's own (openfl/interface/director.py, openfl/interface/envoy.py); `name`,
`director` and `params.cpu_threads` are ours, since the engine takes those on its command line or not at all.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from federation.errors import SettingsError
from federation.wire.names import site_name_problem

RESERVED_NAMES = ("aggregator", "pooled", "round")
"""Names under which results are recorded that belong to no site."""
MOST_SLOTS = 64
MOVED = {"federation.cuda_monitor.CudaMonitor": "federation.site.cuda_monitor.CudaMonitor"}
"""Classes that an `envoy.yaml` may name, and where they are now."""
LOOPBACK = ("localhost", "127.0.0.1", "::1", "[::1]")


@dataclass(frozen=True)
class Certificates:
    """Paths of the PEM files for mutual TLS; all three or none."""

    root_certificate: Path | None = None
    private_key: Path | None = None
    certificate: Path | None = None

    @property
    def tls(self) -> bool:
        """Whether connections are encrypted and both sides show a certificate."""
        return self.root_certificate is not None

    def problems(self) -> list[str]:
        """Everything that is wrong with the paths, one sentence each."""
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        missing = [name for name, path in given.items() if path is None]
        if missing and len(missing) < len(given):
            return [f"TLS needs all of {', '.join(given)}; missing: {', '.join(missing)}"]
        return [f"{name}: no such file: {path}" for name, path in given.items() if path and not path.is_file()]

    def as_strings(self) -> dict[str, str | None]:
        """The paths in the form in which the engine's clients take them."""
        return {f.name: str(p) if (p := getattr(self, f.name)) else None for f in fields(self)}


@dataclass(frozen=True)
class DirectorSettings:
    """What the operator decides: where the director listens and which shape of shard it accepts (empty: any)."""

    listen_host: str = "localhost"
    listen_port: int = 50051
    sample_shape: tuple[str, ...] = ()
    target_shape: tuple[str, ...] = ()
    envoy_health_check_period: int = 5
    state: Path | None = None
    certificates: Certificates = field(default_factory=Certificates)
    crl: Path | None = None
    """The signed list of revoked certificates; None: `crl.pem` beside the root certificate, where there is one."""

    def __post_init__(self) -> None:
        problems = self.certificates.problems()
        if not 0 <= self.listen_port <= 65535:
            problems.append(f"listen_port: {self.listen_port} is not a port; allowed: 0 (any free one) to 65535")
        if self.crl and not self.certificates.tls:
            problems.append("crl: only certificates can be revoked; name the three certificate files too")
        elif self.crl and not self.crl.is_file():
            problems.append(f"crl: no such file: {self.crl}")
        if self.envoy_health_check_period < 1:
            problems.append("envoy_health_check_period: needs at least 1 second")
        if not self.certificates.tls and self.listen_host not in LOOPBACK:
            problems.append(
                f"listen_host: {self.listen_host} is reachable from other machines, and without TLS whoever reaches "
                f"it runs code on every site; listen on localhost or name the three certificate files"
            )
        _raise_all("director settings", problems)


class Accept(StrEnum):
    """Whose code may run at a site: anyone's, what its owner has approved, or what they approve when asked."""

    ANY = "any"
    APPROVED = "approved"
    ASK = "ask"


class Failures(StrEnum):
    """What leaves a site of an error: its kind and place, its last line too, or the whole traceback."""

    PLACE = "place"
    LINE = "line"
    FULL = "full"


@dataclass(frozen=True)
class EnvoySettings:
    """What the data owner decides: the site's name, its director, its devices, its shard, and which code runs here."""

    name: str
    director_host: str
    director_port: int
    descriptor: str
    descriptor_params: Mapping[str, Any] = field(default_factory=dict)
    cuda_devices: tuple[int, ...] = ()
    device_monitor: str | None = None
    cpu_threads: int = 1
    state: Path | None = None
    """Folder for what training needs after a restart (`federation.site.local_state`); None: nothing is kept."""
    certificates: Certificates = field(default_factory=Certificates)
    accept: str = Accept.ASK
    review_folder: Path = Path("review")
    """Where submissions and the owner's decisions are kept (`federation.review`)."""
    failures: str = Failures.LINE
    """What is told of an error (`federation.site.failure`)."""
    slots: int | Mapping[str, int] = 1
    """How many experiments run here at a time, in all or by device (`federation.site.devices.slots`)."""
    audit: Path | None = None
    """The log of what left the site (`federation.site.audit`); None: not kept."""

    def __post_init__(self) -> None:
        problems = self.certificates.problems()
        if self.accept not in tuple(Accept):
            problems.append(f"review.accept: {self.accept!r}; allowed: {', '.join(Accept)}")
        if self.failures not in tuple(Failures):
            problems.append(f"review.failures: {self.failures!r}; allowed: {', '.join(Failures)}")
        problems += _slot_problems(self.slots)
        if problem := site_name_problem(self.name):
            problems.append(f"name: {problem}")
        if self.name in RESERVED_NAMES:
            problems.append(f"name: {self.name!r} is reserved for results that belong to no site")
        if not 1 <= self.director_port <= 65535:
            problems.append(f"director.port: {self.director_port} is not a port; allowed: 1 to 65535")
        if "." not in self.descriptor:
            problems.append(f"shard_descriptor.template: {self.descriptor!r} is not a dotted path to a class")
        if self.device_monitor in MOVED:  # a monitor that cannot be imported means a machine without a GPU
            problems.append(
                f"optional_plugin_components.cuda_device_monitor.template: {self.device_monitor} is "
                f"{MOVED[self.device_monitor]} now; change the line"
            )
        if self.cpu_threads < 1:
            problems.append(f"params.cpu_threads: {self.cpu_threads}; allowed: 1 or more, or 'auto'")
        _raise_all("envoy settings", problems)


def load_director(path: Path, **overrides: Any) -> DirectorSettings:
    """Read `director.yaml`; an override that is not None wins over the file.

    Raises:
        SettingsError: with every unknown name and wrong value in one text.
    """
    document = _read(path, {"settings", "root_certificate", "private_key", "certificate", "crl"})
    names = {f.name for f in fields(DirectorSettings)} - {"certificates", "crl"}
    values = _section(path, document, "settings", names)
    if values.get("state"):
        values["state"] = (path.parent / values["state"]).resolve()
    for shape in ("sample_shape", "target_shape"):
        values[shape] = tuple(str(size) for size in values.get(shape, ()))
    values |= {name: value for name, value in overrides.items() if value is not None}
    values |= {"certificates": _certificates(path, document), "crl": _beside(path, document.get("crl"))}
    built: DirectorSettings = _build(path, DirectorSettings, values)
    return built


def load_envoy(path: Path, **overrides: Any) -> EnvoySettings:
    """Read `envoy.yaml`; an override that is not None wins over the file.

    Raises:
        SettingsError: with every unknown name and wrong value in one text.
    """
    sections = {"name", "director", "params", "optional_plugin_components", "shard_descriptor", "review", "audit"}
    document = _read(path, sections | {"root_certificate", "private_key", "certificate"})
    director = _section(path, document, "director", {"host", "port"})
    names = {"cuda_devices", "cpu_threads", "envoys_on_this_machine", "slots", "state"}
    params = _section(path, document, "params", names)
    descriptor = _section(path, document, "shard_descriptor", {"template", "params"})
    review = _section(path, document, "review", {"accept", "folder", "failures"})
    monitor = (document.get("optional_plugin_components") or {}).get("cuda_device_monitor") or {}
    threads = params.get("cpu_threads", "auto")
    if threads == "auto":
        threads = max(1, usable_cores() // int(params.get("envoys_on_this_machine", 1)))
    values = {
        "name": document.get("name", ""),
        "director_host": director.get("host", "localhost"),
        "director_port": director.get("port", 50051),
        "descriptor": descriptor.get("template", ""),
        "descriptor_params": descriptor.get("params") or {},
        "cuda_devices": tuple(params.get("cuda_devices") or ()),
        "device_monitor": monitor.get("template"),
        "cpu_threads": threads,
        "accept": review.get("accept", Accept.ASK),
        "failures": review.get("failures", Failures.LINE),
        "slots": params.get("slots", 1),
        "review_folder": _beside(path, review.get("folder") or "review"),
        "audit": _beside(path, document.get("audit", "audit.jsonl")),
        "state": _beside(path, params.get("state", "state")),
    }
    values |= {name: value for name, value in overrides.items() if value is not None}
    built: EnvoySettings = _build(path, EnvoySettings, values | {"certificates": _certificates(path, document)})
    return built


def certificates_beside(certificate: Path) -> Certificates:
    """The three files of one holder as `federation.certificates` names them: NAME.crt, NAME.key, root_ca.crt.

    Raises:
        SettingsError: one of them is missing.
    """
    files = Certificates(certificate.parent / "root_ca.crt", certificate.with_suffix(".key"), certificate)
    _raise_all(f"certificate {certificate}", files.problems())
    return files


def usable_cores() -> int:
    """Cores this process may run on: fewer than the machine has inside a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _read(path: Path, allowed: set[str]) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the settings file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise SettingsError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(document, dict):
        raise SettingsError(f"{path} holds no settings; expected a mapping with: {', '.join(sorted(allowed))}")
    _raise_all(str(path), _unknown(document, allowed))
    return document


def _section(path: Path, document: dict[str, Any], name: str, allowed: set[str]) -> dict[str, Any]:
    section = document.get(name) or {}
    if not isinstance(section, dict):
        raise SettingsError(f"{path}: '{name}' must hold: {', '.join(sorted(allowed))}")
    _raise_all(f"{path}, section '{name}'", _unknown(section, allowed))
    return dict(section)


def _certificates(path: Path, document: dict[str, Any]) -> Certificates:
    return Certificates(**{f.name: _beside(path, document.get(f.name)) for f in fields(Certificates)})


def _beside(path: Path, value: Any) -> Path | None:
    """A path in a YAML file, counted from that file."""
    return (path.parent / value).resolve() if value else None


def _unknown(section: dict[str, Any], allowed: set[str]) -> list[str]:
    return [
        f"unknown setting '{name}'; allowed: {', '.join(sorted(allowed))}" for name in section if name not in allowed
    ]


def _build(path: Path, kind: Any, values: dict[str, Any]) -> Any:
    try:
        return kind(**values)
    except SettingsError as error:
        raise SettingsError(f"{path}: {error}") from None
    except (TypeError, ValueError) as error:
        raise SettingsError(f"{path}: a value of the wrong type: {error}") from error


def _slot_problems(slots: Any) -> list[str]:
    if not isinstance(slots, Mapping):
        return (
            []
            if _is_count(slots)
            else [f"params.slots: {slots!r}; allowed: 1 to {MOST_SLOTS}, or such numbers by device"]
        )
    problems = [f"params.slots: {name!r} is no device; allowed: cpu, cuda:0, cuda:1, ..." for name in slots
                if not re.fullmatch(r"cpu|cuda:[0-9]{1,3}", str(name))]  # fmt: skip
    return problems + [
        f"params.slots.{name}: {number!r}; allowed: 1 to {MOST_SLOTS}"
        for name, number in slots.items()
        if not _is_count(number)
    ]


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MOST_SLOTS


def _raise_all(where: str, problems: list[str]) -> None:
    if problems:
        raise SettingsError(f"{where}:\n" + "\n".join(f"  - {problem}" for problem in problems))
