"""The deployment case: two sites with folders of their own, three labels, 8 kHz, and the notebook made for it."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
from processes import HOUSE, PYTHON, Processes, write_site

from federation.errors import FederationError
from federation.notebook.handle import FederationHandle
from lab.submission import shard_table, wait_for_shards
from shard_descriptors.sources.speech_commands import load

TEMPLATE = "shard_descriptors.descriptor.SpeechShardDescriptor"
WORDS = ("yes", "no", "stop")


@pytest.fixture
def folders(tiny_corpus: Path, tmp_path: Path) -> list[Path]:
    """What two sites have recorded: `<word>/<speaker>_nohash_<n>.wav`, of different speakers."""
    rows = [u for u in load(tiny_corpus).utterances if u.split != "test" and u.column("word") in WORDS]
    speakers = sorted({u.speaker for u in rows if u.speaker})
    folders = [tmp_path / "first", tmp_path / "second"]
    for row in rows:
        target = folders[speakers.index(str(row.speaker)) % 2] / row.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(row.path, target)
    return folders


def settings(folder: Path, **changes: object) -> dict[str, object]:
    given = {
        "source": "folder",
        "data_path": str(folder),
        "partition": "own",
        "labels": list(WORDS),
        "sample_rate": 8000,
    }
    return given | changes


def start(processes: Processes, tmp_path: Path, *sites: dict[str, object]) -> int:
    processes.start("director", HOUSE / "director" / "start_director.sh", "--port", "0", "--state", tmp_path / "state")
    port = int(processes.wait_for("director", r"listening on .*:(\d+)")[1])
    for number, params in enumerate(sites):
        path = write_site(tmp_path, f"site_{number}", port, TEMPLATE, params)
        processes.start(f"site_{number}", PYTHON, "-m", "federation.envoy", "--config", path)
    return port


def test_two_sites_with_recordings_of_their_own(folders: list[Path], processes: Processes, tmp_path: Path) -> None:
    port = start(processes, tmp_path, *map(settings, folders))
    shards = wait_for_shards(FederationHandle("localhost", port), sites=2, timeout=60)
    assert list(shard_table(shards)["shard"]) == ["own", "own"]

    executed, run = tmp_path / "executed.ipynb", tmp_path / "run"
    run.mkdir()
    changes = "training.rounds=2\ntraining.batch_size=8"
    environment = {"KWS_DIRECTOR": f"localhost:{port}", "KWS_RUN": str(run), "KWS_CHANGES": changes}
    notebook = HOUSE / "workspace" / "own_recordings.ipynb"
    processes.start("notebook", PYTHON, "-m", "lab.notebook", notebook, executed, env=environment)
    assert processes.wait("notebook", 200) == 0, processes.log("notebook")
    cells = nbformat.read(executed, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["accuracy"], summary["test_utterances"]) == (None, 0)
    assert 0 <= summary["validation"]["accuracy"] <= 1
    config = json.loads((run / "model" / "config.json").read_text())
    assert [config["id2label"][str(number)] for number in range(3)] == list(WORDS)
    assert json.loads((run / "model" / "preprocessor_config.json").read_text())["sampling_rate"] == 8000

    # The other notebook needs a common corpus, and says so before it trains.
    environment["KWS_RUN"] = str(tmp_path / "other")
    (tmp_path / "other").mkdir()
    notebook = HOUSE / "workspace" / "keyword_spotting.ipynb"
    processes.start("other", PYTHON, "-m", "lab.notebook", notebook, executed, env=environment)
    assert processes.wait("other", 200) == 1
    assert "Open own_recordings.ipynb instead" in processes.log("other")
    assert not (tmp_path / "other" / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": ["no", "yes", "stop"]}, "clips differ in labels: site_0 has .* give the same list to all"),
        ({"sample_rate": 16_000}, "clips differ in sample_rate: site_0 has 8000, site_1 has 16000"),
        ({"partition": "speakers"}, "site_1 hold shards of a common corpus, the other sites recordings of their own"),
    ],
)
def test_sites_that_do_not_fit_together_are_told_in_the_notebook(
    folders: list[Path], processes: Processes, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    port = start(processes, tmp_path, settings(folders[0]), settings(folders[1], **change))
    with pytest.raises(FederationError, match=words):
        wait_for_shards(FederationHandle("localhost", port), sites=2, timeout=60)
