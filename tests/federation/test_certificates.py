"""The certificate authority: its files, what it signs, and what it refuses."""

import os
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from typer.testing import CliRunner

from federation import authority as certificates
from federation import certificates as command
from federation.errors import FederationError


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    folder = tmp_path / "authority"
    certificates.init(folder)
    return folder


def crt(folder: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((folder / f"{name}.crt").read_bytes())


def revoked(folder: Path) -> set[int]:
    crl = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    assert crl.is_signature_valid(crt(folder, "root_ca").public_key())
    return {entry.serial_number for entry in crl}


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_authority(authority: Path) -> None:
    assert {path.name for path in authority.iterdir()} == {"root_ca.crt", "root_ca.key", "crl.pem", "issued"}
    root = crt(authority, "root_ca")
    root.verify_directly_issued_by(root)
    assert root.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert revoked(authority) == set()
    assert certificates.issued(authority) == []


def test_keys_are_private_from_the_moment_they_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    created: dict[str, int] = {}
    open_file = os.open

    def watched(path: Path, flags: int, mode_: int = 0o777) -> int:
        descriptor = open_file(path, flags, mode_)
        created[Path(path).name] = stat.S_IMODE(os.fstat(descriptor).st_mode)
        return descriptor

    monkeypatch.setattr(os, "open", watched)
    before = os.umask(0)  # nothing but the mode itself protects the file
    try:
        authority = tmp_path / "authority"
        certificates.init(authority)
        certificates.issue(authority, "envoy", "site1")
        certificates.renew(authority, "site1")
    finally:
        os.umask(before)
    assert mode(authority) == 0o700
    assert {mode(path) for path in authority.glob("*.key")} == {0o600}
    assert created["root_ca.key"] == created["site1.key"] == 0o600
    assert not list(authority.glob("*.new"))


@pytest.mark.parametrize(
    ("role", "usage"),
    [
        ("director", ExtendedKeyUsageOID.SERVER_AUTH),
        ("envoy", ExtendedKeyUsageOID.CLIENT_AUTH),
        ("experimenter", ExtendedKeyUsageOID.CLIENT_AUTH),
    ],
)
def test_what_is_issued(authority: Path, role: str, usage: x509.ObjectIdentifier) -> None:
    made = certificates.issue(authority, role, "holder", ["localhost", "10.0.0.1"], days=30)
    certificate = crt(authority, "holder")
    certificate.verify_directly_issued_by(crt(authority, "root_ca"))
    key = load_pem_private_key((authority / "holder.key").read_bytes(), password=None)
    assert key.public_key() == certificate.public_key()
    assert certificates.name_and_role(certificate) == ("holder", role)
    assert certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME)[0].value == role
    value = certificate.extensions.get_extension_for_class
    assert list(value(x509.ExtendedKeyUsage).value) == [usage]
    assert not value(x509.BasicConstraints).value.ca
    assert value(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName) == ["localhost"]
    assert timedelta(29) < certificate.not_valid_after_utc - datetime.now(UTC) < timedelta(30)
    assert certificates.issued(authority) == [made]


def test_nothing_outlives_the_authority(authority: Path) -> None:
    made = certificates.issue(
        authority, "envoy", "site1", days=certificates.AUTHORITY_DAYS, now=datetime.now(UTC) + timedelta(days=9)
    )
    assert made.valid_until == crt(authority, "root_ca").not_valid_after_utc


def test_renewing_keeps_name_role_and_hosts(authority: Path) -> None:
    old = certificates.issue(authority, "director", "director", ["localhost", "10.0.0.1"], days=1)
    old_key = (authority / "director.key").read_bytes()
    (authority / "director.key").unlink()  # moved to its machine, not copied
    new = certificates.renew(authority, "director", days=10)
    assert (new.name, new.role) == (old.name, old.role)
    assert new.serial != old.serial
    assert new.valid_until > old.valid_until
    assert (authority / "director.key").read_bytes() != old_key
    names = crt(authority, "director").extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert [str(name.value) for name in names] == ["localhost", "10.0.0.1"]
    assert [each.revoked for each in certificates.issued(authority)] == [False, False]


def test_revoking_takes_every_certificate_of_the_name(authority: Path) -> None:
    first = certificates.issue(authority, "envoy", "site1", days=1)
    second = certificates.renew(authority, "site1", days=2)
    other = certificates.issue(authority, "envoy", "site2")
    assert {each.serial for each in certificates.revoke(authority, "site1")} == {first.serial, second.serial}
    assert revoked(authority) == {first.serial, second.serial}
    with pytest.raises(FederationError, match="'site1' is revoked already"):
        certificates.revoke(authority, "site1")
    third = certificates.renew(authority, "site1", days=3)  # back with a new key
    certificates.revoke(authority, "site2")
    assert revoked(authority) == {first.serial, second.serial, other.serial}
    marks = {each.serial: each.revoked for each in certificates.issued(authority)}
    assert marks == {first.serial: True, second.serial: True, third.serial: False, other.serial: True}


def test_a_revocation_list_of_another_authority(authority: Path, tmp_path: Path) -> None:
    certificates.init(tmp_path / "other")
    with pytest.raises(FederationError, match="not signed by the authority"):
        certificates.read_crl(tmp_path / "other" / "crl.pem", crt(authority, "root_ca"))
    with pytest.raises(FederationError, match="no revocation list in PEM form"):
        certificates.read_crl(authority / "root_ca.crt", crt(authority, "root_ca"))


def test_nothing_is_overwritten(authority: Path) -> None:
    certificates.issue(authority, "envoy", "site1")
    before = {path: path.read_bytes() for path in authority.rglob("*.*")}
    with pytest.raises(FederationError, match="not an empty folder"):
        certificates.init(authority)
    with pytest.raises(FederationError, match=r"'site1' is issued already; .* renew"):
        certificates.issue(authority, "experimenter", "site1")
    (authority / "site2.key").write_text("someone's")
    with pytest.raises(FederationError, match="'site2' is issued already"):
        certificates.issue(authority, "envoy", "site2")
    (authority / "site2.key").unlink()
    assert {path: path.read_bytes() for path in authority.rglob("*.*")} == before


@pytest.mark.parametrize(
    ("role", "name", "hosts", "days", "words"),
    [
        ("boss", "site1", (), 1, "role: 'boss'; allowed: director, envoy, experimenter"),
        ("envoy", "../site1", (), 1, "name: '../site1'; allowed: 1 to 64 letters"),
        ("envoy", "", (), 1, "name: ''"),
        ("envoy", "-h", (), 1, "name: '-h'"),
        ("envoy", "site1\n", (), 1, "name: 'site1\\n'"),
        ("envoy", "aggregator", (), 1, "'aggregator' is reserved"),
        ("envoy", "root_ca", (), 1, "'root_ca' is reserved"),
        ("envoy", "site1", (), 0, "days: 0; allowed: 1 to 3650"),
        ("envoy", "site1", (), 10**12, "allowed: 1 to 3650"),
        ("director", "director", (), 1, "a director needs --host"),
        ("director", "director", ("no host",), 1, "host: 'no host' is neither"),
    ],
)
def test_what_cannot_be_issued(
    authority: Path, role: str, name: str, hosts: tuple[str, ...], days: int, words: str
) -> None:
    with pytest.raises(FederationError) as error:
        certificates.issue(authority, role, name, hosts, days)
    assert words in str(error.value)
    assert not list(authority.glob("issued/*"))


def test_problems_are_reported_together(authority: Path) -> None:
    with pytest.raises(FederationError) as error:
        certificates.issue(authority, "boss", "no name", (), 0)
    assert len(str(error.value).splitlines()) == 4


def test_where_no_authority_is(tmp_path: Path) -> None:
    for act in (
        lambda: certificates.issue(tmp_path, "envoy", "site1"),
        lambda: certificates.renew(tmp_path, "site1"),
        lambda: certificates.revoke(tmp_path, "site1"),
        lambda: certificates.issued(tmp_path),
    ):
        with pytest.raises(FederationError, match=r"is no certificate authority; make one: .* init"):
            act()


def test_a_name_that_was_never_issued(authority: Path) -> None:
    certificates.issue(authority, "envoy", "site1")
    for act in (certificates.renew, certificates.revoke):
        with pytest.raises(FederationError, match=r"'site2' was never issued in .*; issued: site1"):
            act(authority, "site2")


def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = str(tmp_path / "authority")

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(command.app, arguments)
        assert done.exit_code == 0, done.output
        return done.output

    assert "root_ca.key goes nowhere" in run("init", folder)
    told = run("issue", folder, "director", "boss", "--host", "localhost", "--host", "127.0.0.1", "--days", "9")
    for words in ("root_ca.crt", "crl.pem", "boss.crt", "boss.key", "director.yaml", "private_key: cert/boss.key"):
        assert words in told
    assert "crl" not in run("issue", folder, "envoy", "site1")
    assert "KWS_CERTIFICATE=workspace/cert/ada.crt" in run("issue", folder, "experimenter", "ada")
    assert "start its process again" in run("renew", folder, "site1")
    assert "Copy " in run("revoke", folder, "site1")
    rows = [line.split() for line in run("list", folder).splitlines()[1:]]
    assert [(row[0], row[1], row[4]) for row in rows] == [
        ("ada", "experimenter", "no"),
        ("boss", "director", "no"),
        ("site1", "envoy", "yes"),
        ("site1", "envoy", "yes"),
    ]
    monkeypatch.setattr("sys.argv", ["certificates", "issue", folder, "boss", "site2"])
    with pytest.raises(SystemExit) as leaving:
        command.main()
    assert leaving.value.code == 2
    assert "role: 'boss'; allowed:" in capsys.readouterr().err
