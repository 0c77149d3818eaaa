import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from lab.records import Run, follow, versions

COLUMNS = ["round", "site", "task", "metric", "value"]


def test_a_new_run_is_the_latest(tmp_path: Path) -> None:
    first = Run.create(tmp_path / "runs", "first")
    assert first.folder == tmp_path / "runs" / "first"
    assert first.name == "first"
    latest = tmp_path / "runs" / "latest"
    assert latest.resolve() == first.folder
    second = Run.create(tmp_path / "runs")
    assert latest.resolve() == second.folder
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"first", second.name, "latest"}
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest").resolve() == tmp_path / "moved" / second.name, "the link must be relative"


def test_a_name_is_used_once(tmp_path: Path) -> None:
    run = Run.create(tmp_path, "mine")
    run.write_summary(accuracy=0.5)
    with pytest.raises(FileExistsError, match=r"mine.*another name"):
        Run.create(tmp_path, "mine")
    assert run.summary() == {"accuracy": 0.5}


@pytest.mark.parametrize("name", ["../outside", "a/b", "/tmp/x", ".hidden", "latest", "two\nlines", "x" * 61])
def test_a_name_is_that_of_a_folder_within(name: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not a name for"):
        Run.create(tmp_path / "runs", name)
    assert not any(tmp_path.iterdir())


def test_metrics_come_back_as_they_went(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    lines = [
        (1, "007", "train", "loss", 0.1234567890123456),  # a site's name may consist of digits
        (1, "007", "train", "accuracy", 1.0),
        (2, "007", "validate_local", "loss", float("nan")),
        (12, "007", "validate_local", "loss", 1e-30),
    ]
    run.add_metrics(1, "007", "train", {"loss": lines[0][4], "accuracy": lines[1][4]})
    for line in lines[2:]:
        run.add_metric(*line)
    pd.testing.assert_frame_equal(run.metrics(), pd.DataFrame(lines, columns=COLUMNS), check_exact=True)


def test_a_line_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The notebook asks for all metrics again and again: that must not be quadratic."""
    parsed: list[str] = []

    def loads(line: str) -> object:
        parsed.append(line)
        return json.loads(line)

    run = Run.create(tmp_path)
    monkeypatch.setattr("lab.records.json", SimpleNamespace(loads=loads, dumps=json.dumps))
    for number in range(50):
        run.add_metric(number, "north", "train", "loss", float(number))
        assert list(run.metrics()["round"]) == list(range(number + 1))
    assert len(parsed) == 50
    with run.metrics_path.open("a") as file:
        file.write('{"round": 50, "site": "nor')
        file.flush()
        assert len(run.metrics()) == 50, "half a line is not there yet"
        file.write('th", "task": "train", "metric": "loss", "value": 1.0}\n')
        file.flush()
        assert list(run.metrics()["round"]) == list(range(51))
    table = run.metrics()
    table["value"] = 0.0
    assert run.metrics()["value"].sum() > 0, "what is handed out is the caller's own"
    pd.testing.assert_frame_equal(pickle.loads(pickle.dumps(run)).metrics(), run.metrics())


@pytest.mark.parametrize("touched", [False, True])
def test_no_metrics_yet_is_an_empty_table(tmp_path: Path, touched: bool) -> None:
    run = Run.create(tmp_path)
    if touched:
        run.metrics_path.touch()
    assert list(run.metrics().columns) == COLUMNS
    assert run.metrics().empty


def test_two_processes_append_whole_lines(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    code = (
        "import sys; from pathlib import Path; from lab.records import Run\n"
        "for n in range(400): Run(Path(sys.argv[1])).add_metric(n, sys.argv[2], 'train', 'loss', n / 3)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", code, str(run.folder), site]) for site in ("envoy", "envoy_two")]
    assert [writer.wait() for writer in writers] == [0, 0]
    metrics = run.metrics()
    for site in ("envoy", "envoy_two"):
        own = metrics[metrics["site"] == site]
        assert list(own["round"]) == list(range(400))
        assert np.allclose(own["value"], own["round"] / 3)


def test_the_config_comes_with_versions(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.write_config(config={"training": {"rounds": 3}}, folder=str(tmp_path))
    written = json.loads((run.folder / "config.json").read_text())
    assert written["config"]["training"]["rounds"] == 3
    assert written["folder"] == str(tmp_path)
    assert written["versions"] == versions()
    assert {"python", "torch", "transformers"} <= written["versions"].keys()
    assert {path.name for path in run.folder.iterdir()} == {"config.json"}


def new_lines(lines: Iterator[dict[str, object]]) -> list[dict[str, object]]:
    """Whatever is new, up to the first sign that there is no more."""
    return list(iter(lambda: next(lines), {}))


def test_follow_tells_only_of_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"round": 1}\n')
    lines = follow(path)
    assert new_lines(lines) == [{"round": 1}]
    assert new_lines(lines) == []
    with path.open("a") as file:
        for piece in ('{"rou', 'nd": 2}'):
            file.write(piece)
            file.flush()
            assert new_lines(lines) == []
        file.write('\n{"round": 3}\n{"ro')
        file.flush()
        assert new_lines(lines) == [{"round": 2}, {"round": 3}]
        file.write('und": 4}\n')
        file.flush()
    assert new_lines(lines) == [{"round": 4}]
