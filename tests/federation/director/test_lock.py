import errno
import fcntl
import json
import os
import re
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from federation.director.lock import FILE, Held, locked
from federation.errors import FederationError

HOLDS = """
import sys, time
from pathlib import Path
from federation.director.lock import locked
with locked(Path(sys.argv[1]), "director"):
    print("held", flush=True)
    time.sleep(60)
"""


def test_who_holds_it_is_told_and_a_process_that_dies_gives_it_back(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("x")
    holder = subprocess.Popen([sys.executable, "-c", HOLDS, tmp_path], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        expected = rf"another director uses .*, and nothing was touched: director, process {holder.pid} on "
        expected += rf"{re.escape(socket.gethostname())} since \d{{4}}-"
        with pytest.raises(Held, match=expected), locked(tmp_path, "director"):
            pytest.fail("two processes hold one lock")
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    finally:
        holder.kill()
        holder.wait(10)
    with locked(tmp_path, "director") as elsewhere:
        assert elsewhere is None  # on this host the kernel knows that it is gone
        assert json.loads((tmp_path / FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / FILE).read_bytes() == b""


def test_a_holder_on_another_host_is_pointed_out(tmp_path: Path) -> None:
    """Where a network's file system locks for each host alone, the one that is named may still run."""
    left = {"what": "director", "pid": 7, "host": "elsewhere", "since": "2026-01-01 00:00:00"}
    (tmp_path / FILE).write_text(json.dumps(left))
    with locked(tmp_path, "director") as elsewhere:
        assert str(elsewhere) == "director, process 7 on elsewhere since 2026-01-01 00:00:00"
    with locked(tmp_path, "director") as elsewhere:
        assert elsewhere is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": 1}', b"\xff"])
def test_a_lock_file_may_say_anything(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.director.lock.PATIENCE", 0.1)
    (tmp_path / FILE).write_bytes(content)
    with locked(tmp_path, "director"):
        (tmp_path / FILE).write_bytes(content)
        with (
            pytest.raises(Held, match=r"uses the state folder .*: who it is is not known"),
            locked(tmp_path, "director"),
        ):
            pass


def test_a_command_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor() as pool:
        with locked(tmp_path, "command list"):
            director = pool.submit(_hold, tmp_path)
            time.sleep(0.2)
            assert not director.done()
        assert director.result(10)
    monkeypatch.setattr("federation.director.lock.PATIENCE", 0.1)
    with locked(tmp_path, "command prune"), pytest.raises(Held, match=r"a command uses .*: command prune, process \d+"):
        _hold(tmp_path)


def _hold(folder: Path) -> bool:
    with locked(folder, "director"):
        return True


def test_a_file_system_without_locks_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", flock)
    with (
        pytest.raises(FederationError, match=r"knows no locks \(No locks available\).*; name a folder on a local disk"),
        locked(tmp_path, "director"),
    ):
        pass


def test_a_folder_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match="cannot be used"), locked(tmp_path / "missing", "director"):
        pass
