"""The log of what left a site: a line for each message, with its digest, and bounded."""

import hashlib
import stat
import threading
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import grpc
import numpy as np
import pytest

from federation.schedule import TRAIN, VALIDATE_AGGREGATED
from federation.site import audit, disk
from federation.site.audit import AuditLog, entries, table
from federation.site.noted import noted
from federation.wire.models import Packed, Piece

METRICS = {"loss": 0.5}
UPDATE = Packed(
    {
        "head.weight": Piece.of(np.zeros((12, 4), np.float32)),
        "head.bias": Piece.of(np.zeros(12, np.float16), "F16"),
    }
)


def test_a_line_for_each_message(tmp_path: Path) -> None:
    log = AuditLog(tmp_path / "audit.jsonl", site="site", director="here:1", experiment="x")
    log.registration("twelve speakers", sample_shape=["16000"])
    for engine_round in (0, 1):
        log.results(TRAIN, engine_round, 80, METRICS, UPDATE)
    log.results(VALIDATE_AGGREGATED, 2, 10, {"accuracy": 0.9}, None)
    log.failure("Traceback\nValueError: no\n", experiment="y")
    lines = list(entries(tmp_path / "audit.jsonl"))
    assert [line["kind"] for line in lines] == ["registration", "tensors", "results", "results", "results", "failure"]
    assert all(line["site"] == "site" and line["director"] == "here:1" and line["time"] for line in lines)
    assert lines[1]["tensors"] == {"head.bias": "F16[12]", "head.weight": "F32[12, 4]"}
    assert lines[3]["digest"] == lines[1]["digest"]
    expected = {
        "round": 2,
        "task": "train",
        "examples": 80,
        "metrics": {"loss": 0.5},
        "tensors": 2,
        "bytes": UPDATE.size,
        "sha256": hashlib.sha256(b"".join(UPDATE.chunks())).hexdigest(),
    }
    assert expected.items() <= lines[3].items()
    expected = {"round": 2, "task": "validate_global", "metrics": {"accuracy": 0.9}, "tensors": 0, "bytes": 0}
    assert expected.items() <= lines[4].items()
    assert (lines[5]["experiment"], lines[5]["text"]) == ("y", "Traceback\nValueError: no\n")
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600
    rows = table(tmp_path / "audit.jsonl", last=3)
    assert len(rows) == 4
    assert [row.split()[-1] for row in rows[1:]] == ["0.5", "0.9", "no"]


def messages(path: Path) -> list[tuple[object, ...]]:
    return [
        (line["call"], line["bytes"], line["sha256"], line.get("repeated")) for line in entries(path) if "call" in line
    ]


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def echo() -> Iterator[str]:
    """The address of a server that answers every call; it keeps what has come."""
    server = grpc.server(futures.ThreadPoolExecutor(2))
    kinds = {
        "Ask": grpc.unary_unary_rpc_method_handler(lambda request, _: request),
        "Fetch": grpc.unary_stream_rpc_method_handler(lambda request, _: iter([request, request])),
        "Send": grpc.stream_unary_rpc_method_handler(lambda parts, _: b"".join(parts)),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("any.Service", kinds),))
    port = server.add_insecure_port("localhost:0")
    server.start()
    yield f"localhost:{port}"
    server.stop(None)


def test_every_call_is_written_down_before_it_is_made(tmp_path: Path, echo: str) -> None:
    path = tmp_path / "audit.jsonl"
    with grpc.insecure_channel(echo) as plain:
        channel = noted(plain, AuditLog(path, site="site"))
        assert channel.unary_unary("/any.Service/Ask")(b"who is there") == b"who is there"
        assert list(channel.unary_stream("/any.Service/Fetch")(b"a model")) == [b"a model"] * 2
        assert channel.stream_unary("/any.Service/Send")(iter([b"first", b"second"])) == b"firstsecond"
        expected = [("Ask", b"who is there"), ("Fetch", b"a model"), ("Send", b"first")]
        assert messages(path) == [(call, len(content), digest(content), None) for call, content in expected]
        assert "call" not in str(table(path, 10))
        assert [row.split()[-1] for row in table(path, 2, every=True)[1:]] == [digest(b"a model"), digest(b"first")]
        missing = noted(plain, AuditLog(tmp_path / "missing" / "audit.jsonl"))
        with pytest.raises(FileNotFoundError):
            missing.unary_unary("/any.Service/Ask")(b"not written down, so not sent")
        with pytest.raises(FileNotFoundError):
            list(missing.unary_stream("/any.Service/Fetch")(b"neither"))
        with pytest.raises(FileNotFoundError):
            missing.stream_unary("/any.Service/Send")(iter([b"nor this"]))
        assert noted(plain, AuditLog(None)) is plain


def test_what_is_said_again_and_again_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for content in (b"a", b"a", b"a", b"b", b"b", b"a"):
        log.message("GetTasks", content)
    found = [("GetTasks", 1, digest(b"a"), None), ("GetTasks", 1, digest(b"b"), 2), ("GetTasks", 1, digest(b"a"), 1)]
    assert messages(path) == found
    for number in range(5):  # with the load of a GPU in it
        log.message(audit.PRESENCE, str(number).encode())
    assert messages(path)[3:] == [(audit.PRESENCE, 1, digest(b"0"), None)]
    monkeypatch.setattr(audit, "PRESENCE_SECONDS", 0.0)
    log.message(audit.PRESENCE, b"5")
    assert messages(path)[4:] == [(audit.PRESENCE, 1, digest(b"5"), 4)]


def test_the_log_is_bounded_and_read_over_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 2000)
    path = tmp_path / "audit.jsonl"
    for number in range(200):  # as envoy and trainer do, from two objects
        AuditLog(path).failure("x" * 100, experiment=str(number))
    files = sorted(each for each in tmp_path.iterdir() if not each.name.endswith(".lock"))
    assert len(files) == audit.BACKUPS + 1
    assert all(file.stat().st_size <= 2000 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    kept = [int(line["experiment"]) for line in entries(path)]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) > 50
    with path.open("a") as file:
        file.write('{"kind": "cut')
    assert [int(line["experiment"]) for line in entries(path)] == kept


def test_several_write_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 5000)
    path = tmp_path / "audit.jsonl"

    def write(name: str) -> None:
        for number in range(50):
            AuditLog(path).failure(f"{name} {number}", experiment="x")

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({line["text"] for line in entries(path)}) == 200


def test_what_cannot_be_written_down_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AuditLog(tmp_path / "missing" / "audit.jsonl").results(TRAIN, 0, 1, METRICS, UPDATE)
    AuditLog(None).results(TRAIN, 0, 1, METRICS, UPDATE)
    assert list(tmp_path.iterdir()) == []


def test_a_line_waits_for_room_and_is_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk, "RETRY_SECONDS", 0.001)
    path, log, tries = tmp_path / "audit.jsonl", AuditLog(tmp_path / "audit.jsonl"), []
    log.failure("before", experiment="x")
    real = audit.os.fdopen

    class Full:
        """A file on a disk that takes ten bytes."""

        def __init__(self, file: object) -> None:
            self.file = file

        def __enter__(self) -> "Full":
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def __getattr__(self, name: str) -> object:
            return getattr(self.file, name)

        def write(self, line: bytes) -> int:
            tries.append(line)
            return int(self.file.write(line[:10]))

    def open_file(number: int, mode: str, **more: object) -> object:
        return Full(real(number, mode, **more)) if mode == "ab" and len(tries) < 3 else real(number, mode, **more)

    monkeypatch.setattr(audit.os, "fdopen", open_file)
    log.failure("after", experiment="x")
    assert len(tries) == 3
    assert [line["text"] for line in entries(path)] == ["before", "after"]
    assert len(path.read_bytes().splitlines()) == 2
