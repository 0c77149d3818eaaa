"""What README tells a person to do in three terminals and a notebook, and the third site."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
import yaml
from processes import HOUSE, PYTHON, Processes

from federation.notebook.handle import FederationHandle
from lab.submission import shard_table, wait_for_shards

README = (HOUSE / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """A copy of the house whose YAML files a test may change."""
    copy = tmp_path / "house"
    copy.mkdir()
    for name in ("director", "envoy", "envoy_two", "workspace"):
        shutil.copytree(HOUSE / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    (copy / ".venv").symlink_to(HOUSE / ".venv")
    return copy


def test_readme_names_the_commands_that_are_tested() -> None:
    for command in (
        "make demo",
        "make test",
        "director/start_director.sh",
        "envoy/start_envoy.sh",
        "envoy_two/start_envoy.sh",
        ".venv/bin/jupyter lab workspace/keyword_spotting.ipynb",
        ".venv/bin/kws add-site envoy_three",
        ".venv/bin/kws demo --help",
        ".venv/bin/kws corpus",
        ".venv/bin/kws partition --scheme speakers --shards 10",
    ):
        assert command in README, command


@pytest.mark.parametrize(
    "command", [".venv/bin/kws demo --help", "director/start_director.sh --help", "envoy/start_envoy.sh --help"]
)
def test_help(command: str) -> None:
    shown = subprocess.run(command, shell=True, cwd=HOUSE, capture_output=True, text=True, check=True).stdout
    assert "usage" in shown.lower()


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (".venv/bin/kws corpus", "This is synthetic speech, not SUPERB KS"),
        (".venv/bin/kws partition --scheme speakers --shards 10", "torn speakers   0 of 20"),
    ],
)
def test_what_a_corpus_holds_and_who_would_hold_what(command: str, shown: str, tiny_corpus: Path) -> None:
    environment = os.environ | {"DATA": str(tiny_corpus)}
    done = subprocess.run(command, shell=True, cwd=HOUSE, env=environment, capture_output=True, text=True, check=True)
    assert shown in done.stdout


def test_three_terminals_and_a_notebook_with_a_third_site(
    house: Path, processes: Processes, tiny_corpus: Path, tmp_path: Path
) -> None:
    from lab.sites import add_site

    told = add_site("envoy_three", house)
    for other in re.findall(r"(\w+)/envoy\.yaml", told.split("change in")[1]):
        path = house / other / "envoy.yaml"
        path.write_text(re.sub(r"^( +of: )2", r"\g<1>3", path.read_text(), flags=re.MULTILINE))
    assert yaml.safe_load((house / "envoy" / "envoy.yaml").read_text())["shard_descriptor"]["params"]["of"] == 3

    # From another folder, with arguments passed on, as three people would.
    environment = {"DATA": str(tiny_corpus)}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    processes.start("director", house / "director" / "start_director.sh", "--port", "0", env=environment, cwd=elsewhere)
    port = processes.wait_for("director", r"listening on .*:(\d+)")[1]
    for site in ("envoy", "envoy_two", "envoy_three"):
        script = house / site / "start_envoy.sh"
        processes.start(site, script, "--director-port", port, "--cpu-threads", "1", env=environment, cwd=elsewhere)
        if site == "envoy":
            assert processes.wait_for(site, "no CUDA device: training on the CPU with 1 thread")

    shards = wait_for_shards(FederationHandle("localhost", int(port)), 60)
    table = shard_table(shards)
    assert list(table["shard"]) == ["1 of 3", "3 of 3", "2 of 3"]  # envoy, envoy_three, envoy_two
    assert set(table["devices"]) == {"cpu"}
    assert len({shard["partition"] for shard in shards.values()}) == 1

    executed = tmp_path / "executed.ipynb"
    run = tmp_path / "run"
    run.mkdir()
    environment |= {"KWS_DIRECTOR": f"localhost:{port}", "KWS_RUN": str(run), "KWS_BASELINES": "0"}
    environment |= {"KWS_CHANGES": "training.rounds=2"}
    notebook = house / "workspace" / "keyword_spotting.ipynb"
    processes.start("notebook", PYTHON, "-m", "lab.notebook", notebook, executed, env=environment)
    assert processes.wait("notebook", 200) == 0, processes.log("notebook")
    cells = nbformat.read(executed, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    assert yaml.safe_load((run / "summary.json").read_text())["sites"] == ["envoy", "envoy_three", "envoy_two"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shard": 3}, "shard 3 of 2 does not exist"),
        ({"of": 500, "shard": 400}, "cannot fill 500 shards"),
        ({"data_path": "/no/such/corpus"}, "which is not a folder"),
        ({"data_paht": "x"}, "data_paht"),
    ],
)
def test_a_shard_that_cannot_be_is_an_error_at_the_start(
    house: Path, processes: Processes, tiny_corpus: Path, change: dict, words: str
) -> None:
    path = house / "envoy" / "envoy.yaml"
    settings = yaml.safe_load(path.read_text())
    settings["shard_descriptor"]["params"] |= {"data_path": str(tiny_corpus)} | change
    path.write_text(yaml.safe_dump(settings))
    processes.start("envoy", house / "envoy" / "start_envoy.sh")
    assert processes.wait("envoy", 60) == 1
    assert words in processes.log("envoy")
    assert "Traceback" not in processes.log("envoy")


def test_sites_that_disagree_are_told_in_the_notebook(
    house: Path, processes: Processes, tiny_corpus: Path, tmp_path: Path
) -> None:
    from federation.errors import FederationError

    processes.start("director", house / "director" / "start_director.sh", "--port", "0")
    port = int(processes.wait_for("director", r"listening on .*:(\d+)")[1])
    for site in ("envoy", "envoy_two"):
        if site == "envoy_two":
            path = house / site / "envoy.yaml"
            path.write_text(path.read_text().replace("shard: 2", "shard: 1"))
        script = house / site / "start_envoy.sh"
        processes.start(site, script, "--director-port", str(port), env={"DATA": str(tiny_corpus)})
    with pytest.raises(FederationError, match=r"do not share out one corpus .*envoy_two: shard 1 of 2"):
        wait_for_shards(FederationHandle("localhost", port), 60)
