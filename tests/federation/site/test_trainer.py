"""What a trainer process refuses before it talks to anybody, and what it leaves of it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from processes import TOYS
from submissions import described

from federation.site.trainer import FAILURE_FILE, TrainerTask
from federation.wire import archives

CERTIFICATES = dict.fromkeys(("root_certificate", "private_key", "certificate"))


def failure(folder: Path, files: dict[str, bytes], **changes: object) -> str:
    """What a trainer says that cannot work on these files."""
    archives.write(files, folder)
    given = {"descriptor": "toy_shard.ToyShard", "descriptor_params": {"value": 1.0}, **changes}
    task = TrainerTask(str(folder), "x", "site", "localhost", 1, certificates=CERTIFICATES, **given)  # type: ignore[arg-type]
    paths = os.pathsep.join((str(TOYS), os.environ.get("PYTHONPATH", "")))
    command = [sys.executable, "-m", "federation.site.trainer"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}) as trainer:
        assert trainer.stdin
        trainer.stdin.write(task.to_json() + "\n")
        trainer.stdin.flush()  # and stays open, as an envoy's does
        assert trainer.wait(60) == 1
    return (folder / FAILURE_FILE).read_text()


@pytest.mark.parametrize(
    ("source", "told"),
    [
        (b"", "FederationError: entry_point toy:experiment: toy has no function experiment\n  at federation/experim"),
        (b"import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'\n  at toy/__init__.py:1, in"),
        (b"def experiment(settings):\n    open('/home/ann.wav')", "No such file or directory: <hidden>\n  at toy/__"),
        (b"def experiment(settings):\n    return 1", "returned int; it has to return a ModelInterface, a TaskInt"),
    ],
)  # fmt: skip
def test_a_package_that_cannot_be_used(tmp_path: Path, source: bytes, told: str) -> None:
    assert told in failure(tmp_path, {archives.DESCRIPTION: described(), "toy/__init__.py": source})


def test_a_package_that_the_sites_own_code_has_imported(tmp_path: Path) -> None:
    files = {archives.DESCRIPTION: described(entry_point="toy_shard:experiment"), "toy_shard/__init__.py": b""}
    assert "the site's shard descriptor imports toy_shard, which the experiment ships" in failure(tmp_path, files)


def test_the_owner_may_allow_the_whole_error(tmp_path: Path) -> None:
    files = {archives.DESCRIPTION: described(), "toy/__init__.py": b"import no_such_module"}
    assert failure(tmp_path, files, failures="full").startswith("Traceback (most recent call last):\n")
