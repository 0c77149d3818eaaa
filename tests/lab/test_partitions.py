"""`kws partition`: what a person reads before a partition is used, and the same as JSON."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from lab import HOUSE, partitions
from lab.cli import app
from shard_descriptors.corpus import CorpusError
from shard_descriptors.partition.contract import assign, digest
from shard_descriptors.partition.schemes import Dirichlet, Iid, Speakers, scheme_of
from shard_descriptors.sources.speech_commands import load


def kws(*arguments: str | Path, corpus: Path | None = None) -> str:
    """What the command prints; it must succeed."""
    done = CliRunner().invoke(app, ["partition", *map(str, arguments)], env={"DATA": str(corpus or "")})
    assert done.exit_code == 0, done.output
    return done.stdout


def refused(*arguments: str | Path, corpus: Path | None = None) -> str:
    """What the command says when it fails, in one line and without a traceback."""
    done = CliRunner().invoke(app, ["partition", *map(str, arguments)], env={"DATA": str(corpus or "")})
    assert done.exit_code == 2
    assert done.stderr.startswith("kws: ")
    assert "Traceback" not in done.stderr
    return done.stderr


def test_text(tiny_corpus: Path) -> None:
    shown = kws("--shards", "3", "--seed", "7", corpus=tiny_corpus)
    rows = load(tiny_corpus).utterances
    assert digest(rows, assign(rows, Speakers(), 3, 7)) in shown
    assert "synthetic, by speakers, 3 shards, seed 7; train utterances" in shown
    assert "torn speakers   0 of 20\n" in shown
    for words in ("shard 3", "seconds", "_unknown_", "label skew      KL", "Gini", "one more shard  moves"):
        assert words in shown


def test_a_leak_is_said_loudly(tiny_corpus: Path) -> None:
    assert "20 of 20 LEAKS SPEAKERS" in kws("--scheme", "iid", corpus=tiny_corpus)


def test_json_is_the_preview(tiny_corpus: Path) -> None:
    shown = json.loads(kws("--scheme", "clients", "--option", "speakers_per_client=4", "--json", corpus=tiny_corpus))
    assert shown["of"] == 3  # of 12 train speakers
    assert shown["scheme"] == {"scheme": "clients", "speakers_per_client": 4}
    assert {summary["speakers"]["train"] for summary in shown["shards"].values()} == {4}


def test_the_digest_is_the_one_that_the_envoy_of_these_settings_reports(tiny_corpus: Path, tmp_path: Path) -> None:
    from shard_descriptors.superb_ks import SuperbKsShardDescriptor

    shown = json.loads(kws("--site", HOUSE / "envoy" / "envoy.yaml", "--json", corpus=tiny_corpus))
    envoy = json.loads(SuperbKsShardDescriptor(str(tiny_corpus), shard=1, of=2, seed=0).dataset_description)
    assert shown["partition"] == envoy["partition"]
    assert shown["shards"]["shard 1"]["labels"] == envoy["labels"]
    changed = json.loads(kws("--site", HOUSE / "envoy" / "envoy.yaml", "--seed", "1", "--json", corpus=tiny_corpus))
    assert changed["partition"] != envoy["partition"]


def test_plot(tiny_corpus: Path, tmp_path: Path) -> None:
    kws("--plot", tmp_path / "shards.png", corpus=tiny_corpus)
    assert (tmp_path / "shards.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scheme", "stride"], "scheme is 'stride'; allowed: speakers"),
        (["--shards", "0"], "must be at least 1"),
        (["--shards", "13"], "12 train speakers cannot fill 13 shards"),
        (["--scheme", "dirichlet", "--option", "alpha=-1"], "alpha is -1"),
        (["--option", "alpha"], "'alpha' is not a setting; write name=value"),
        (["--option", "alpha=["], "'alpha=[' is not a setting"),
        (["--source", "tape"], "source is 'tape'; allowed: speech_commands"),
        (["--setting", "colour=blue"], "no setting 'colour'"),
        (["--split", "dev"], "split is 'dev'; it must be one of train"),
        (["--site", "/no/such/envoy.yaml"], "not an envoy.yaml with a shard_descriptor"),
        (["--plot", "/no/such/folder/plot.png"], "No such file or directory"),
        (["--plot", "plot.doc"], "not supported"),
    ],
)
def test_what_is_wrong_is_said(tiny_corpus: Path, arguments: list[str], words: str) -> None:
    assert words in refused(*arguments, corpus=tiny_corpus)


def test_a_folder_that_is_no_corpus(tmp_path: Path) -> None:
    assert "must hold" in refused("--data", tmp_path) or "archives" in refused("--data", tmp_path)


def test_side_by_side(tiny_corpus: Path) -> None:
    corpus = load(tiny_corpus)
    table = partitions.comparison_table(partitions.compare(corpus, {"whole": Speakers(), "torn": Iid()}, 2, 0))
    assert table.loc["whole", "torn speakers"] == 0
    assert table.loc["torn", "torn speakers"] > 15
    assert table.loc["torn", "largest shard"] - table.loc["torn", "smallest shard"] <= 1


def test_values() -> None:
    assert partitions.values(["alpha=0.3", "column=accent"]) == {"alpha": 0.3, "column": "accent"}
    with pytest.raises(CorpusError):
        partitions.values(["alpha"])


def test_the_notebook_of_partitions_runs(tiny_corpus: Path, tmp_path: Path) -> None:
    executed = tmp_path / "executed.ipynb"
    subprocess.run(
        [sys.executable, "-m", "lab.notebook", HOUSE / "workspace" / "partitions.ipynb", executed],
        env=os.environ | {"DATA": str(tiny_corpus)},
        check=True,
        timeout=120,
    )
    assert "image/png" in executed.read_text()
    assert "torn speakers" in executed.read_text()


def test_the_commands_of_the_docs(tiny_corpus: Path, tmp_path: Path) -> None:
    page = (HOUSE / "docs" / "partitions.md").read_text(encoding="utf-8")
    commands = re.findall(r"^\.venv/bin/kws partition (.*)$", page, re.MULTILINE)
    assert len(commands) == 3
    for command in commands:
        arguments = [str(HOUSE / each) if each.endswith(".yaml") else each for each in command.split()]
        arguments = [str(tmp_path / each) if each.endswith(".png") else each for each in arguments]
        assert "shard 1" in kws(*arguments, corpus=tiny_corpus)
    assert (tmp_path / "shards.png").exists()


def test_the_yaml_of_the_docs() -> None:
    page = (HOUSE / "docs" / "partitions.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert scheme_of(yaml.safe_load(block)["partition"]) == Dirichlet(0.3)
