"""What a site receives of an experiment that a notebook has submitted, and what its owner has to read of it."""

import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from processes import HOUSE, PYTHON, Processes, write_site

from federation.notebook.handle import FederationHandle
from federation.site.review import ReviewFolder, Submission
from kws.config import ExperimentConfig
from lab.submission import submit, wait_for_shards
from shard_descriptors.corpus import SUPERB_KS

WORKSPACE = HOUSE / "workspace"
MOST_LINES = 1_000
"""Of Python that an owner has to read before the first approval."""


@dataclass(frozen=True)
class Owner:
    """The owner of a site at which a submission waits."""

    config: Path
    submission: Submission

    def show(self, *options: str) -> str:
        """What the owner is shown."""
        command = [PYTHON, "-m", "federation.review", "show", self.submission.digest, "--config", self.config, *options]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(scope="module")
def owner(tmp_path_factory: pytest.TempPathFactory, tiny_corpus: Path):
    """A real director, a real envoy that asks its owner, and an experiment that the notebook's function has sent."""
    folder = tmp_path_factory.mktemp("travel")
    processes = Processes(folder)
    try:
        settings = folder / "director.yaml"
        settings.write_text("settings: {state: state}\n")
        processes.start("director", PYTHON, "-m", "federation.director", "--config", settings, "--port", "0")
        port = int(processes.wait_for("director", r"listening on .*:(\d+)")[1])
        params = {"data_path": str(tiny_corpus)}
        template = "shard_descriptors.superb_ks.SuperbKsShardDescriptor"
        config = write_site(folder, "site", port, template, params, accept="ask")
        processes.start("site", PYTHON, "-m", "federation.envoy", "--config", config)
        federation = FederationHandle("localhost", port)
        wait_for_shards(federation, 60)
        experiment = submit(federation, ExperimentConfig(), "travels", SUPERB_KS)
        deadline = time.monotonic() + 60
        while "waiting for approval" not in experiment.status():
            assert time.monotonic() < deadline, experiment.status()
            time.sleep(0.1)
        kept = ReviewFolder(folder / "site.review")
        (received,) = kept.received()
        yield Owner(config, kept.load(received.digest))
    finally:
        processes.stop()


def sources() -> dict[str, bytes]:
    """`workspace/kws` as it lies on the disk."""
    found = [path for path in (WORKSPACE / "kws").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(WORKSPACE).as_posix(): path.read_bytes() for path in found}


def python_lines(shown: str) -> int:
    """Lines that are printed of Python files."""
    parts = shown.removesuffix("\n").split("\n\n=== ")[1:]
    return sum(len(part.splitlines()) - 1 for part in parts if ".py" in part.splitlines()[0])


def test_a_site_receives_the_package_as_it_lies_on_the_disk(owner: Owner) -> None:
    received = {name: content for name, content in owner.submission.files.items() if name.endswith(".py")}
    assert received.keys() == sources().keys()
    assert received == sources()


def test_a_first_approval_is_read_in_one_sitting(owner: Owner) -> None:
    shown = owner.show()
    assert python_lines(shown) <= MOST_LINES
    for name in sources():
        assert f"{name}: as installed here" in shown  # this is the machine of the notebook, too


def test_an_owner_without_the_package_reads_all_of_it(owner: Owner) -> None:
    code = "import sys; sys.modules['kws'] = None; from federation.review import main; main()"
    command = [PYTHON, "-c", code, "show", owner.submission.digest, "--config", owner.config]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert python_lines(shown) == sum(len(content.splitlines()) for content in sources().values())
    assert "as installed here" not in shown


def test_the_owner_may_read_all_of_it(owner: Owner) -> None:
    shown = owner.show("--code")
    for name, content in sources().items():
        assert f"\n=== {name}\n{content.decode()}" in shown
