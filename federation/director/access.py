"""Who may call what on the director's port.

With TLS every caller has shown a certificate of the federation's authority (gRPC refuses all others, and those that
have expired). Here its role and its name decide, and the revocation list. The engine checks the name in the
aggregator's messages only: with any certificate one could register in a site's name
(transport/grpc/director_server.py:190) or submit an experiment (director_server.py:219).
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from cryptography import x509

from federation.authority import COMMAND, Role, name_and_role, read_certificate, read_crl
from federation.director.edge import wrapped
from federation.errors import FederationError
from federation.settings import DirectorSettings
from federation.wire.transfer import SERVICE

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rule:
    """Who may call a method; `claimed` is the field of the request that must hold an envoy's own name."""

    roles: tuple[Role, ...]
    claimed: str | None = None


_EXPERIMENTER = Rule((Role.EXPERIMENTER,))
_ENVOY = (Role.ENVOY,)
_DIRECTOR_SERVICE = {
    "SetNewExperiment": _EXPERIMENTER,
    "GetExperimentStatus": _EXPERIMENTER,
    "GetTrainedModel": _EXPERIMENTER,
    "GetMetricStream": _EXPERIMENTER,
    "RemoveExperimentData": _EXPERIMENTER,
    "GetExperimentsList": _EXPERIMENTER,
    "GetExperimentDescription": _EXPERIMENTER,
    "GetEnvoys": _EXPERIMENTER,
    "GetDatasetInfo": Rule((Role.ENVOY, Role.EXPERIMENTER)),
    "UpdateShardInfo": Rule(_ENVOY, "shard_info.node_info.name"),
    "UpdateEnvoyStatus": Rule(_ENVOY, "name"),
    "WaitExperiment": Rule(_ENVOY, "collaborator_name"),
    "GetExperimentData": Rule(_ENVOY, "collaborator_name"),
    "SetExperimentFailed": Rule(_ENVOY, "collaborator_name"),
}
_AGGREGATOR_SERVICE = {
    "GetTasks": Rule(_ENVOY, "header.sender"),
    "GetAggregatedTensor": Rule(_ENVOY, "header.sender"),
    "SendLocalTaskResults": Rule(_ENVOY),  # a stream; the router has the name checked when it has read the whole
}
_MODELS_SERVICE = {  # the sites' names are in the messages; the server compares them with the certificates'
    "Round": Rule(_ENVOY),
    "Update": Rule(_ENVOY),
    "Received": Rule(_ENVOY),
    "Trained": _EXPERIMENTER,
}
RULES = {f"/openfl.director.Director/{method}": rule for method, rule in _DIRECTOR_SERVICE.items()} | {
    f"/openfl.aggregator.Aggregator/{method}": rule for method, rule in _AGGREGATOR_SERVICE.items()
}
RULES |= {f"/{SERVICE}/{method}": rule for method, rule in _MODELS_SERVICE.items()}
"""Every method that anyone may call; for the others gRPC answers that there are none."""


@dataclass(frozen=True)
class Caller:
    """What a certificate says of its holder; `role` is None where it names none of ours."""

    name: str
    role: Role | None
    serial: int
    valid_until: datetime


@dataclass(frozen=True)
class Refusal:
    """Why a call is refused, for the caller and for the log."""

    code: grpc.StatusCode
    reason: str


class RevocationList:
    """The serial numbers of a `crl.pem`, read again whenever the file has changed.

    A file that has become unreadable is logged, and what was read before stays in force.

    Raises:
        FederationError: at the start, a file that cannot be read or that this authority has not signed.
    """

    def __init__(self, path: Path, authority: x509.Certificate) -> None:
        self._path, self._authority = path, authority
        self._serials: frozenset[int] = frozenset()
        self._seen = self._stamp()
        if self._seen:
            self._read()

    def __contains__(self, serial: int) -> bool:
        stamp = self._stamp()
        if stamp != self._seen:
            self._seen = stamp
            try:
                self._read()
            except FederationError as error:
                logger.error("%s; the list that was read before stays in force", error)
        return serial in self._serials

    def _read(self) -> None:
        self._serials = frozenset(entry.serial_number for entry in read_crl(self._path, self._authority))
        logger.info("revocation list %s: %d certificate(s) revoked", self._path, len(self._serials))

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino


class Access(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Lets a call through to its handler, or refuses it with a reason and a line in the log."""

    def __init__(self, revoked: RevocationList) -> None:
        self._revoked = revoked

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """The method's handler behind the check (gRPC's interface)."""
        handler = await continuation(call) if call.method in RULES else None
        if handler is None:  # gRPC answers that there is no such method
            return None
        return wrapped(handler, lambda behaviour: self._guarded(behaviour, call.method))

    def refusal(self, caller: Caller, method: str, request: Any = None) -> Refusal | None:
        """Why this caller may not make this call, or None."""
        unknown, forbidden = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED
        rule = RULES[method]
        if caller.valid_until < datetime.now(UTC):  # a connection may outlive the certificate
            return Refusal(unknown, f"this certificate expired on {caller.valid_until:%Y-%m-%d}; ask for a new one")
        if caller.serial in self._revoked:
            return Refusal(unknown, f"this certificate (serial {caller.serial:x}) was revoked; ask for a new one")
        if caller.role is None:
            roles = ", ".join(Role)
            return Refusal(
                unknown,
                f"this certificate names no role ({roles}) in its organizational unit; "
                f"make one that does: {COMMAND} issue FOLDER ROLE NAME",
            )
        if caller.role not in rule.roles:
            allowed = f"allowed for {_short(method)}: {' or '.join(rule.roles)}"
            return Refusal(forbidden, f"this certificate is for the role {caller.role}; {allowed}")
        claimed = attrgetter(rule.claimed)(request) if rule.claimed else caller.name
        if claimed != caller.name:
            return Refusal(
                forbidden,
                f"this certificate is for {caller.name!r}, not for {claimed!r}; use the site's own certificate",
            )
        return None

    def _guarded(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Any]:
        """The handler behind the check, of the same sort."""
        if inspect.isasyncgenfunction(behaviour):

            async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
                if refusal := self._check(request, context, method):
                    await context.abort(refusal.code, refusal.reason)
                async for reply in behaviour(request, context):
                    yield reply

            return stream
        if inspect.iscoroutinefunction(behaviour):

            async def answer(request: Any, context: Any) -> Any:
                if refusal := self._check(request, context, method):
                    await context.abort(refusal.code, refusal.reason)
                return await behaviour(request, context)

            return answer

        return behaviour  # a plain function, which nobody answers (`federation.director.edge`)

    def _check(self, request: Any, context: Any, method: str) -> Refusal | None:
        caller = _caller(next(iter(context.auth_context()["x509_pem_cert"])))
        refusal = self.refusal(caller, method, request)
        if refusal:
            logger.warning(
                "refused: peer %s, name %s, role %s, method %s: %s",
                unquote(context.peer()), caller.name, caller.role or "none", _short(method), refusal.reason,
                extra={
                    "site": caller.name if caller.role is Role.ENVOY else None,
                    "caller": caller.name, "role": caller.role, "peer": unquote(context.peer()),
                },
            )  # fmt: skip
        return refusal


def guards(settings: DirectorSettings) -> tuple[Access, ...]:
    """The interceptors of a director's server: one with TLS, none (and a warning) in plain mode.

    Raises:
        FederationError: the revocation list cannot be read.
    """
    root = settings.certificates.root_certificate
    if root is None:
        logger.warning(
            "plain mode: no certificates, so whoever reaches this port may do everything; demo on one machine only"
        )
        return ()
    path = settings.crl or root.parent / "crl.pem"
    if not path.exists():
        logger.warning("no revocation list at %s: no certificate counts as revoked until there is one", path)
    return (Access(RevocationList(path, read_certificate(root))),)


def certificate_holder(context: Any) -> Caller | None:
    """What the certificate behind a call says; None in plain mode."""
    shown = context.auth_context().get("x509_pem_cert")
    return _caller(next(iter(shown))) if shown else None


def certificate_name(context: Any) -> str | None:
    """The name in the certificate behind a call; None in plain mode."""
    holder = certificate_holder(context)
    return holder.name if holder else None


@lru_cache(maxsize=4096)
def _caller(pem: bytes) -> Caller:
    certificate = x509.load_pem_x509_certificate(pem)
    return Caller(*name_and_role(certificate), certificate.serial_number, certificate.not_valid_after_utc)


def _short(method: str) -> str:
    return method.rpartition("/")[2]
