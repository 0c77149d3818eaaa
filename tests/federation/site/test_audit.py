"""The log of what left a site: a line for each message, and bounded."""

import stat
from pathlib import Path

import numpy as np
import pytest
from openfl.utilities import TensorKey

from federation.schedule import TRAIN, VALIDATE_AGGREGATED
from federation.site import audit
from federation.site.audit import AuditLog, entries, table
from federation.wire.models import Packed, Piece


def key(name: str, report: bool = False) -> TensorKey:
    return TensorKey(name, "site", 0, report, ("metric",) if report else ("trained",))


METRICS = {key("loss", report=True): np.array(0.5)}
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
    log.results(VALIDATE_AGGREGATED, 2, 10, {key("accuracy", report=True): np.array(0.9)}, None)
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
    }
    assert expected.items() <= lines[3].items()
    expected = {"round": 2, "task": "validate_global", "metrics": {"accuracy": 0.9}, "tensors": 0, "bytes": 0}
    assert expected.items() <= lines[4].items()
    assert (lines[5]["experiment"], lines[5]["text"]) == ("y", "Traceback\nValueError: no\n")
    assert stat.S_IMODE((tmp_path / "audit.jsonl").stat().st_mode) == 0o600
    rows = table(tmp_path / "audit.jsonl", last=3)
    assert len(rows) == 4
    assert [row.split()[-1] for row in rows[1:]] == ["0.5", "0.9", "no"]


def test_the_log_is_bounded_and_read_over_its_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "MAX_BYTES", 2000)
    path = tmp_path / "audit.jsonl"
    for number in range(200):  # as envoy and trainer do, from two objects
        AuditLog(path).failure("x" * 100, experiment=str(number))
    files = sorted(tmp_path.iterdir())
    assert len(files) == audit.BACKUPS + 1
    assert all(file.stat().st_size <= 2000 for file in files)
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    kept = [int(line["experiment"]) for line in entries(path)]
    assert kept == list(range(200 - len(kept), 200))
    assert len(kept) > 50
    with path.open("a") as file:
        file.write('{"kind": "cut')
    assert [int(line["experiment"]) for line in entries(path)] == kept


def test_what_cannot_be_written_down_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        AuditLog(tmp_path / "missing" / "audit.jsonl").results(TRAIN, 0, 1, METRICS, UPDATE)
    AuditLog(None).results(TRAIN, 0, 1, METRICS, UPDATE)
    assert list(tmp_path.iterdir()) == []
