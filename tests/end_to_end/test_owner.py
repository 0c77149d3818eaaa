"""The data owner decides: policies, commands and the audit log, over a real director and real envoys."""

import io
import json
import logging
import re
import shutil
import stat
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import grpc
import numpy as np
import pytest
from processes import HOUSE, TOYS, ToyFederation
from submissions import SMALL, zipped

from federation import review
from federation.errors import ExperimentFailed, FederationError
from federation.notebook.handle import ExperimentHandle, FederationHandle, Metric
from federation.policy import RoundPolicy
from federation.wire import archives

MARKER = """
import os, pathlib
if "TOY_SITE" in os.environ:  # not in the notebook
    pathlib.Path(os.environ["TMPDIR"], "imported-at-" + os.environ["TOY_SITE"]).touch()
"""


class Owners:
    """A site that asks its owner, one that runs approved code only, and a package that marks where it is imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toys = ToyFederation(folder, sites=0)
        self.toys.start_site("site1", 1.0, accept="ask")
        self.toys.start_site("site2", 2.0, accept="approved")
        self.federation = FederationHandle("localhost", self.toys.port)
        self.federation.wait_for_sites(2, 30)
        self.package = folder / "mine" / "toy"
        shutil.copytree(TOYS / "toy", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (self.package / "__init__.py").write_text(MARKER)
        (self.package / "envoy.key").write_text("a key")
        (self.package / "runs").mkdir()
        (self.package / "runs" / "model.py").write_text("a run")
        self.reader = ThreadPoolExecutor(1)
        self.ran: set[str] = set()

    def submit(self, name: str, policy: RoundPolicy | None = None) -> tuple[ExperimentHandle, "Future[list[Metric]]"]:
        experiment = self.federation.submit(
            name, package=self.package, entry_point="toy.experiment:experiment", settings={}, rounds=1,
            best_metric="accuracy", policy=policy,
        )  # fmt: skip
        return experiment, self.reader.submit(lambda: list(experiment.metrics(reconnect_seconds=5)))

    def change_step(self, step: str) -> None:
        source = self.package / "experiment.py"
        source.write_text(re.sub(r"^STEP = [\d.]+", f"STEP = {step}", source.read_text(), flags=re.MULTILINE))

    def run(self, site: str, command: str, *arguments: str) -> str:
        """What a command of a site's owner prints."""
        self.ran.add(command)
        words = ["review", command, *arguments, "--config", str(self.folder / f"{site}.yaml")]
        told = io.StringIO()
        with patch("sys.argv", words), redirect_stdout(told), redirect_stderr(told), pytest.raises(SystemExit) as left:
            review.main()
        if left.value.code:
            raise FederationError(told.getvalue())
        return told.getvalue()

    def waiting(self, site: str) -> str:
        """The digest that waits at a site, by the owner's list."""
        found = re.findall(r"^(\w{12}) .* waits for you$", self.run(site, "list"), flags=re.MULTILINE)
        assert len(found) == 1, self.run(site, "list")
        return str(found[0])

    def imported(self) -> set[str]:
        return {path.name.removeprefix("imported-at-") for path in (self.folder / "tmp").glob("imported-at-*")}


def wait_for_status(experiment: ExperimentHandle, status: str) -> None:
    deadline = time.monotonic() + 20
    while experiment.status() != status:
        assert time.monotonic() < deadline, experiment.status()
        time.sleep(0.05)


@pytest.fixture
def owners(tmp_path: Path):
    started = Owners(tmp_path)
    yield started
    started.toys.stop()
    started.reader.shutdown()


def craft(path: Path, name: str, content: bytes) -> Path:
    """An archive with one file beside those of an experiment."""
    path.write_bytes(zipped(SMALL | {name: content}))
    return path


def test_the_data_owner_decides(owners: Owners, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "federation.notebook.handle")

    # What may not travel is refused at submission, with its name.
    for name, content in (("requirements.txt", b"left-pad"), ("../evil.py", b""), ("toy/data.py", b"0" * 2**25)):
        with pytest.raises(grpc.RpcError) as error:
            owners.federation._engine.dir_client.set_new_experiment(
                "crafted", ["site1", "site2"], craft(tmp_path / "crafted.zip", name, content), {"vector": np.zeros(4)}
            )
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert name in error.value.details()
    assert list((tmp_path / "state").glob("[!.]*")) == []

    # New code waits at one site, longer than a site may be silent; the other refuses it; none of it has run.
    alone = RoundPolicy(minimum_sites=1, gone_seconds=2)
    experiment, metrics = owners.submit("first", alone)
    wait_for_status(experiment, "in_progress, waiting for approval at site1")
    shipped = archives.read(tmp_path / "state" / "first" / "experiment.zip")
    assert shipped.keys() == {archives.DESCRIPTION, "toy/__init__.py", "toy/experiment.py"}
    time.sleep(2.5)
    assert experiment.status() == "in_progress, waiting for approval at site1"
    first = owners.waiting("site1")
    assert f"site site1 waits for its owner to approve the code (digest {first})" in caplog.text
    assert re.search(rf"goes on without site site2: [^$]*\n  \S.*federation\.review approve {first} ", caplog.text)
    with pytest.raises(FederationError, match="has not been shown yet"):
        owners.run("site1", "approve", first)
    shown = owners.run("site1", "show", first, "--code")  # this test can import the toy, as if it were installed here
    for part in (
        "STEP = 1.0",
        '"rounds": 1,',
        '"entry_point": "toy.experiment:experiment"',
        "imported-at-",
        "by experimen",
    ):
        assert part in shown
    assert "WARNING" not in shown
    assert owners.imported() == set()
    owners.run("site1", "approve", first[:6], "--reason", "read it all")
    assert {m.site: m.value for m in metrics.result(60) if m.metric == "took_part"} == {"site1": 1.0, "site2": 0.0}
    assert owners.imported() == {"site1"}

    # What is approved runs at once at both, although it is another submission.
    assert re.search(rf"^{first} .* first +none; refused$", owners.run("site2", "list"), flags=re.MULTILINE)
    owners.run("site2", "show", first)
    owners.run("site2", "approve", first)
    experiment, metrics = owners.submit("again")
    metrics.result(60)
    np.testing.assert_allclose(experiment.last_weights()["vector"], 1.5)
    assert "experiment again" not in caplog.text
    assert owners.imported() == {"site1", "site2"}

    # Changed code waits again, is shown with its difference, and completes when it is approved.
    owners.change_step("10.0")
    experiment, metrics = owners.submit("changed", alone)
    wait_for_status(experiment, "in_progress, waiting for approval at site1")
    changed = owners.waiting("site1")
    shown = owners.run("site1", "show", changed)
    assert f"difference to {first}, approved last (again)" in shown
    assert "\n-STEP = 1.0 " in shown
    assert "\n+STEP = 10.0 " in shown
    assert "class Numbers" not in shown  # neither changed nor near to it
    owners.run("site1", "approve", changed)
    metrics.result(60)
    np.testing.assert_allclose(experiment.last_weights()["vector"], 10.0)

    # An approval is for what was looked at: the director's copy is changed meanwhile, and the site looks again.
    owners.change_step("5.0")
    experiment, metrics = owners.submit("swapped", alone)
    wait_for_status(experiment, "in_progress, waiting for approval at site1")
    craft(tmp_path / "state" / "swapped" / "experiment.zip", "requirements.txt", b"left-pad")
    owners.run("site1", "show", owners.waiting("site1"))
    owners.run("site1", "approve", owners.waiting("site1"))
    with pytest.raises(ExperimentFailed, match=r"site site1 failed:\s.*'requirements\.txt'"):
        metrics.result(60)

    # What is rejected reaches the notebook with the owner's reason; so does a refusal, where all sites are needed.
    owners.change_step("100.0")
    experiment, metrics = owners.submit("rejected", alone)
    wait_for_status(experiment, "in_progress, waiting for approval at site1")
    rejected = owners.waiting("site1")
    owners.run("site1", "reject", rejected, "--reason", "a hundred is too much")
    with pytest.raises(ExperimentFailed, match=rf"site1 failed:\s.*\(digest {rejected}\): a hundred is too much"):
        metrics.result(60)
    owners.change_step("7.0")
    _, metrics = owners.submit("refused")
    with pytest.raises(ExperimentFailed, match=r"(?s)site site2 failed:.*federation\.review approve [0-9a-f]{12} "):
        metrics.result(60)
    assert not any("Traceback" in owners.toys.log(name) for name in owners.toys.running)

    # What left the site, on its own disk, for its owner's eyes.
    path = owners.folder / "site1.audit.jsonl"
    written = [json.loads(line) for line in path.read_text().splitlines()]
    calls = {line["call"] for line in written if line["kind"] == "message"}
    assert calls - {"Received"} == {  # which is asked after a cut alone
        "UpdateShardInfo", "UpdateEnvoyStatus", "WaitExperiment", "GetExperimentData", "SetExperimentFailed",
        "GetTasks", "Round", "Update", "SendLocalTaskResults",
    }  # fmt: skip
    assert all(re.fullmatch("[0-9a-f]{64}", line["sha256"]) for line in written if line["kind"] == "message")
    lines = [line for line in written if line["kind"] != "message"]
    assert [line["kind"] for line in lines[:3]] == ["registration", "results", "tensors"]
    trained = next(line for line in lines if line.get("task") == "train")
    expected = {
        "site": "site1", "director": f"localhost:{owners.toys.port}", "experiment": "first", "round": 1, "examples": 1,
        "tensors": 1,
    }  # fmt: skip
    assert trained["metrics"].keys() == {"loss", "seconds", "bytes_down", "bytes_up", "update_norm"}
    assert trained["metrics"]["loss"] == 5.0
    assert {name: trained[name] for name in expected} == expected
    assert 16 < trained["bytes"] < 500  # four numbers and their header
    assert {line["digest"]: line["tensors"] for line in lines if line["kind"] == "tensors"} == {
        trained["digest"]: {"vector": "F32[4]"}
    }
    assert re.search(r"again +1  train +1 +\d+  .*loss 5", owners.run("site1", "audit"))
    assert "failure" in owners.run("site2", "audit", "--last", "5")
    readme = (HOUSE / "README.md").read_text(encoding="utf-8")
    assert owners.ran == set(re.findall(r"python -m federation\.review (\w+)", readme))
    kept = [*(owners.folder / "site1.review").iterdir(), path, path.with_name(f".{path.name}.lock")]
    assert {stat.S_IMODE(each.stat().st_mode) for each in kept} == {0o600}
    assert stat.S_IMODE((owners.folder / "site1.review").stat().st_mode) == 0o700
