"""A trainer's process and all that the experiment's code has started from it: they end together.

A trainer leads a session of its own, and everything that is started in it inherits a mark in its environment, by which
what has left the session is found as well (on Linux). Code that wipes its own environment and begins a new session is
not found; it runs with the envoy's rights and was approved.
"""

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

MARK = "FEDERATION_TRAINER"
"""The environment variable whose value tells one trainer and its children from all others."""

MOST_TRIES = 20
"""How often what is marked is looked for again, since it may start more while it is being ended."""


class Trainer:
    """A running trainer."""

    def __init__(self, task: str, environment: Mapping[str, str]) -> None:
        """Start it with its task, a line of JSON."""
        self._environment = {**environment, MARK: uuid.uuid4().hex}
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "federation.site.trainer"],
            stdin=subprocess.PIPE,
            env=self._environment,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it died at once; the exit status tells
            self._process.stdin.write(task + "\n")
            self._process.stdin.flush()

    def wait(self) -> int:
        """Wait for its end, and end what it has started; the exit status, negative for a signal."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)  # its number stays its own until it is reaped
        with self._lock:
            self._end_all()
            return self._process.wait()

    def end(self) -> None:
        """End it and what it has started; it holds nothing that would be lost."""
        with self._lock:
            if self._process.returncode is None:
                self._end_all()

    def _end_all(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        end_marked(self._environment)


def lead_own_group() -> None:
    """Begin a session of one's own, unless one leads its group already."""
    if os.getpgrp() != os.getpid():
        os.setsid()


def end_own_group() -> None:
    """End this process and its group."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def end_marked(environment: Mapping[str, str]) -> None:
    """End every other process that has inherited the mark of this environment."""
    mark = environment.get(MARK)
    for _ in range(MOST_TRIES if mark else 0):
        found = list(_marked(f"{MARK}={mark}".encode()))
        for pid in found:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        if not found:
            return


def _marked(mark: bytes) -> Iterator[int]:
    """Processes of this user that live and have the mark; none where there is no /proc."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        pid = int(path.parent.name)
        with suppress(OSError):
            if pid != os.getpid() and mark in path.read_bytes().split(b"\0"):
                yield pid
