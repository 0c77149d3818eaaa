"""The data owner decides: policies, commands and the audit log, over a real director and real envoys."""

import json
import logging
import re
import shutil
import stat
import subprocess
import time
import zipfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from processes import PYTHON, TOYS, ToyFederation
from toy.experiment import TASKS, Numbers, VectorModel

from federation import archives
from federation.errors import ExperimentFailed
from federation.experiment import Experiment, Federation, Metric
from federation.policy import RoundPolicy

MARKER = """
import os, pathlib
pathlib.Path(os.environ["TMPDIR"], "imported-at-" + os.environ["TOY_SITE"]).touch()
"""


class Owners:
    """Two sites whose owners are asked, an experimenter with a package that leaves a mark where it is imported."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.toys = ToyFederation(folder, sites=0)
        for number in (1, 2):
            self.toys.start_site(f"site{number}", float(number), accept="ask")
        self.federation = Federation("localhost", self.toys.port)
        self.federation.wait_for_sites(2, 30)
        self.package = folder / "mine" / "toy"
        shutil.copytree(TOYS / "toy", self.package, ignore=shutil.ignore_patterns("__pycache__"))
        (self.package / "__init__.py").write_text(MARKER)
        self.reader = ThreadPoolExecutor(1)

    def submit(self, name: str, policy: RoundPolicy | None = None) -> tuple[Experiment, "Future[list[Metric]]"]:
        experiment = self.federation.submit(
            name, package=self.package, model=VectorModel(), tasks=TASKS, data=Numbers(), rounds=1,
            best_metric="accuracy", keep_optimizer=True, policy=policy,
        )  # fmt: skip
        return experiment, self.reader.submit(lambda: list(experiment.metrics()))

    def change_step(self, step: str) -> None:
        source = self.package / "experiment.py"
        source.write_text(re.sub(r"^STEP = [\d.]+", f"STEP = {step}", source.read_text(), flags=re.MULTILINE))

    def run(self, site: str, command: str, *arguments: str) -> str:
        """What a command of a site's owner prints."""
        words = [PYTHON, "-m", "federation.review", command, *arguments, "--config", self.folder / f"{site}.yaml"]
        return subprocess.run(words, capture_output=True, text=True, check=True).stdout

    def waiting(self, site: str) -> str:
        """The digest that waits at a site, by the owner's list."""
        found = re.findall(r"^(\w{12}) .* waits for you$", self.run(site, "list"), flags=re.MULTILINE)
        assert len(found) == 1, self.run(site, "list")
        return str(found[0])

    def imported(self) -> set[str]:
        return {path.name.removeprefix("imported-at-") for path in (self.folder / "tmp").glob("imported-at-*")}


def wait_for_status(experiment: Experiment, status: str) -> None:
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


def test_the_data_owner_decides(owners: Owners, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "federation.experiment")

    # New code waits at both sites, longer than a site may be silent, and none of it has run.
    experiment, metrics = owners.submit("first", RoundPolicy(gone_seconds=2))
    wait_for_status(experiment, "in_progress, waiting for approval at site1, site2")
    time.sleep(2.5)
    assert experiment.status() == "in_progress, waiting for approval at site1, site2"
    digest = owners.waiting("site1")
    assert digest == owners.waiting("site2")
    assert f"site site1 waits for its owner to approve the code (digest {digest})" in caplog.text
    shown = owners.run("site1", "show", digest)
    for part in ("STEP = 1.0", "rounds_to_train: 2", "imports toy.experiment.VectorModel", "imported-at-"):
        assert part in shown
    assert "WARNING" not in shown
    assert owners.imported() == set()
    owners.run("site1", "approve", digest)
    wait_for_status(experiment, "in_progress, waiting for approval at site2")
    owners.run("site2", "approve", digest[:6], "--reason", "read it all")
    assert len(metrics.result(60)) > 0
    np.testing.assert_allclose(experiment.last_weights()["vector"], 1.5)
    assert owners.imported() == {"site1", "site2"}

    # Changed code waits again, is shown with its difference, and goes on without the site that rejects it.
    owners.change_step("10.0")
    experiment, metrics = owners.submit("changed", RoundPolicy(minimum_sites=1))
    wait_for_status(experiment, "in_progress, waiting for approval at site1, site2")
    changed = owners.waiting("site1")
    shown = owners.run("site1", "show", changed)
    assert f"difference to {digest}, approved last (first)" in shown
    assert "\n-STEP = 1.0 " in shown
    assert "\n+STEP = 10.0 " in shown
    assert "class Numbers" not in shown  # neither changed nor near to it
    owners.run("site2", "reject", changed, "--reason", "ten is too much")
    owners.run("site1", "approve", changed)
    took_part = {m.site: m.value for m in metrics.result(60) if m.metric == "took_part"}
    assert took_part == {"site1": 1.0, "site2": 0.0}
    np.testing.assert_allclose(experiment.last_weights()["vector"], 10.0)
    assert re.search(r"goes on without site site2: .*\s.*owner rejected this code .*: ten is too much", caplog.text)

    # A restarted site that takes approved code only: what was approved runs, when submitted anew, and nothing else.
    owners.toys.running["site2"].terminate()
    assert owners.toys.wait("site2") == 0
    owners.toys.start_site("site2", 2.0, accept="approved")
    owners.toys.wait_for("site2", "registered")
    owners.change_step("1.0")
    experiment, metrics = owners.submit("first again", RoundPolicy(gone_seconds=2))
    metrics.result(60)
    np.testing.assert_allclose(experiment.last_weights()["vector"], 1.5)
    owners.change_step("100.0")
    _, metrics = owners.submit("unknown")
    with pytest.raises(ExperimentFailed) as failure:
        metrics.result(60)
    unknown = re.findall(r"digest (\w{12})", str(failure.value))[0]
    assert "site site2 failed" in str(failure.value)
    assert f"federation.review approve {unknown} --config" in str(failure.value)
    assert f"{unknown} " in owners.run("site2", "list")
    assert "Traceback" not in owners.toys.log("site2")

    # What left the site, on its own disk, for its owner's eyes.
    path = owners.folder / "site1.audit.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["kind"] for line in lines[:3]] == ["registration", "results", "tensors"]
    trained = next(line for line in lines if line.get("task") == "train")
    expected = {
        "site": "site1", "director": f"localhost:{owners.toys.port}", "experiment": "first", "round": 1, "examples": 1,
        "metrics": {"loss": 5.0}, "tensors": 1, "bytes": 16,
    }  # fmt: skip
    assert expected.items() <= trained.items()
    assert {line["digest"]: line["tensors"] for line in lines if line["kind"] == "tensors"} == {
        trained["digest"]: {"vector": "float32[4]"}
    }
    assert re.search(r"first again +1  train +1 +16  loss 5", owners.run("site1", "audit"))
    assert "failure" in owners.run("site2", "audit", "--last", "5")
    kept = [*(owners.folder / "site1.review").iterdir(), path]
    assert {stat.S_IMODE(each.stat().st_mode) for each in kept} == {0o600}
    assert stat.S_IMODE((owners.folder / "site1.review").stat().st_mode) == 0o700


def test_archives_that_are_refused_at_submission_and_a_site_that_warns(tmp_path: Path) -> None:
    toys = ToyFederation(tmp_path, sites=1)
    try:
        toys.wait_for("site1", r"WARNING: review\.accept is 'any'")
        client = Federation("localhost", toys.port)._engine.dir_client
        for name, content in (("requirements.txt", b"left-pad"), ("../evil.py", b""), ("toy/data.py", b"0" * 10**8)):
            archive = tmp_path / "archive.zip"
            with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as writing:
                writing.writestr(archives.PLAN, "")
                writing.writestr(name, content)
            with pytest.raises(grpc.RpcError) as error:
                client.set_new_experiment("crafted", ["site1"], archive, {"vector": np.zeros(4, np.float32)})
            assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            assert name in error.value.details()
        assert list((tmp_path / "state").glob("*")) == []
    finally:
        toys.stop()
