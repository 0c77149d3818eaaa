"""The main job as a person runs it: `make demo`, its figures, its record, and what happens when it is disturbed."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import psutil
import pytest
from processes import HOUSE, PYTHON
from transformers import AutoModelForAudioClassification

from kws.metrics import METRICS
from lab.predictions import Predictions
from lab.session import figures
from shard_descriptors.sources.speech_commands import load

SUMMARY_KEYS = {
    *("accuracy", "macro_f1", "pooled_accuracy", "local_accuracies", "rounds", "sites", "seconds", "corpus"),
}


class Demo:
    """A running `make demo` (or `kws demo`) and what is seen of it from outside."""

    def __init__(self, command: list[str], **environment: str) -> None:
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            command, cwd=HOUSE, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True,
        )  # fmt: skip
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.peaks: dict[str, int] = {}
        self.seen: set[psutil.Process] = set()
        self._threads = [
            threading.Thread(target=self._read, args=(self.process.stdout, self.lines)),
            threading.Thread(target=self._read, args=(self.process.stderr, self.errors)),
            threading.Thread(target=self._watch),
        ]
        for thread in self._threads:
            thread.start()

    @property
    def output(self) -> str:
        return "".join(self.lines)

    @property
    def error(self) -> str:
        return "".join(self.errors)

    def wait_for(self, pattern: str, seconds: float = 120) -> re.Match[str]:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and self.process.poll() is None:
            if found := re.search(pattern, self.output):
                return found
            time.sleep(0.1)
        raise AssertionError(f"the demo has not said {pattern!r}:\n{self.output}\n{self.error}")

    def wait(self, seconds: float) -> int:
        status = self.process.wait(seconds)
        for thread in self._threads:
            thread.join(30)
        return status

    def children(self, part: str) -> list[psutil.Process]:
        return [each for each in self.seen if each.is_running() and part in " ".join(_command(each))]

    def assert_nothing_is_left(self) -> None:
        psutil.wait_procs(self.seen, timeout=5)
        assert [_command(each) for each in self.seen if each.is_running()] == []
        if port := re.search(r"director on localhost:(\d+)", self.output):
            with socket.socket() as probe:
                assert probe.connect_ex(("localhost", int(port[1]))) != 0, "somebody still listens"
        run = Path(re.search(r"^run +(.+)$", self.output, re.MULTILINE)[1])
        assert not (run / "tmp").exists()

    @staticmethod
    def _read(stream, lines: list[str]) -> None:
        lines.extend(iter(stream.readline, ""))

    def _watch(self) -> None:
        """Remember every process of the demo and the peak memory of each site and of the director, in bytes."""
        while self.process.poll() is None:
            memory: dict[str, int] = {}
            try:
                everyone = psutil.Process(self.process.pid).children(recursive=True)
            except psutil.NoSuchProcess:
                break
            self.seen.update(everyone)
            for each in everyone:
                command = " ".join(_command(each))
                if "federation.director" in command:
                    roles = [("director", each)]
                elif "federation.envoy" in command:
                    name = re.search(r"([a-z_]+)/envoy.yaml", command)[1]
                    roles = [(name, each), *((name, child) for child in _children(each))]
                else:
                    continue
                for role, process in roles:
                    memory[role] = memory.get(role, 0) + _resident(process)
            for role, resident in memory.items():
                self.peaks[role] = max(resident, self.peaks.get(role, 0))
            time.sleep(0.5)


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.Error:
        return 0


@pytest.fixture
def short(tiny_corpus: Path) -> Iterator[Demo]:
    """A demo on a tiny corpus that would go on for long."""
    demo = Demo([str(PYTHON), "-m", "lab", "demo", "--change", "training.rounds=500"], DATA=str(tiny_corpus))
    yield demo
    if demo.process.poll() is None:
        demo.process.kill()
        demo.wait(10)


def check_record(demo: Demo) -> dict:
    """The run directory of a finished demo; returns its summary."""
    last = demo.lines[-1].split()
    assert last[0] == "summary"
    summary_path = Path(last[-1])
    run = summary_path.parent
    summary = json.loads(summary_path.read_text())
    assert summary.keys() >= SUMMARY_KEYS
    assert (HOUSE / "runs" / "latest").resolve() == run
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = {(line["round"], line["site"]) for line in lines if line["task"] == "train"}
    assert trained >= {(number, site) for number in range(1, summary["rounds"] + 1) for site in summary["sites"]}
    scores = {line["metric"] for line in lines if line["task"].startswith("validate") and line["site"] != "aggregator"}
    assert scores == METRICS.keys(), "a site's counts stay with the director"
    average = {line["metric"]: line["value"] for line in lines if _of_the_average(line, summary["validation"]["round"])}
    assert average.keys() > METRICS.keys()
    assert average["accuracy"] == pytest.approx(
        sum(value for name, value in average.items() if name.startswith("sum/right/"))
        / sum(value for name, value in average.items() if name.startswith("sum/true/"))
    )
    predictions = Predictions.load(run / "predictions.parquet")
    again = figures(predictions, summary["best_metric"], summary["sites"])
    assert again == {name: summary[name] for name in again}, "every figure can be computed again from the predictions"
    config = json.loads((run / "config.json").read_text())
    assert config["config"]["training"]["rounds"] == summary["rounds"]
    assert config["versions"]["openfl"] == "1.6"
    assert config["data"]["digest"]
    assert summary["budget"].keys() == summary["test"].keys()
    assert all(each["rounds"] == summary["rounds"] for each in summary["budget"].values())
    assert all(each["seconds"] > 0 and each["MB_up"] > 0 for each in summary["work"].values())
    notebook = nbformat.read(run / "keyword_spotting.ipynb", as_version=4)
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert AutoModelForAudioClassification.from_pretrained(run / "model").config.id2label[10] == "_silence_"
    for plot in ("curves", "confusion", "calibration", "comparison", "speakers", "learning", "runs"):
        assert (run / f"{plot}.png").read_bytes().startswith(b"\x89PNG")
    demo.assert_nothing_is_left()
    return summary


def _of_the_average(line: dict, round_number: int) -> bool:
    return (line["round"], line["site"], line["task"]) == (round_number, "aggregator", "validate_global")


@pytest.mark.timeout(1500)
def test_the_main_job_on_real_recordings(real_corpus: Path) -> None:
    demo = Demo(["make", "--no-print-directory", "demo"], DATA=os.path.relpath(real_corpus, HOUSE))
    assert demo.wait(1400) == 0, demo.error
    summary = check_record(demo)
    print(demo.output[demo.output.index("Final models") :])
    print({role: f"{peak / 2**20:.0f} MB" for role, peak in demo.peaks.items()})
    assert summary["accuracy"] >= 0.78
    assert summary["accuracy"] >= 0.95 * summary["pooled_accuracy"]
    assert summary["local_accuracies"].keys() == {"envoy", "envoy_two"}
    assert "speakers that no site trained on" in demo.output, "which has been counted"
    assert demo.peaks["director"] < 1.0e9
    assert demo.peaks["envoy"] < 1.5e9
    assert demo.peaks["envoy_two"] < 1.5e9


@pytest.mark.timeout(700)
def test_the_main_job_on_synthetic_speech_without_baselines() -> None:
    environment = {"DATA": "", "KWS_CACHE": ""}  # the user's own cache, where the corpus may lie already
    demo = Demo(["make", "--no-print-directory", "demo", "BASELINES=0"], **environment)
    assert demo.wait(600) == 0, demo.error
    summary = check_record(demo)
    assert summary["corpus"] == "synthetic"
    assert "synthetic speech" in demo.output
    assert summary["accuracy"] >= 0.75
    assert summary["pooled_accuracy"] is None


@pytest.mark.parametrize("victim", ["federation.director", "envoy_two/envoy.yaml", "ipykernel_launcher"])
def test_the_death_of_one_process_stops_all(short: Demo, victim: str) -> None:
    short.wait_for(r"round +1 +envoy +train")
    short.children(victim)[0].kill()
    assert short.wait(60) == 1
    name = {"federation.director": "director", "envoy_two/envoy.yaml": "envoy_two", "ipykernel_launcher": "kernel"}
    assert re.search(rf"The demo failed\..*{name[victim]}", short.error, re.DOTALL), short.error
    if "kernel" not in victim:
        assert "was ended by SIGKILL; the last lines of" in short.error
    assert "Traceback" not in short.error
    short.assert_nothing_is_left()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_all(short: Demo, number: signal.Signals) -> None:
    short.wait_for(r"round +1 +envoy +train")
    short.process.send_signal(number)
    assert short.wait(60) == 130
    assert "Stopped; every process has ended" in short.error
    assert "Traceback" not in short.error
    short.assert_nothing_is_left()


def test_a_killed_demo_takes_its_processes_along(short: Demo) -> None:
    short.wait_for(r"round +1 +envoy +train")
    short.process.kill()
    short.wait(60)
    _, alive = psutil.wait_procs(short.seen, timeout=20)
    assert [_command(each) for each in alive] == []


def test_errors_arrive_where_the_person_is_looking(tiny_corpus: Path) -> None:
    offline = {"DATA": str(tiny_corpus), "HF_HUB_OFFLINE": "1"}
    demo = Demo([str(PYTHON), "-m", "lab", "demo", "--change", "model.name=facebook/wav2vec2-base"], **offline)
    assert demo.wait(120) == 1
    assert "cannot be had" in demo.error
    assert "'tiny'" in demo.error
    demo.assert_nothing_is_left()


def test_a_broken_recording_is_named_in_the_end(tiny_corpus: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    shutil.copytree(tiny_corpus, corpus)
    broken = next(each for each in load(corpus).utterances if each.split == "train" and each.speaker)
    Path(broken.path).write_bytes(b"RIFF, but not really")
    demo = Demo([str(PYTHON), "-m", "lab", "demo", "--change", "training.rounds=1"], DATA=str(corpus))
    assert demo.wait(120) == 1
    assert "cannot be read as audio" in demo.error  # which recording, stays at the site, in its log
    assert broken.path not in demo.error
    logs = Path(demo.error.split("All logs: ")[1].splitlines()[0])
    assert any(f"{broken.path} cannot be read as audio" in log.read_text() for log in logs.glob("*.log"))
    assert re.search(r"site envoy(_two)?, round 1, task train", demo.error)
    demo.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("arguments", "data", "words"),
    [
        (["--change", "training.rounds=0"], None, "training.rounds is 0; allowed: a whole number, at least 1"),
        (["--change", "training.round=1"], None, "there is no training.round; allowed here: rounds"),
        ([], "no/such/folder", "which is not a folder"),
        ([], "tests", "must hold the unpacked archives"),
    ],
)
def test_wrong_input_is_refused_at_once(tiny_corpus: Path, arguments: list[str], data: str | None, words: str) -> None:
    demo = Demo([str(PYTHON), "-m", "lab", "demo", *arguments], DATA=data or str(tiny_corpus))
    assert demo.wait(60) in (1, 2)
    assert words in demo.error
    assert "Traceback" not in demo.error
