"""Who may call what, without a network."""

import logging
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from openfl.protocols import aggregator_pb2, director_pb2

from federation import authority as certificates
from federation.authority import Role
from federation.director.access import RULES, Access, Caller, RevocationList, guards
from federation.director.models import ModelServer
from federation.director.router import AggregatorRouter
from federation.errors import FederationError
from federation.settings import Certificates, DirectorSettings
from federation.wire.transfer import SERVICE

DIRECTOR = "/openfl.director.Director/"
UNKNOWN, FORBIDDEN = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


def caller(role: Role | None, name: str = "site1", serial: int = 1, days: int = 1) -> Caller:
    return Caller(name, role, serial, datetime.now(UTC) + timedelta(days=days))


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    folder = tmp_path / "authority"
    certificates.init(folder)
    return folder


@pytest.fixture
def revoked(authority: Path) -> RevocationList:
    return RevocationList(authority / "crl.pem", certificates.read_certificate(authority / "root_ca.crt"))


def test_every_method_that_is_served_has_a_rule_and_no_other() -> None:
    served = {f"{DIRECTOR}{method.name}" for method in director_pb2.DESCRIPTOR.services_by_name["Director"].methods}
    aggregator = aggregator_pb2.DESCRIPTOR.services_by_name["Aggregator"].methods
    served |= {f"/openfl.aggregator.Aggregator/{m.name}" for m in aggregator if m.name in vars(AggregatorRouter)}
    served |= {f"/{SERVICE}/{name}" for name in ModelServer(*[lambda *_: None] * 5).methods()}
    assert RULES.keys() == served


def test_the_claimed_names_are_fields_of_the_requests() -> None:
    for module, service in ((director_pb2, "Director"), (aggregator_pb2, "Aggregator")):
        for method in module.DESCRIPTOR.services_by_name[service].methods:
            rule = RULES.get(f"/{method.containing_service.full_name}/{method.name}")
            message = method.input_type
            for field in (rule.claimed or "").split(".") if rule else ():
                message = message.fields_by_name[field].message_type if field else None


def test_roles_and_names(revoked: RevocationList) -> None:
    access = Access(revoked)
    wait = director_pb2.WaitExperimentRequest(collaborator_name="site1")
    assert access.refusal(caller(Role.ENVOY), f"{DIRECTOR}WaitExperiment", wait) is None
    assert access.refusal(caller(Role.EXPERIMENTER, "ada"), f"{DIRECTOR}SetNewExperiment") is None
    for refused, method, code, words in (
        (caller(Role.ENVOY, "rogue"), "WaitExperiment", FORBIDDEN, "is for 'rogue', not for 'site1'"),
        (caller(Role.ENVOY), "SetNewExperiment", FORBIDDEN, "role envoy; allowed for SetNewExperiment: experimenter"),
        (caller(Role.DIRECTOR), "GetDatasetInfo", FORBIDDEN, "allowed for GetDatasetInfo: envoy or experimenter"),
        (caller(None), "GetDatasetInfo", UNKNOWN, "federation.certificates issue FOLDER ROLE NAME"),
        (caller(Role.ENVOY, days=-1), "GetDatasetInfo", UNKNOWN, "expired on"),
    ):
        refusal = access.refusal(refused, DIRECTOR + method, wait)
        assert refusal is not None
        assert refusal.code is code
        assert words in refusal.reason


def test_the_revocation_list_is_read_again_when_it_changes(
    authority: Path, revoked: RevocationList, caplog: pytest.LogCaptureFixture
) -> None:
    made = certificates.issue(authority, "envoy", "site1")
    assert made.serial not in revoked
    certificates.revoke(authority, "site1")
    assert made.serial in revoked
    refusal = Access(revoked).refusal(caller(Role.ENVOY, serial=made.serial), f"{DIRECTOR}GetDatasetInfo")
    assert refusal is not None
    assert f"serial {made.serial:x}) was revoked" in refusal.reason
    for spoil in (lambda path: path.write_text("half a fi"), os.unlink):
        caplog.clear()
        spoil(authority / "crl.pem")
        assert made.serial in revoked
        assert made.serial in revoked
        assert [record.levelno for record in caplog.records] == [logging.ERROR]
        assert "stays in force" in caplog.text


def test_guards(authority: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert guards(DirectorSettings()) == ()
    assert "plain mode" in caplog.text
    certificates.issue(authority, "director", "director", ["localhost"])
    paths = Certificates(authority / "root_ca.crt", authority / "director.key", authority / "director.crt")
    caplog.clear()
    assert len(guards(DirectorSettings(certificates=paths))) == 1
    assert not caplog.records
    (authority / "other.pem").write_text("nothing")
    with pytest.raises(FederationError, match=r"other\.pem holds no revocation list"):
        guards(DirectorSettings(certificates=paths, crl=authority / "other.pem"))
    (authority / "crl.pem").unlink()
    guards(DirectorSettings(certificates=paths))
    assert "no revocation list at" in caplog.text
    with pytest.raises(FederationError, match="crl: no such file"):
        DirectorSettings(certificates=paths, crl=authority / "crl.pem")
    with pytest.raises(FederationError, match="only certificates can be revoked"):
        DirectorSettings(crl=authority / "other.pem")
