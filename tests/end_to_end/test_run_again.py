"""A run again from its record, with real processes: the same curves."""

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from processes import HOUSE, PYTHON

from lab.records import Run
from lab.tables import FEDERATED, validation


def kws(*arguments: object, **environment: str) -> str:
    """The output of a command that has to succeed."""
    command = [str(PYTHON), "-m", "lab", *map(str, arguments)]
    done = subprocess.run(command, cwd=HOUSE, env=os.environ | environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def names() -> Iterator[tuple[str, str]]:
    """Two runs that are gone afterwards."""
    given = (f"test-{uuid.uuid4().hex[:8]}", f"test-{uuid.uuid4().hex[:8]}")
    yield given
    for name in given:
        shutil.rmtree(HOUSE / "runs" / name, ignore_errors=True)


def measured(run: Run) -> pd.Series:
    """All metrics but how long it took, by where they belong."""
    lines = run.metrics()
    lines = lines[~lines["metric"].isin(["seconds", "samples_per_second"])]
    return lines.set_index(["round", "site", "task", "metric"])["value"].sort_index()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_record_is_repeated_with_the_same_curves(tiny_corpus: Path, names: tuple[str, str]) -> None:
    first, again = (Run(HOUSE / "runs" / name) for name in names)
    asked = ("--change", "training.rounds=2", "--change", "training.seed=9", "--seeds", "3,4", "--simulate", "1")
    told = kws("demo", *asked, "--no-baselines", "--name", first.name, DATA=str(tiny_corpus))
    assert "over 2 seeds" in told
    assert "seed 4  round   2  envoy            train " in told
    assert "What it cost each site" in told
    record = first.config()
    assert record["config"]["training"]["seed"] == 3
    assert record["data"]["path"] == str(tiny_corpus)
    assert set(record["shards"]) == {"envoy", "envoy_two"}
    summary = first.summary()
    assert set(summary["seeds"]) == {"3", "4"}
    assert set(summary["work"]) == {"envoy", "envoy_two"}
    assert summary["budget"]["federated"]["epochs"] == pytest.approx(2.0)
    assert validation(first.within("simulated").metrics(), FEDERATED, "loss").size == 2
    assert (first.folder / "model" / "README.md").is_file()

    told = kws("run", first.config_path, "--name", again.name, DATA="")
    assert "nothing that the record knows of" in told
    assert again.config()["config"] == record["config"]
    assert again.config()["shards"] == record["shards"]
    for one, other in ((first, again), (first.of_seed(4), Run(again.folder / f"{again.name}-seed4"))):
        pd.testing.assert_series_equal(measured(one), measured(other), rtol=1e-6)
    assert again.summary()["test"]["federated"] == pytest.approx(summary["test"]["federated"])
    assert not measured(first).equals(measured(first.of_seed(4))), "another seed is another training"
