"""The benchmark's own job: both ends of the comparison compute it, and what computes something else is found out."""

import doctest
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HOUSE = Path(__file__).resolve().parents[2]
sys.path.append(str(HOUSE / "benchmarks"))

import algorithms  # noqa: E402
import crowd  # noqa: E402
import data_layer  # noqa: E402
import measure  # noqa: E402
import report  # noqa: E402
import rules_cost  # noqa: E402
import scaling  # noqa: E402
import training_loops  # noqa: E402
from addition import Job, JobError  # noqa: E402
from many import Cost  # noqa: E402
from sizes import shapes  # noqa: E402
from steps import StepError  # noqa: E402

from shard_descriptors.sources.speech_commands import load  # noqa: E402

SHAPES = {"matrix": (100, 1000), "cube": (4, 50, 500), "one": (1,)}


@pytest.mark.end_to_end
@pytest.mark.parametrize("system", ["floor", "ours"])
def test_real_processes_do_the_job(system: str, tmp_path: Path) -> None:
    figures = measure.measure(system, Job(SHAPES, sites=2, rounds=8, folder=str(tmp_path / "run")))
    assert figures.difference < 1e-4
    assert len(figures.rounds) == 6
    assert figures.seconds > 0
    assert set(figures.memory) >= {"server", "site1", "site2"}
    assert min(figures.memory.values()) > 10e6  # no Python process is smaller
    if figures.wire is not None:  # the machine allows namespaces: two sites, once down and once up
        assert 3.5 < figures.copies < 4.8


def averaged(job: Job, sites: list[int], weight_of=None) -> dict[str, np.ndarray]:
    """The job by hand: what these sites' averages come to."""
    model = job.initial_model()
    for round_number in range(1, job.rounds + 1):
        weights = [(weight_of or job.weight)(site) for site in sites]
        steps = [float(job.step(site, round_number)) for site in sites]
        for tensor in model.values():
            tensor += np.float32(np.average(steps, weights=weights))
    return model


def test_the_closed_form_is_what_averaging_by_hand_gives(tmp_path: Path) -> None:
    job = Job(SHAPES, sites=3, rounds=5, folder=str(tmp_path))
    job.checkpoint(averaged(job, [1, 2, 3]))
    assert job.difference() < 1e-5


@pytest.mark.parametrize(
    ("sites", "weight_of"), [([1], None), ([2, 1], lambda site: 1), ([1, 2], lambda site: 30 - 10 * site)]
)
def test_a_lost_update_or_a_wrong_weight_is_found_out(tmp_path: Path, sites: list[int], weight_of) -> None:
    job = Job(SHAPES, sites=2, rounds=3, folder=str(tmp_path))
    job.checkpoint(averaged(job, sites, weight_of))
    with pytest.raises(JobError, match="off by"):
        job.difference()


def test_other_tensors_are_found_out(tmp_path: Path) -> None:
    job = Job(SHAPES, sites=2, rounds=3, folder=str(tmp_path))
    for wrong in ({"one": np.zeros(2, np.float32)}, {"cube": np.zeros((4, 50, 500))}, {"more": np.zeros(1)}):
        with pytest.raises(JobError, match=rf"other tensors than the job's: {next(iter(wrong))}"):
            job.checkpoint(job.initial_model() | wrong)


def test_a_system_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"(?s)logs: .*No module named 'systems.none'"):
        measure.measure("none", Job(SHAPES, sites=2, rounds=3, folder=str(tmp_path / "run")))


def test_sizes_are_those_of_wav2vec2() -> None:
    base, small = shapes("base"), shapes("16")
    assert sum(int(np.prod(shape)) for shape in base.values()) == 94_571_660
    assert len(base) == len(small) == 215
    assert sum(4 * int(np.prod(shape)) for shape in small.values()) == pytest.approx(16e6, rel=0.05)
    for wrong in ("huge", "0", "400"):
        with pytest.raises(ValueError, match=f"size '?{wrong}'?"):
            shapes(wrong)


def test_the_commands_of_the_documentation() -> None:
    told = (HOUSE / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\.venv/bin/python benchmarks (\w+)", told, re.MULTILINE)
    assert set(commands) == {"compare", "scaling", "sites", "clock", "one", "data", "training"}
    for command in commands:
        shown = subprocess.run(
            [sys.executable, "benchmarks", command, "--help"], cwd=HOUSE, capture_output=True, text=True, check=True
        ).stdout
        for option in re.findall(rf"benchmarks {command}\b.*?(--[a-z-]+)", told):
            assert option in shown


def test_the_tables() -> None:
    def run(system: str, seconds: float, megabytes: int, server: int) -> measure.Figures:
        memory = {"server": server * 1_000_000, "site1": 50_000_000, "site2": 60_000_000}
        return measure.Figures(system, megabytes * 1_000_000, 3, 2, [seconds], 8e8, 1.5, memory, 1e-6)

    small = {"floor": run("floor", 0.5, 100, 200), "ours": run("ours", 1.0, 100, 300)}
    large = {"floor": run("floor", 2.0, 200, 400), "ours": run("ours", 3.0, 200, 450)}
    lines = [line.split("|") for line in report.comparison(small, large).splitlines()]
    rows = {cells[1].strip(): cells for cells in lines}
    assert [cell.strip() for cell in rows["… times the floor"][-3:-1]] == ["1.5", "1.0"]
    assert [cell.strip() for cell in rows["round of 200 MB, s"][2:-1]] == [
        "–",
        "–",
        "–",
        "3.00 (3.00–3.00)",
        "2.00 (2.00–2.00)",
    ]
    assert [cell.strip() for cell in rows["… in models"][-3:-1]] == ["4.0", "4.0"]
    assert [cell.strip() for cell in rows["server, models held"][-3:-1]] == ["1.5", "2.0"]
    large["nvflare"] = run("nvflare", 2.5, 200, 900)
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.goals(small, large).splitlines()]
    assert ["round, times the floor", "1.50", "at most 2", "yes"] in lines
    assert ["director, peak MB", "450", "at most 1000", "yes"] in lines
    assert ["NVIDIA FLARE 2.9's time over ours", "0.83", "above 1", "no"] in lines
    assert ["NVIDIA FLARE 2.9's server's memory over ours", "2.00", "above 1", "yes"] in lines


def test_the_sites_table_and_its_plot(tmp_path: Path) -> None:
    calls = {"register": 0.2, "status": 0.4, "results": 0.5, "model": 3.0, "update": 7.0}
    few = Cost(10, [0.1, 0.2, 0.4], 0.02, 150_000_000, 90, calls, [4.0])
    many = Cost(1000, [9.0, 11.0, 10.0], 4.5, 650_000_000, 2090, calls | {"status": 1.5}, [4.0])
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in report.crowd([few, many]).splitlines()]
    assert ["10", "0.20 (0.10–0.40)", "2.0", "150", "90", "0.50", "7.00"] in lines
    assert ["round of 1000 sites, s", "10.00", "at most 30", "yes"] in lines
    assert ["director's CPU, ms a site and round", "4.50", "at most 5", "yes"] in lines
    assert ["director, peak MB", "650", "at most 600", "no"] in lines
    assert ["longest call that waits for nothing, s", "1.50", "at most 1", "no"] in lines
    crowd.plot([few, many], tmp_path / "sites.png")
    assert (tmp_path / "sites.png").stat().st_size > 10_000


@pytest.fixture(scope="module")
def measured(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the data layer costs on a small corpus, in real processes."""
    return data_layer.measure_data(tiny_corpus, tmp_path_factory.mktemp("packed") / "clips")


def test_the_data_layer_is_measured_by_real_processes(measured: dict, tiny_corpus: Path) -> None:
    assert {each["utterances"] for each in measured["listing"]} == {len(load(tiny_corpus).utterances)}
    clips = sum(utterance.split == "train" for utterance in load(tiny_corpus).utterances)
    assert measured["packing"]["clips"] == clips
    assert measured["packing"]["bytes"] == clips * 32_000 + 32
    assert len(measured["epochs"]["epochs"]["packed"]) == len(measured["epochs"]["read"]) == data_layer.EPOCHS
    assert [each["clips"] for each in measured["memory"].values()] == [0, clips, clips]
    for figures in (*measured["listing"], measured["packing"], measured["epochs"]):
        assert 0 < figures["seconds"] < 600


def test_nothing_but_figures_is_left(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(StepError, match=r"(?s)listing failed:.*is not a folder"):
        data_layer.measure_data(tmp_path, tmp_path / "packed")
    assert list(tmp_path.iterdir()) == []


def test_the_table_of_the_data_layer(measured: dict) -> None:
    figures = json.loads(json.dumps(measured)) | {"reading": {"rates": [1.0, 2.0, 3.0]}}
    figures["listing"] = [{"seconds": seconds, "utterances": 7, "peak": 400e6} for seconds in (1.0, 1.25, 3.0)]
    machine, _, _, *lines = report.data(figures).splitlines()
    assert machine.endswith("7 utterances")
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines)}
    assert rows["whole process that lists and shares out, s"] == ["1.25 (1.00–3.00)", "at most 2", "yes"]
    assert rows["… its peak, MB"] == ["400.0 (400.0–400.0)", "at most 300", "no"]
    assert rows["reading in batches of 16, clips/s"] == ["2.00 (1.00–3.00)", "–", ""]


@pytest.mark.slow
def test_three_trainings_of_real_processes_are_equal_and_measured(tiny_corpus: Path) -> None:
    figures = training_loops.measure_training("tiny", str(tiny_corpus), steps=2, threads=1)
    assert figures["losses"]["ours"] == pytest.approx(figures["losses"]["bare"], rel=1e-5)
    assert figures["losses"]["trainer"] == pytest.approx(figures["losses"]["bare"], rel=1e-3)
    assert {name: len(times) for name, times in figures["times"].items() if name != "seconds"} == dict.fromkeys(
        ("bare", "ours", "trainer", "augmented"), training_loops.REPEATS
    )
    assert min(figures["memory"].values()) > 100e6
    lines = report.training(json.loads(json.dumps(figures))).splitlines()
    rows = {cells[0]: cells[1:] for cells in ([cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:])}
    assert rows["this project's peak over the bare loop's"][1] == "at most 1.1"


def test_a_training_that_computes_something_else_has_no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_loops, "_trained", lambda loop, *_, **__: iter([(1.0, 2.0 + (loop == "ours"))]))
    with pytest.raises(StepError, match=r"ours came to a loss of 3\.0, the bare loop to 2\.0"):
        training_loops.losses("tiny", "", "2")


@pytest.mark.parametrize("module", [measure, report, scaling])
def test_examples(module) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_rules_are_held_to_what_they_make_in_memory_before_they_are_timed(tmp_path: Path) -> None:
    measured = rules_cost.measure_rules("0.05", (2, 5), tmp_path / "rules", 1, lambda _: None)
    assert measured["seconds"]["2"].keys() == rules_cost.RULES.keys() - {"krum", "multi-krum"}
    assert measured["seconds"]["5"].keys() == rules_cost.RULES.keys()
    rows = rules_cost.figures(measured)
    assert [row[0] for row in rows] == list(rules_cost.RULES)
    assert rows[0][2] == rows[0][3] == rows[0][5] == "1.00"
    assert {row[0]: row[-1] for row in rows}["krum"] == "at most 2.5"


def test_a_rule_that_makes_something_else_is_not_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = rules_cost.make("0.05", 2, tmp_path / "rules")
    monkeypatch.setattr(rules_cost, "next_state", lambda rule, state, *_: state)
    with pytest.raises(StepError, match="has made something else from files than in memory"):
        rules_cost.once(rules_cost.build("mean"), paths, tmp_path / "rules")


def test_cells_and_what_is_sent_instead_of_what_was_trained() -> None:
    keys = [cell.key for cell in algorithms.cells((0, 1))]
    assert len(keys) == len(set(keys))
    assert not any("2 sites" in key and "krum" in key for key in keys)
    assert {cell.partition for cell in algorithms.cells()} == {*algorithms.PARTITIONS, "5 sites by speaker"}
    model, sent = {"w": np.full(2, 1.0, np.float32)}, {"w": np.full(2, 1.5, np.float32)}
    made = {kind: spoil(sent, model, np.random.default_rng(0))["w"] for kind, spoil in algorithms.GARBAGE.items()}
    assert made["none"].tolist() == [1.5, 1.5]
    assert made["sign flipped"].tolist() == [0.5, 0.5]
    assert made["scaled by 100"].tolist() == [51.0, 51.0]
    assert not np.array_equal(made["random"], sent["w"])


def test_a_spoiled_rule_is_the_rule_with_one_bad_update() -> None:
    state = rules_cost.begin_of({"w": np.zeros(2, np.float32)})
    updates = [{"w": np.full(2, value, np.float32)} for value in (1, 2, 6)]
    for name, expected in (("mean", (100 + 2 + 6) / 3), ("median", 6.0)):
        spoiled = algorithms.Spoiled(rule=rules_cost.build(name), garbage="scaled by 100", seed=0)
        assert rules_cost.next_state(spoiled, state, updates, [1, 1, 1]).model["w"].tolist() == [expected] * 2
    adam = algorithms.Spoiled(rule=rules_cost.build("fedadam"), garbage="none", seed=0)
    for _ in range(2):  # what the rule keeps is kept
        state, plain = (rules_cost.next_state(rule, state, updates, [1, 1, 1]) for rule in (adam, adam.rule))
        np.testing.assert_array_equal(state.model["w"], plain.model["w"])
        assert state.arrays.keys() == {"m/w", "v/w"}


def test_the_table_of_algorithms_has_means_and_spreads() -> None:
    cell = algorithms.Cell("2 sites by speaker", "mean", "none", 0)
    found = {cell.key: {"accuracy": 0.5, "macro_f1": 0.4}}
    assert algorithms.spread(found, cell, (0, 1), "accuracy") == "50.0"
    found[algorithms.replace(cell, seed=1).key] = {"accuracy": 0.6, "macro_f1": 0.4}
    assert algorithms.spread(found, cell, (0, 1), "accuracy") == "55.0 ± 7.1"
    honest, spoiled = algorithms.tables(found, (0, 1))
    assert honest[0][:3] == ["mean", "55.0 ± 7.1", "40.0 ± 0.0"]
    assert set(spoiled[0][1:]) == {"–"}
