"""The operator at a running director: commands, a second director, folders that cannot be read, who has done what."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from processes import HOUSE, PYTHON, ToyFederation
from test_federation import submit
from typer.testing import CliRunner

from federation.director.__main__ import app
from federation.errors import ExperimentFailed, FederationError
from federation.notebook.handle import FederationHandle


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """One federation for this whole file."""
    federation = ToyFederation(tmp_path_factory.mktemp("operator"))
    yield federation
    federation.stop()
    assert "Traceback" not in federation.log("director")


def operate(toys: ToyFederation, *arguments: str) -> str:
    """What a command says, or its error; in this process, since starting Python takes longer than any command."""
    ended = CliRunner().invoke(app, ["--config", str(toys.logs / "director.yaml"), *arguments])
    if ended.exception:
        assert isinstance(ended.exception, FederationError)
        return f"director: {ended.exception}\n"
    return ended.output


def test_cancel_never_deletes_and_everyone_is_named(toys: ToyFederation) -> None:
    precious = submit(toys, "precious", rounds=2)
    list(precious.metrics())
    kept = {path.name: path.read_bytes() for path in (toys.logs / "state" / "precious").iterdir()}
    precious.cancel()
    assert precious.status() == "finished"
    np.testing.assert_allclose(precious.best_weights()["vector"], 3.0)
    assert {path.name: path.read_bytes() for path in (toys.logs / "state" / "precious").iterdir()} == kept
    log = toys.log("director")
    who = r" .*caller=experimenter role=none peer=ipv[46]:.*:\d+\n"
    toys.wait_for("director", r"experiment precious: submitted by experimenter" + who, 1)
    toys.wait_for("director", r"experiment precious: the best model is taken by experimenter" + who, 1)
    assert "precious: cancelled" not in log  # there was nothing to cancel
    # Another one sees nothing of it.
    stranger = FederationHandle("localhost", toys.port, client_id="eve").attach("precious")
    with pytest.raises(FederationError, match="knows no experiment precious of eve"):
        stranger.best_weights()
    with pytest.raises(ExperimentFailed, match="knows no experiment precious of eve"):
        list(stranger.metrics())
    for what in ("the best model", "metrics"):
        toys.wait_for("director", rf"refused: {what} to eve: .* no experiment precious of eve, .*caller=eve", 1)


def test_an_experimenter_removes_what_is_over_and_says_so(toys: ToyFederation) -> None:
    running = submit(toys, "unwanted", sleep_on=1.0, in_round=0, seconds=60)
    toys.wait_for("site1", r"round 1, task train: starts .*experiment=unwanted ")
    with pytest.raises(FederationError, match="unwanted is not over; cancel it first, then remove it"):
        running.remove()
    running.cancel()
    with pytest.raises(ExperimentFailed, match="unwanted was cancelled by experimenter"):
        list(running.metrics())
    with pytest.raises(FederationError, match="knows no experiment unwanted of eve, but none"):
        FederationHandle("localhost", toys.port, client_id="eve").attach("unwanted").remove()
    assert (toys.logs / "state" / "unwanted").is_dir()
    running.remove()
    assert running.status() == "unknown"
    assert not (toys.logs / "state" / "unwanted").exists()
    for told in (
        "refused: remove to experimenter: unwanted is not over", "experiment unwanted: cancelled by experimenter",
        "refused: remove to eve: ", "experiment unwanted: removed by experimenter",
    ):  # fmt: skip
        toys.wait_for("director", rf"{told}.* caller=(experimenter|eve) role=none peer=ipv", 1)


def test_commands_while_an_experiment_runs(toys: ToyFederation) -> None:
    running = submit(toys, "running", rounds=2, sleep_on=1.0, in_round=1, seconds=60)
    waiting = submit(toys, "waiting", rounds=3)
    toys.wait_for("site1", r"round 2, task train: starts .*experiment=running ")
    table = operate(toys, "list").splitlines()
    assert table[0].split() == ["name", "status", "round", "sites", "size", "submitted", "by"]
    row = next(line for line in table if line.startswith("running"))
    assert row.split()[1:4] == ["in_progress", "1/2", "site1,site2"]
    assert row.endswith("  experimenter")
    row = next(line for line in table if line.startswith("waiting"))
    assert "pending, 1 before it" in row
    assert "0/3" in row
    assert operate(toys, "remove", "running") == "director: running is not over; cancel it first, then remove it\n"
    told = "cancelled: {}; what it has reached is kept until it is removed\n"
    assert operate(toys, "cancel", "waiting") == told.format("waiting")
    assert operate(toys, "cancel", "running") == told.format("running")
    for experiment in (running, waiting):
        with pytest.raises(ExperimentFailed, match=f"{experiment.name} was cancelled by operator "):
            list(experiment.metrics())
    np.testing.assert_allclose(running.last_weights()["vector"], 1.5)
    toys.wait_for("director", r"running: cancelled by operator .*role=operator peer=\"process \d+\"", 1)
    assert operate(toys, "remove", "waiting") == "removed: waiting\n"
    assert waiting.status() == "unknown"
    assert "waiting" not in operate(toys, "list")
    toys.wait_for("director", r"experiment waiting: removed by operator ", 1)
    unknown = "director: this director knows no experiment 'never'; `list` shows those that there are\n"
    assert operate(toys, "cancel", "never") == unknown
    list(submit(toys, "waiting", rounds=1).metrics())  # the name is free again


def test_a_second_director_touches_nothing(toys: ToyFederation) -> None:
    experiment = submit(toys, "undisturbed", rounds=3, sleep_on=1.0, in_round=1, seconds=8)
    toys.wait_for("site1", r"round 2, task train: starts .*experiment=undisturbed ")
    for port in (str(toys.port), "0"):  # on the same port or on another one
        second = [*toys.running["director"].args[:-1], port]  # type: ignore[misc]
        toys.start("second", *second, env=toys.env)
        assert toys.wait("second") == 1
        pid = toys.running["director"].pid
        assert f"another director uses the state folder {toys.logs / 'state'}, and nothing was touched: director, " in (
            said := toys.log("second")
        )
        assert f"process {pid} on " in said
        assert "Traceback" not in said
    list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], 4.5)
    assert experiment.status() == "finished"
    # The lock is the process's, and goes with it however it ends.
    toys.kill("director")
    toys.start_director(toys.port)


def test_folders_that_cannot_be_read_are_named_and_skipped(toys: ToyFederation) -> None:
    list(submit(toys, "sound", rounds=1).metrics())
    state = toys.logs / "state"
    toys.running["director"].terminate()
    assert toys.wait("director") == 0
    for name, harm in {
        "newer": lambda path: path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 9})),
        "empty": lambda path: path.write_text(""),
    }.items():
        copy = state / name
        copy.mkdir()
        for path in (state / "sound").iterdir():
            (copy / path.name).write_bytes(path.read_bytes())
        about = json.loads((copy / "experiment.json").read_text()) | {"name": name}
        (copy / "experiment.json").write_text(json.dumps(about))
        harm(copy / "progress.json")
    # Commands do without a director.
    stopped = operate(toys, "list")
    assert "newer" in stopped
    assert "cannot be read: progress.json is of version 9" in stopped
    before = {path: path.read_bytes() for name in ("newer", "empty") for path in (state / name).iterdir()}
    toys.start_director(toys.port)
    for name in ("newer", "empty"):
        toys.wait_for("director", rf"state: folder {name} cannot be read and is skipped: progress\.json.*", 1)
    assert {path: path.read_bytes() for name in ("newer", "empty") for path in (state / name).iterdir()} == before
    federation = FederationHandle("localhost", toys.port)
    np.testing.assert_allclose(federation.attach("sound").last_weights()["vector"], 1.5)
    with pytest.raises(FederationError, match="keeps an experiment named newer that it cannot read"):
        submit(toys, "newer", rounds=1)
    list(submit(toys, "after", rounds=1).metrics())
    assert operate(toys, "prune", "--keep", "1").endswith("that are over stay\n")
    rows = [line.split()[0] for line in operate(toys, "list").splitlines()[1:]]
    assert rows == ["after", "empty", "newer"]
    assert operate(toys, "remove", "newer") == "removed: newer\n"
    assert not (state / "newer").exists()
    assert (state / "empty").exists()


def test_what_the_command_line_says(toys: ToyFederation, tmp_path: Path) -> None:
    start = HOUSE / "director" / "start_director.sh"
    ended = subprocess.run([start, "--help"], capture_output=True, text=True, timeout=60, check=True)
    for word in ("list", "cancel", "remove", "prune", "--config", "--port", "--state"):
        assert word in ended.stdout
    ended = subprocess.run(
        [start, "list", "--config", toys.logs / "director.yaml"], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout == operate(toys, "list")
    (tmp_path / "director.yaml").write_text("settings: {}\n")
    for place in (("--config", tmp_path / "director.yaml", "list"), ("list", "--config", tmp_path / "director.yaml")):
        ended = subprocess.run(
            [PYTHON, "-m", "federation.director", *place], capture_output=True, text=True, timeout=60, cwd=HOUSE
        )
        assert ended.returncode == 1
        assert "names no `state`: this director keeps nothing" in ended.stderr
