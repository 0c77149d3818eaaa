"""What is shown while a federation works: lines in the terminal, and drawings in the notebook."""

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from answers import answered

from federation.notebook.handle import Metric as Measured
from kws.config import ExperimentConfig
from kws.metrics import METRICS, Metric
from lab import demo, session, submission
from lab.records import Run
from rules.scores import Score

SCORES = answered(np.array([0, 0, 0, 1]), np.array([1, 1, 0, 1], bool))


def printed(run: Run, capsys: pytest.CaptureFixture[str], label: str = "") -> list[str]:
    """The lines of the demo for what is in the run."""

    async def watch() -> None:
        progress = asyncio.create_task(demo._show_progress(run, label))
        await asyncio.sleep(0.3)
        progress.cancel()
        with suppress(asyncio.CancelledError):
            await progress

    asyncio.run(watch())
    return capsys.readouterr().out.splitlines()


def fill(run: Run) -> None:
    run.add_metric(1, "north", "round", "took_part", 1.0)
    run.add_metric(1, "south", "round", "took_part", 0.0)
    run.add_metrics(1, "north", "train", {"loss": 0.5, "accuracy": 0.25, "seconds": 2.0})
    run.add_metrics(1, "north", "validate_local", SCORES.scalars())
    run.add_metrics(1, "aggregator", "validate_global", SCORES.sums() | SCORES.scalars())


def test_a_line_for_each_site_and_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tmp_path)
    fill(run)
    values = {name: f"{value:.3f}" for name, value in SCORES.scalars().items()}
    scores = f"loss {values['loss']}  accuracy 0.750  macro_f1 {values['macro_f1']}"
    assert printed(run, capsys) == [
        "round   1  south            left out",
        "round   1  north            train            loss 0.500  accuracy 0.250",
        f"round   1  north            validate_local   {scores}",
        f"round   1  aggregator       validate_global  {scores}",
    ]


def test_several_seeds_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run.create(tmp_path, "mine")
    assert demo.labelled(run, []) == demo.labelled(run, [5]) == {"": run}
    both = demo.labelled(run, [5, 6])
    assert list(both.values()) == [trial.run for trial in session.trials(ExperimentConfig(), run, [5, 6])]
    fill(both["seed 6  "])
    lines = printed(both["seed 6  "], capsys, "seed 6  ")
    assert lines
    assert all(line.startswith("seed 6  round   1") for line in lines)


def test_a_metric_of_one_entry_is_in_the_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recall = Metric("balanced accuracy", Score("mean", {"right": 1}, {"true": 1}))
    monkeypatch.setitem(METRICS, "balanced_accuracy", recall)
    run = Run.create(tmp_path)
    fill(run)
    lines = printed(run, capsys)
    assert [line.endswith("balanced_accuracy 0.833") for line in lines] == [False, False, True, True]


class Finished:
    """An experiment whose metrics are all there: two sites, some rounds."""

    def __init__(self, rounds: int) -> None:
        self.rounds = rounds

    def metrics(self) -> Iterator[Measured]:
        for number in range(1, self.rounds + 1):
            for site in ("north", "south"):
                yield Measured(number, site, "train", "loss", 1 / number)
                for metric, value in SCORES.scalars().items():
                    yield Measured(number, site, "validate_local", metric, value)
            for metric, value in (SCORES.sums() | SCORES.scalars()).items():
                yield Measured(number, "aggregator", "validate_global", metric, value)


def test_the_notebook_draws_once_a_round(tmp_path: Path) -> None:
    run, drawn = Run.create(tmp_path), list[pd.DataFrame]()
    submission.record(Finished(5), run, drawn.append, every=0)
    assert [table["round"].max() for table in drawn] == [1, 2, 3, 4, 5, 5]
    of_the_average = [table[(table["site"] == "aggregator") & (table["round"] == 3)] for table in drawn]
    assert set(of_the_average[2]["metric"]) >= METRICS.keys(), "when all is said of the round"
    assert len(drawn[-1]) == len(run.metrics()) == 5 * (2 + 2 * len(METRICS) + len(SCORES.sums()) + len(METRICS))


def test_fast_rounds_are_not_held_up_by_their_plot(tmp_path: Path) -> None:
    drawn = list[int]()
    submission.record(Finished(200), Run.create(tmp_path), lambda table: drawn.append(len(table)), every=3600)
    assert len(drawn) == 2, "the first round, and the end"
