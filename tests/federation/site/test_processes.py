"""What an experiment's code has started ends with it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from federation.site import processes
from federation.site.processes import MARK, Trainer, end_marked

START = """
import json, os, subprocess, sys
task = json.loads(sys.stdin.readline())
sleep = [sys.executable, "-c", "import time; time.sleep(120)"]
own = subprocess.Popen(sleep)
session = subprocess.Popen(sleep, start_new_session=True)
code = f"import subprocess; subprocess.Popen({sleep!r}, start_new_session=True)"
subprocess.Popen([sys.executable, "-c", code]).wait()
with open(task["pids"], "w") as file:
    json.dump([own.pid, session.pid], file)
if task["then"] == "sleep":
    sys.stdin.read()
sys.exit(3)
"""
"""Starts one child in its group, one in a session of its own, and one whose parent has gone."""


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Trainer]:
    """A trainer whose code starts processes, and then ends or waits."""
    (tmp_path / "begin.py").write_text(START)
    real = subprocess.Popen

    def begin(then: str) -> Trainer:
        monkeypatch.setattr(
            processes.subprocess, "Popen", lambda _, **more: real([sys.executable, str(tmp_path / "begin.py")], **more)
        )
        return Trainer(json.dumps({"pids": str(tmp_path / "pids"), "then": then}), os.environ)

    return begin


def of(trainer: Trainer) -> list[psutil.Process]:
    """Everything that lives and has the trainer's mark."""
    mark = trainer._environment[MARK]
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == mark and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_all_of_it_ends_with_a_trainer_that_ends(start: Callable[[str], Trainer], tmp_path: Path) -> None:
    trainer = start("end")
    assert trainer.wait() == 3
    assert (tmp_path / "pids").exists()
    assert of(trainer) == []
    trainer.end()  # does nothing more


def test_all_of_it_ends_with_a_trainer_that_is_ended(start: Callable[[str], Trainer], tmp_path: Path) -> None:
    trainer = start("sleep")
    wait_for((tmp_path / "pids").exists)
    assert len(of(trainer)) == 4
    trainer.end()
    assert trainer.wait() == -signal.SIGKILL
    assert of(trainer) == []


def test_nothing_else_is_ended() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env=os.environ | {MARK: "b"}
    ) as other:
        end_marked({MARK: "a"})
        end_marked({MARK: ""})
        end_marked({})
        assert other.poll() is None
        end_marked({MARK: "b"})
        assert other.wait(10) == -signal.SIGKILL
