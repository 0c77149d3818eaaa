"""Certificates and roles against a real director, set up with the README's commands and what they print."""

import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from openfl.protocols import aggregator_pb2, director_pb2, director_pb2_grpc
from processes import HOUSE, PYTHON, TOYS, Processes, certificate_lines, write_site

from federation import authority as certificates
from federation.authority import Role
from federation.director.access import RULES
from federation.errors import FederationError, SubmissionRefused
from federation.notebook.handle import ExperimentHandle, FederationHandle
from federation.settings import certificates_beside

COMMAND = ".venv/bin/python -m federation.certificates "
README = (HOUSE / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(rf"^{re.escape(COMMAND)}.*$", README, flags=re.MULTILINE)
ISSUED = {"director": Role.DIRECTOR, "envoy": Role.ENVOY, "envoy_two": Role.ENVOY, "ada": Role.EXPERIMENTER}


class SafeFederation(Processes):
    """A director and two envoys with certificates, and a folder with the authority."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.authority = folder / "authority"
        self.env = {"PYTHONPATH": str(TOYS), "OMP_NUM_THREADS": "1"}
        (folder / ".venv").symlink_to(HOUSE / ".venv")
        for command in COMMANDS:
            self.run(command.replace("director.example.org", "localhost"))
        config = folder / "director" / "director.yaml"
        settings = {"sample_shape": ["4"], "target_shape": ["1"], "envoy_health_check_period": 1}
        config.write_text(yaml.safe_dump({"settings": settings}) + (folder / "director.lines").read_text())
        self.start(
            "director", PYTHON, "-m", "federation.director", "--config", config, "--port", "0", env=self.env
        )  # fmt: skip
        self.port = int(self.wait_for("director", r"listening on .*:(\d+)")[1])

    def run(self, command: str) -> None:
        """Run a command of README and do what it says: copy the files, note the lines for the YAML."""
        done = subprocess.run(command, shell=True, cwd=self.logs, capture_output=True, text=True, check=True)
        if " issue " not in command:
            return
        target = self.logs / re.findall(r", into (\S+):", done.stdout)[0]
        target.mkdir(parents=True)
        for file in re.findall(r"^  (authority/\S+)$", done.stdout, flags=re.MULTILINE):
            shutil.copy2(self.logs / file, target)
        name = done.stdout.split(":")[0]
        lines = re.findall(r"^  (\w+: \S+)$", done.stdout, flags=re.MULTILINE)
        (self.logs / f"{name}.lines").write_text("\n".join(lines))

    def revoke(self, name: str) -> None:
        self.run(f"{COMMAND}revoke authority {name}")
        shutil.copy2(self.authority / "crl.pem", self.logs / "director" / "cert" / "crl.pem")

    def start_site(self, name: str, value: float, paths: str) -> None:
        folder = self.logs / name
        folder.mkdir(exist_ok=True)
        config = write_site(folder, name, self.port, "toy_shard.ToyShard", {"value": value})
        config.write_text(config.read_text() + paths)
        self.start(name, PYTHON, "-m", "federation.envoy", "--config", config, env=self.env)

    def connect(self, name: str, folder: Path | None = None) -> FederationHandle:
        return FederationHandle("localhost", self.port, certificates_beside((folder or self.authority) / f"{name}.crt"))

    def channel(self, name: str) -> grpc.Channel:
        paths = certificates_beside(self.authority / f"{name}.crt")
        return grpc.secure_channel(
            f"localhost:{self.port}",
            grpc.ssl_channel_credentials(
                paths.root_certificate.read_bytes(), paths.private_key.read_bytes(), paths.certificate.read_bytes()
            ),
        )

    def refused(self, name: str, role: str, method: str, reason: str) -> None:
        """Wait for the line in the director's log."""
        line = rf"WARNING: refused: peer ipv[46]:\S+:\d+, name {name}, role {role}, method {method}: .*{reason}"
        assert self.wait_for("director", line, 5)

    def is_well(self) -> None:
        assert self.running["director"].poll() is None
        assert self.connect("ada").sites() is not None
        assert "Traceback" not in self.log("director")


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SafeFederation]:
    federation = SafeFederation(tmp_path_factory.mktemp("safe"))
    yield federation
    federation.stop()


@pytest.fixture
def safe(started: SafeFederation) -> Iterator[SafeFederation]:
    """The one director of this file; whatever a test does to it, it lives and answers."""
    yield started
    started.is_well()


def submit(federation: FederationHandle, name: str) -> ExperimentHandle:
    return federation.submit(
        name, package=TOYS / "toy", entry_point="toy.experiment:experiment", settings={}, rounds=1,
        best_metric="accuracy",
    )  # fmt: skip


def call(channel: grpc.Channel, method: Any) -> grpc.RpcError:
    """The error of a call with an empty request."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    sides = ["stream" if streams else "unary" for streams in (method.client_streaming, method.server_streaming)]
    send = getattr(channel, "_".join(sides))(path)
    with pytest.raises(grpc.RpcError) as error:
        list(send(b"", timeout=5)) if method.server_streaming else send(
            iter([b""]) if method.client_streaming else b"", timeout=5
        )
    return error.value


def test_the_readme_commands_issue_the_four_certificates(safe: SafeFederation) -> None:
    assert len(COMMANDS) == 5
    assert {each.name: each.role for each in certificates.issued(safe.authority)} == ISSUED
    assert {path.name for path in (safe.logs / "director" / "cert").iterdir()} == {
        "root_ca.crt", "crl.pem", "director.crt", "director.key",
    }  # fmt: skip
    assert not list(safe.logs.glob("*/cert/root_ca.key"))
    assert "crl: cert/crl.pem" in (safe.logs / "director.lines").read_text()
    told = (HOUSE / "director" / "director.yaml").read_text()
    assert all(f"# {line.split()[0]}" in told for line in (safe.logs / "director.lines").read_text().splitlines())


def test_an_envoy_may_not_submit(safe: SafeFederation) -> None:
    with pytest.raises(FederationError, match="role envoy; allowed for GetEnvoys: experimenter"):
        submit(safe.connect("envoy"), "from an envoy")
    with safe.channel("envoy") as channel, pytest.raises(grpc.RpcError) as error:
        director_pb2_grpc.DirectorStub(channel).SetNewExperiment(iter([director_pb2.ExperimentInfo(name="mine")]))
    assert error.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "role envoy; allowed for SetNewExperiment: experimenter" in error.value.details()
    safe.refused("envoy", "envoy", "SetNewExperiment", "allowed for SetNewExperiment: experimenter")


def test_an_experimenter_may_not_be_an_envoy_nor_an_envoy_another(safe: SafeFederation) -> None:
    certificates.issue(safe.authority, "envoy", "rogue")
    safe.start_site("ada", 1.0, yaml.safe_dump(certificate_lines(safe.authority, "ada")))
    safe.start_site("site1", 1.0, yaml.safe_dump(certificate_lines(safe.authority, "rogue")))
    assert safe.wait("ada") == 1
    assert "the director refused this site: this certificate is for the role experimenter" in safe.log("ada")
    safe.refused("ada", "experimenter", "UpdateShardInfo", "allowed for UpdateShardInfo: envoy")
    assert safe.wait("site1") == 1
    assert "this certificate is for 'rogue', not for 'site1'" in safe.log("site1")
    assert "Traceback" not in safe.log("site1")
    safe.refused("rogue", "envoy", "UpdateShardInfo", "not for 'site1'")


@pytest.mark.parametrize("name", ["envoy", "ada"])
def test_every_method_is_closed_to_the_other_roles_and_names(safe: SafeFederation, name: str) -> None:
    with safe.channel(name) as channel:
        for module, service in ((director_pb2, "Director"), (aggregator_pb2, "Aggregator")):
            for method in module.DESCRIPTOR.services_by_name[service].methods:
                rule = RULES.get(f"/{method.containing_service.full_name}/{method.name}")
                if rule is None:
                    assert call(channel, method).code() is grpc.StatusCode.UNIMPLEMENTED, method.name
                elif ISSUED[name] not in rule.roles or rule.claimed:
                    error = call(channel, method)
                    assert error.code() is grpc.StatusCode.PERMISSION_DENIED, method.name
                    safe.refused(name, ISSUED[name], method.name, "this certificate is for")


def test_a_certificate_without_a_role(safe: SafeFederation) -> None:
    ca = certificates.read_certificate(safe.authority / "root_ca.crt")
    ca_key = load_pem_private_key((safe.authority / "root_ca.key").read_bytes(), password=None)
    key = load_pem_private_key((safe.authority / "envoy.key").read_bytes(), password=None)
    plain = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "nobody")]))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))
        .not_valid_after(datetime.now(UTC) + timedelta(hours=1))
        .sign(ca_key, hashes.SHA256())
    )
    (safe.authority / "nobody.crt").write_bytes(plain.public_bytes(Encoding.PEM))
    shutil.copy2(safe.authority / "envoy.key", safe.authority / "nobody.key")
    with pytest.raises(FederationError, match=r"names no role .*federation\.certificates issue FOLDER ROLE NAME"):
        safe.connect("nobody")
    safe.refused("nobody", "none", "GetDatasetInfo", "names no role")


def test_tls_itself_refuses_strangers(safe: SafeFederation, tmp_path: Path) -> None:
    """Its log lines come from gRPC, which gives the reason but not the peer."""
    certificates.init(tmp_path / "other")
    certificates.issue(tmp_path / "other", "experimenter", "ada")
    shutil.copy2(safe.authority / "root_ca.crt", tmp_path / "other" / "root_ca.crt")  # trusts this director
    before_last_year = datetime.now(UTC) - timedelta(days=400)
    certificates.issue(safe.authority, "experimenter", "late", days=1, now=before_last_year)
    for connect, words in (
        (lambda: safe.connect("ada", tmp_path / "other"), "certificate signature failure|unable to get local issuer"),
        (lambda: safe.connect("late"), "certificate has expired"),
        (lambda: safe.connect("director"), "unsuitable certificate purpose|unsupported certificate purpose"),
        (lambda: FederationHandle("localhost", safe.port), "WRONG_VERSION_NUMBER|HTTP_REQUEST"),
    ):
        with pytest.raises(FederationError, match="no director answers"):
            connect()
        assert safe.wait_for("director", rf"Handshake failed .*({words})", 5)


def test_an_envoy_cannot_pose_as_the_director(safe: SafeFederation) -> None:
    certificates.issue(safe.authority, "envoy", "impostor", ["localhost"])
    server = grpc.server(ThreadPoolExecutor(1))
    pair = [(safe.authority / f"impostor.{end}").read_bytes() for end in ("key", "crt")]
    port = server.add_secure_port("localhost:0", grpc.ssl_server_credentials([tuple(pair)]))
    server.start()
    try:
        with pytest.raises(FederationError, match="no director answers"):
            FederationHandle("localhost", port, certificates_beside(safe.authority / "ada.crt"))
    finally:
        server.stop(0)


def test_revoked_while_the_director_runs(safe: SafeFederation) -> None:
    made = certificates.issue(safe.authority, "experimenter", "leaver")
    leaver = safe.connect("leaver")
    assert leaver.sites() == []
    safe.revoke("leaver")
    with pytest.raises(FederationError, match=rf"serial {made.serial:x}\) was revoked"):
        leaver.sites()  # over the connection that was open
    with pytest.raises(FederationError, match=r"refuses: this certificate .* was revoked"):
        safe.connect("leaver")
    with pytest.raises(SubmissionRefused, match="no envoy is online"):
        submit(safe.connect("ada"), "early")
    safe.refused("leaver", "experimenter", "GetEnvoys", "was revoked")


def test_after_all_that_a_good_experiment_runs_without_an_envoy_that_is_revoked(safe: SafeFederation) -> None:
    for value, name in enumerate(("envoy", "envoy_two"), start=1):
        safe.start_site(name, float(value), (safe.logs / f"{name}.lines").read_text())
    federation = safe.connect("ada")
    federation.wait_for_sites(2, 30)
    safe.revoke("envoy_two")
    safe.refused("envoy_two", "envoy", "(WaitExperiment|UpdateEnvoyStatus)", "was revoked")
    deadline = time.monotonic() + 20
    while [site.name for site in federation.sites() if site.online] != ["envoy"]:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    experiment = submit(federation, "good")
    assert len(list(experiment.metrics())) > 0
    assert [float(value) for value in experiment.last_weights()["vector"]] == pytest.approx([1.0] * 4)
    assert "plain mode" not in safe.log("director")
