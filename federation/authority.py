"""Certificates for a federation on several machines; the command is `federation.certificates`.

One folder is the certificate authority. It issues a certificate to every director, envoy and experimenter; the role
is the certificate's organizational unit (OU), the name its common name (CN). `federation.director.access` goes by both.

    root_ca.crt, root_ca.key   the authority; the key goes nowhere
    crl.pem                    the serial numbers of the revoked certificates, signed (RFC 5280, section 5)
    NAME.crt, NAME.key         what was issued last to a name
    issued/SERIAL.crt          every certificate ever issued, so that revoking finds those that were renewed

Needs the `cryptography` package only, and no network.
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from federation.errors import FederationError
from federation.settings import RESERVED_NAMES

AUTHORITY_DAYS = 3650
DEFAULT_DAYS = 365
CLOCK_SKEW = timedelta(minutes=5)
"""Certificates are valid from a little earlier, for machines whose clocks are behind."""
COMMAND = "python -m federation.certificates"

ROOT_CERTIFICATE, ROOT_KEY, CRL, _ISSUED = "root_ca.crt", "root_ca.key", "crl.pem", "issued"


class Role(StrEnum):
    """What the holder of a certificate may be."""

    DIRECTOR = "director"
    ENVOY = "envoy"
    EXPERIMENTER = "experimenter"


@dataclass(frozen=True)
class Issued:
    """One certificate of the authority."""

    name: str
    role: str
    serial: int
    valid_until: datetime
    revoked: bool


@dataclass(frozen=True)
class Handover:
    """What the holder of a certificate needs.

    files: of the authority, to be copied. into: the folder there. where: what has to name them. lines: how it does.
    """

    files: tuple[Path, ...]
    into: str
    where: str
    lines: tuple[str, ...]


def init(folder: Path) -> None:
    """Make a certificate authority and its empty revocation list.

    Raises:
        FederationError: the folder holds something.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise FederationError(f"{folder} exists and is not an empty folder; name a new one for the authority")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    (folder / _ISSUED).mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "certificate authority of a federation")])
    now = datetime.now(UTC)
    builder = _builder(name, name, key, key, now - CLOCK_SKEW, now + timedelta(days=AUTHORITY_DAYS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    certificate = builder.add_extension(_key_usage(authority=True), critical=True).sign(key, hashes.SHA256())
    _write_key(folder / ROOT_KEY, key)
    _write_new(folder / ROOT_CERTIFICATE, certificate.public_bytes(Encoding.PEM))
    _write_crl(folder, key, certificate, None, ())


def issue(
    folder: Path,
    role: str,
    name: str,
    hosts: Iterable[str] = (),
    days: int = DEFAULT_DAYS,
    now: datetime | None = None,
) -> Issued:
    """Make a key and a certificate, valid from `now` for so many days.

    hosts: names and addresses under which others reach the holder; a director needs at least one.

    Raises:
        FederationError: no authority there, or a role, name, host or number of days that cannot be.
    """
    _authority(folder)
    hosts = tuple(hosts)
    problems = []
    if role not in list(Role):
        problems.append(f"role: {role!r}; allowed: {', '.join(Role)}")
    problems += _name_problems(name)
    if role == Role.DIRECTOR and not hosts:
        problems.append("a director needs --host: the name or address under which the others reach it")
    problems += [f"host: {host!r} is neither a host name nor an address" for host in hosts if not _is_host(host)]
    problems += _days_problems(days)
    taken = any(_holder(each)[0] == name for each in _register(folder))
    if taken or any((folder / f"{name}{end}").exists() for end in (".crt", ".key")):
        problems.append(f"name: {name!r} is issued already; `{COMMAND} renew {folder} {name}` replaces its certificate")
    _raise_all(problems)
    return _make(folder, Role(role), name, hosts, days, now or datetime.now(UTC), replace=False)


def renew(folder: Path, name: str, days: int = DEFAULT_DAYS, now: datetime | None = None) -> Issued:
    """Replace a name's key and certificate; role and hosts stay, the serial number changes.

    The old certificate stays valid until it expires or the name is revoked, so that a running site is not cut off.

    Raises:
        FederationError: no authority there, the name was never issued, or a number of days that cannot be.
    """
    _authority(folder)
    _raise_all(_days_problems(days))
    newest = max(_of(folder, name), key=lambda each: each.not_valid_before_utc)
    role = _holder(newest)[1]
    hosts: list[str] = []
    for extension in newest.extensions:
        if isinstance(extension.value, x509.SubjectAlternativeName):
            hosts = [str(each.value) for each in extension.value]
    return _make(folder, Role(role), name, hosts, days, now or datetime.now(UTC), replace=True)


def revoke(folder: Path, name: str) -> list[Issued]:
    """Put every certificate that was ever issued to a name onto the revocation list; returns them.

    Raises:
        FederationError: no authority there, the name was never issued, or is revoked already.
    """
    authority, key = _authority(folder)
    old = read_crl(folder / CRL, authority)
    new = [each for each in _of(folder, name) if not _is_revoked(old, each.serial_number)]
    if not new:
        raise FederationError(f"name: every certificate of {name!r} is revoked already; nothing was changed")
    _write_crl(folder, key, authority, old, [each.serial_number for each in new])
    return [_describe(each, revoked=True) for each in new]


def issued(folder: Path) -> list[Issued]:
    """Every certificate of the authority, by name and age.

    Raises:
        FederationError: no authority there.
    """
    authority, _ = _authority(folder)
    crl = read_crl(folder / CRL, authority)
    found = [_describe(each, _is_revoked(crl, each.serial_number)) for each in _register(folder)]
    return sorted(found, key=lambda each: (each.name, each.valid_until))


def handover(folder: Path, made: Issued) -> Handover:
    """Which files of the authority go to the holder's machine, and how they are named there."""
    name = made.name
    files = [ROOT_CERTIFICATE, f"{name}.crt", f"{name}.key"]
    lines = [f"root_certificate: cert/{ROOT_CERTIFICATE}", f"private_key: cert/{name}.key"]
    lines.append(f"certificate: cert/{name}.crt")
    into, where = {
        Role.DIRECTOR: ("director/cert", "in director/director.yaml"),
        Role.ENVOY: (f"{name}/cert", f"in {name}/envoy.yaml, whose name must be {name}"),
        Role.EXPERIMENTER: ("workspace/cert", "in the notebook's environment"),
    }[Role(made.role)]
    if made.role == Role.DIRECTOR:
        files.append(CRL)
        lines.append(f"crl: cert/{CRL}")
    if made.role == Role.EXPERIMENTER:
        lines = [f"KWS_CERTIFICATE=workspace/cert/{name}.crt"]
    return Handover(tuple(folder / file for file in files), into, where, tuple(lines))


def read_certificate(path: Path) -> x509.Certificate:
    """The certificate in a PEM file.

    Raises:
        FederationError: the file cannot be read or holds no certificate.
    """
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise FederationError(f"cannot read the certificate {path}: {error.strerror}") from error
    except ValueError as error:
        raise FederationError(f"{path} holds no certificate in PEM form") from error


def read_crl(path: Path, authority: x509.Certificate) -> x509.CertificateRevocationList:
    """The revocation list in a PEM file.

    Raises:
        FederationError: the file cannot be read, holds no list, or one that this authority has not signed.
    """
    try:
        crl = x509.load_pem_x509_crl(path.read_bytes())
    except OSError as error:
        raise FederationError(f"cannot read the revocation list {path}: {error.strerror}") from error
    except ValueError as error:
        raise FederationError(f"{path} holds no revocation list in PEM form") from error
    if not crl.is_signature_valid(authority.public_key()):  # type: ignore[arg-type]
        raise FederationError(f"the revocation list {path} is not signed by the authority of root_ca.crt")
    return crl


def name_and_role(certificate: x509.Certificate) -> tuple[str, Role | None]:
    """Whom a certificate was issued to; None for a role that is missing or not one of ours."""
    name, role = _holder(certificate)
    return name, Role(role) if role in list(Role) else None


def _holder(certificate: x509.Certificate) -> tuple[str, str]:
    """Common name and organizational unit; empty where there is not exactly one."""
    found = []
    for kind in (NameOID.COMMON_NAME, NameOID.ORGANIZATIONAL_UNIT_NAME):
        values = [str(each.value) for each in certificate.subject.get_attributes_for_oid(kind)]
        found.append(values[0] if len(values) == 1 else "")
    return found[0], found[1]


def _describe(certificate: x509.Certificate, revoked: bool = False) -> Issued:
    name, role = _holder(certificate)
    return Issued(name, role, certificate.serial_number, certificate.not_valid_after_utc, revoked)


def _authority(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    if not (folder / ROOT_KEY).is_file():
        raise FederationError(f"{folder} is no certificate authority; make one: {COMMAND} init {folder}")
    key = load_pem_private_key((folder / ROOT_KEY).read_bytes(), password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return read_certificate(folder / ROOT_CERTIFICATE), key


def _register(folder: Path) -> list[x509.Certificate]:
    return [read_certificate(path) for path in (folder / _ISSUED).glob("*.crt")]


def _of(folder: Path, name: str) -> list[x509.Certificate]:
    register = _register(folder)
    found = [each for each in register if _holder(each)[0] == name]
    if not found:
        names = ", ".join(sorted({_holder(each)[0] for each in register})) or "none yet"
        raise FederationError(f"name: {name!r} was never issued in {folder}; issued: {names}")
    return found


def _name_problems(name: str) -> list[str]:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", name) or name.startswith("-"):
        return [f"name: {name!r}; allowed: 1 to 64 letters, digits, '-' and '_'"]
    if name in (*RESERVED_NAMES, Path(ROOT_CERTIFICATE).stem):
        return [f"name: {name!r} is reserved; choose another"]
    return []


def _days_problems(days: int) -> list[str]:
    return [] if 1 <= days <= AUTHORITY_DAYS else [f"days: {days}; allowed: 1 to {AUTHORITY_DAYS}"]


def _is_host(host: str) -> bool:
    label = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
    return _is_address(host) or re.fullmatch(rf"{label}(\.{label})*", host) is not None


def _is_address(host: str) -> bool:
    try:
        ip_address(host)
    except ValueError:
        return False
    return True


def _make(
    folder: Path, role: Role, name: str, hosts: Iterable[str], days: int, now: datetime, *, replace: bool
) -> Issued:
    authority, authority_key = _authority(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role.value),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )
    end = min(now + timedelta(days=days), authority.not_valid_after_utc)
    builder = _builder(subject, authority.subject, key, authority_key, now - CLOCK_SKEW, end)
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    usage = ExtendedKeyUsageOID.SERVER_AUTH if role is Role.DIRECTOR else ExtendedKeyUsageOID.CLIENT_AUTH
    builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
    names: list[x509.GeneralName] = [
        x509.IPAddress(ip_address(host)) if _is_address(host) else x509.DNSName(host) for host in hosts
    ]
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    certificate = builder.sign(authority_key, hashes.SHA256())
    pem = certificate.public_bytes(Encoding.PEM)
    _write_new(folder / _ISSUED / f"{certificate.serial_number:x}.crt", pem)
    if replace:
        new = folder / f"{certificate.serial_number:x}.new"
        _write_key(new, key)
        os.replace(new, folder / f"{name}.key")
        _write_new(new, pem)
        os.replace(new, folder / f"{name}.crt")
    else:
        _write_key(folder / f"{name}.key", key)
        _write_new(folder / f"{name}.crt", pem)
    return _describe(certificate)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    issuer_key: ec.EllipticCurvePrivateKey,
    start: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False)
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_crl(
    folder: Path,
    key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
    old: x509.CertificateRevocationList | None,
    serials: Iterable[int],
) -> None:
    """Sign the old list's entries and the new serial numbers; the file is replaced in one step."""
    now = datetime.now(UTC)
    entries = [] if old is None else list(old)
    entries += [x509.RevokedCertificateBuilder().serial_number(s).revocation_date(now).build() for s in serials]
    builder = x509.CertificateRevocationListBuilder(authority.subject, now, authority.not_valid_after_utc)
    for entry in entries:
        builder = builder.add_revoked_certificate(entry)
    number = 1
    if old is not None:
        number += old.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
    builder = builder.add_extension(x509.CRLNumber(number), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
    crl = builder.add_extension(identifier, critical=False).sign(key, hashes.SHA256())
    new = folder / f"{CRL}.new"
    new.write_bytes(crl.public_bytes(Encoding.PEM))
    os.replace(new, folder / CRL)


def _is_revoked(crl: x509.CertificateRevocationList, serial: int) -> bool:
    return crl.get_revoked_certificate_by_serial_number(serial) is not None


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    _write_new(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)


def _write_new(path: Path, content: bytes, mode: int = 0o644) -> None:
    """Write a file that must not be there yet; its mode holds from the moment it exists."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError:
        raise FederationError(f"{path} exists and is not overwritten; move it away and try again") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)


def _raise_all(problems: list[str]) -> None:
    if problems:
        raise FederationError("\n  ".join(("the certificate was not issued:", *problems)))
