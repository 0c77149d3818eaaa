"""An envoy's folder for experiments: its own, and cleared when its process is gone."""

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from federation.site.folders import LOCK, WorkFolder, clear


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


HOLD = """
import sys, tempfile
from federation.site.folders import WorkFolder
tempfile.tempdir = sys.argv[1]
work = WorkFolder("north")
(work.make() / "model.py").write_text("x = 1")
print(work.path, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_process_left_is_removed_at_the_next_start(temporary: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(temporary)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        held = Path(other.stdout.readline().strip())
        assert len(list(held.glob("*/model.py"))) == 1
        assert clear("north") == []  # it lives
        other.kill()
    mine = WorkFolder("north")
    assert not held.exists()
    assert mine.path.exists()
    mine.remove()
    assert list(temporary.iterdir()) == []


def test_what_is_not_an_envoys_stays(temporary: Path) -> None:
    for name in ("north-recordings", "north", "south-x"):
        (temporary / name).mkdir()
        (temporary / name / "voice.wav").touch()
    other = temporary / "elsewhere"
    other.mkdir()
    (other / LOCK).touch()
    (temporary / "north-link").symlink_to(other)
    (temporary / "south-x" / LOCK).touch()
    assert clear("north") == []
    assert (other / LOCK).exists()
    assert clear("south") == [temporary / "south-x"]
    assert {path.name for path in temporary.iterdir()} == {"north-recordings", "north", "elsewhere", "north-link"}


def test_two_envoys_of_one_name_on_a_machine_leave_each_other_alone(temporary: Path) -> None:
    one, two = WorkFolder("north"), WorkFolder("north")
    assert one.make().is_dir()
    assert two.make().is_dir()
    one.remove()
    assert two.make().is_dir()
    two.remove()
