"""Mutual TLS between real processes."""

import json
import re
from pathlib import Path

import pytest
import yaml
from processes import PYTHON, TOYS, Processes, certificate_lines, write_site

from federation import authority as certificates
from federation.errors import ExperimentFailed, FederationError
from federation.notebook.handle import FederationHandle
from federation.settings import certificates_beside
from lab.submission import connect


def test_an_experiment_and_its_failure_over_mutual_tls(
    processes: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, strangers = tmp_path / "authority", tmp_path / "strangers"
    for folder in (authority, strangers):
        certificates.init(folder)
        certificates.issue(folder, "experimenter", "ada")
    certificates.issue(authority, "director", "director", ["localhost"])
    config = tmp_path / "director.yaml"
    settings = {"sample_shape": ["4"], "target_shape": ["1"]}
    config.write_text(yaml.safe_dump({"settings": settings} | certificate_lines(authority, "director")))
    env = {"PYTHONPATH": str(TOYS), "KWS_LOG": "json"}
    processes.start("director", PYTHON, "-m", "federation.director", "--config", config, "--port", "0", env=env)
    port = int(processes.wait_for("director", r"listening on .*:(\d+)")[1])
    for number in (1, 2):
        name = f"site{number}"
        site = write_site(tmp_path, name, port, "toy_shard.ToyShard", {"value": float(number)})
        certificates.issue(authority, "envoy", name)
        site.write_text(site.read_text() + yaml.safe_dump(certificate_lines(authority, name)))
        processes.start(name, PYTHON, "-m", "federation.envoy", "--config", site, env=env)

    federation = FederationHandle("localhost", port, certificates_beside(authority / "ada.crt"))
    federation.wait_for_sites(2, 60)

    def submit(name: str, **faults: float) -> list[float]:
        experiment = federation.submit(
            name, package=TOYS / "toy", entry_point="toy.experiment:experiment", settings={"faults": faults}, rounds=1,
            best_metric="accuracy",
        )  # fmt: skip
        list(experiment.metrics())
        return [float(value) for value in experiment.last_weights()["vector"]]

    assert submit("safe") == pytest.approx([1.5] * 4)
    with pytest.raises(ExperimentFailed, match="the toy was told to fail"):
        submit("broken", raise_on=1.0)
    assert submit("again") == pytest.approx([1.5] * 4)

    monkeypatch.setenv("KWS_DIRECTOR", f"localhost:{port}")
    monkeypatch.setenv("KWS_CERTIFICATE", str(authority / "ada.crt"))
    assert len(connect().sites()) == 2  # as the notebook does
    monkeypatch.setenv("KWS_CERTIFICATE", str(authority / "nobody.crt"))
    with pytest.raises(FederationError, match=r"no such file: .*nobody\.key"):
        connect()

    with pytest.raises(FederationError, match="no director answers"):
        FederationHandle("localhost", port, certificates_beside(strangers / "ada.crt"))
    with pytest.raises(FederationError, match="no director answers"):
        FederationHandle("localhost", port)
    assert_logs_are_events_without_secrets(processes)


def assert_logs_are_events_without_secrets(processes: Processes) -> None:
    """Every line is a JSON object that tells its experiment and site; the library beneath gRPC has its own form."""
    events = []
    for name in processes.running:
        assert "-----BEGIN" not in processes.log(name)
        lines = [
            line for line in processes.log(name).splitlines() if not re.match(r"[IWE]\d{4} |WARNING: All log", line)
        ]
        events += [json.loads(line) for line in lines]
    fields = ("process", "level", "experiment", "site", "round", "task")
    places = {tuple(event.get(field) for field in fields) for event in events}
    for place in (
        ("director", "INFO", "safe", None, None, None),
        ("director", "ERROR", "broken", "site1", None, None),
        ("site1", "ERROR", "broken", "site1", None, None),
        ("site2/trainer", "INFO", "again", "site2", 1, "train"),
        ("site2/trainer", "INFO", "again", "site2", 1, "validate_global"),
    ):
        assert place in places
