"""The operator's commands on a director that does not run, and through the door of one that does."""

import asyncio
import shutil
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from federation.director import commands
from federation.director.commands import FOLDER, SOCKET, Door, Request, Row, Stopped, ask, command
from federation.director.lock import locked
from federation.director.state import ExperimentState, Submitted
from federation.errors import FederationError
from federation.wire.models import round_path, save

MODEL = {"v": np.arange(4, dtype=np.float32)}


def submit(root: Path, name: str, submitted: float, status: str = "pending") -> ExperimentState:
    root.mkdir(parents=True, exist_ok=True)
    outside = root.parent / "outside"
    outside.mkdir(exist_ok=True)
    shutil.make_archive(str(outside / "experiment"), "zip", outside)
    save(outside / "model", MODEL)
    about = Submitted(name, ("a", "b"), "ada", submitted, rounds=3)
    state = ExperimentState.create(root, outside / "experiment.zip", outside / "model", about)
    if status != "pending":
        save(round_path(state.folder, 1), MODEL)
        state.save_round(next_round=1, last_round=1, best_round=None, best_score=None)
        state.end(status)
    return state


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A state folder with one of each kind, the oldest not the first in the alphabet."""
    root = tmp_path / "state"
    for submitted, (name, status) in enumerate(
        [
            ("old/est", "finished"),
            ("failed", "failed"),
            ("goes on", "in_progress"),
            ("new", "finished"),
            ("b", "pending"),
        ]
    ):
        submit(root, name, 1000.0 + submitted, status)
    (root / "damaged").mkdir()
    (root / "damaged" / "experiment.json").write_text("{")
    return root


def names(root: Path) -> list[str]:
    return [row["name"] for row in command(root, Request("list"))]


@contextmanager
def running(root: Path) -> Iterator[None]:
    """A process that has the folder's lock, and answers through its door as a director does."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        with locked(root, "director"):
            door = Door(root, Stopped(root))
            asyncio.run_coroutine_threadsafe(door.open(), loop).result(10)
            yield
            loop.call_soon_threadsafe(door.close)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture(params=["stopped", "running"])
def director(request: pytest.FixtureRequest, root: Path) -> Iterator[Path]:
    if request.param == "stopped":
        yield root
        return
    with running(root):
        yield root


def test_list(director: Path) -> None:
    rows = [Row(**{**each, "sites": tuple(each["sites"])}) for each in command(director, Request("list"))]
    assert [(row.name, row.over, row.round, row.rounds) for row in rows] == [
        ("old/est", True, 1, 3), ("failed", True, 1, 3), ("goes on", False, 1, 3), ("new", True, 1, 3),
        ("b", False, 0, 3), ("damaged", False, None, None),
    ]  # fmt: skip
    assert rows[0].sites == ("a", "b")
    assert (rows[0].submitted, rows[0].sender, rows[0].status) == (1000.0, "ada", "finished")
    assert rows[2].status == "in_progress, when the director is started"
    assert rows[5].status.startswith("cannot be read: experiment.json: ")
    archive = (director / "new" / "experiment.zip").stat().st_size
    assert archive < rows[3].size < archive + 3000


def test_cancel_ends_and_removes_nothing(director: Path) -> None:
    before = {path.name for path in (director / "goes%20on").iterdir()}
    (told,) = command(director, Request("cancel", "goes on"))
    assert told == "cancelled: goes on; what it has reached is kept until it is removed"
    progress = ExperimentState(director / "goes%20on").progress()
    assert progress.status == "failed"
    assert progress.failure is not None
    assert progress.failure.startswith("experiment goes on was cancelled by operator ")
    assert {path.name for path in (director / "goes%20on").iterdir()} == before - {"round-0.safetensors"}
    assert command(director, Request("cancel", "new")) == ["new is over already (finished); nothing was done"]
    assert ExperimentState(director / "new").progress().status == "finished"


def test_remove_is_for_what_is_over(director: Path) -> None:
    for name in ("goes on", "b"):
        with pytest.raises(FederationError, match=f"{name} is not over; cancel it first, then remove it"):
            command(director, Request("remove", name))
    assert command(director, Request("remove", "old/est")) == ["removed: old/est"]
    assert command(director, Request("remove", "damaged")) == ["removed: damaged"]
    assert names(director) == ["failed", "goes on", "new", "b"]
    assert not (director / "old%2Fest").exists()
    assert not [path for path in director.iterdir() if path.name.startswith(".removed")]


@pytest.mark.parametrize(
    ("keep", "left"),
    [(0, ["goes on", "b"]), (1, ["goes on", "new", "b"]), (2, ["failed", "goes on", "new", "b"])],
)
def test_prune_removes_the_oldest_that_are_over(director: Path, keep: int, left: list[str]) -> None:
    told = command(director, Request("prune", keep=keep))
    assert told[-1] == f"{3 - keep} removed, {keep} that are over stay"
    assert told[:-1] == [f"removed: {name}" for name in ("old/est", "failed", "new")[: 3 - keep]]
    assert names(director) == [*left, "damaged"]
    assert command(director, Request("prune", keep=99))[-1] == f"0 removed, {keep} that are over stay"


def test_what_cannot_be_done_is_told(director: Path) -> None:
    for what in ("cancel", "remove"):
        with pytest.raises(FederationError, match="this director knows no experiment 'never'"):
            command(director, Request(what, "never"))
        with pytest.raises(FederationError, match=r"knows no experiment '\.\./outside'"):
            command(director, Request(what, "../outside"))
    with pytest.raises(FederationError, match=r"experiment damaged cannot be read .* can only be removed"):
        command(director, Request("cancel", "damaged"))
    with pytest.raises(FederationError, match="knows no command 'reboot'"):
        command(director, Request("reboot"))


def test_there_may_be_nothing_yet(tmp_path: Path) -> None:
    with pytest.raises(FederationError, match=r"there is no state folder .*: nothing is kept there"):
        command(tmp_path / "none", Request("list"))
    assert not (tmp_path / "none").exists()


def test_a_command_waits_for_another_but_not_for_ever(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("federation.director.lock.PATIENCE", 0.1)
    with locked(root, "command prune"), pytest.raises(FederationError, match=r"at work \(command prune, process \d+"):
        command(root, Request("list"))


def test_the_door_is_for_the_directors_user_alone_however_long_its_path(tmp_path: Path) -> None:
    root = tmp_path / ("long" * 30)
    submit(root, "one", 1.0)
    with running(root):
        assert stat.S_IMODE((root / FOLDER).stat().st_mode) == 0o700
        assert stat.S_ISSOCK((root / FOLDER / SOCKET).stat().st_mode)
        assert names(root) == ["one"]
    assert not (root / FOLDER / SOCKET).exists()
    assert names(root) == ["one"]


def test_a_director_that_does_not_answer_is_not_waited_for(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with locked(root, "director"):
        with pytest.raises(FederationError, match=r"cannot be asked from here .*own machine, .* is director, process"):
            command(root, Request("list"))
        (root / FOLDER).mkdir()
        with socket.socket(socket.AF_UNIX) as deaf:
            monkeypatch.chdir(root / FOLDER)
            deaf.bind(SOCKET)
            deaf.listen()
            with pytest.raises(
                FederationError, match=r"has not answered within 0 s; try again, or stop it and .*; it is x"
            ):
                ask(root, Request("list"), "x", seconds=0.2)


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"[1]\n", b'{"command": "list", "sudo": 1}\n', b"\xff\n", b"x" * 99999]
)
def test_a_line_that_is_no_request_is_answered(root: Path, line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(root), socket.socket(socket.AF_UNIX) as connection:
        monkeypatch.chdir(root / FOLDER)
        connection.settimeout(10)
        connection.connect(SOCKET)
        connection.sendall(line)
        connection.shutdown(socket.SHUT_WR)
        assert b'"error": ' in connection.makefile("rb").readline()
    assert len(names(root)) == 6


def test_where_there_can_be_no_socket_the_director_runs_all_the_same(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / FOLDER).write_text("a file in the way")

    async def run() -> None:
        door = Door(root, Stopped(root))
        await door.open()
        door.close()

    asyncio.run(run())
    assert "no commands can be given to this director while it runs" in caplog.text


def test_a_cancelled_experiment_is_not_gone_on_with(root: Path) -> None:
    command(root, Request("cancel", "b"))
    (state,) = [each for each in Stopped(root)._states.values() if each.about().name == "b"]
    assert state.progress() == replace(state.progress(), status="failed", next_round=0)
    assert commands.UNREADABLE not in state.progress().status
