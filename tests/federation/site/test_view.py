"""What an owner is shown: of the code what is neither approved nor installed, and every file where they want it."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from submissions import described

from federation.site import installed
from federation.site.review import Received, ReviewFolder, Submission
from federation.site.view import Part, parts
from federation.wire import archives

HOUSE = Path(__file__).resolve().parents[3]
KWS = HOUSE / "workspace" / "kws"
SHIPPED = archives.sources(KWS)
OTHERS = {archives.DESCRIPTION: described(entry_point="kws.tasks:experiment")}
CHANGED = "kws/training.py"
NEW = {"kws/extra.py": b"STEP = 1\n", "other/__init__.py": b"", "other/a.py": b"import os\n", "loose.py": b"x = 1\n"}


def changed() -> bytes:
    """A real file with one line more."""
    before, line, after = SHIPPED[CHANGED].partition(b"import math\n")
    assert line
    return before + line + b"import subprocess\n" + after


def shown(files: dict[str, bytes], code: bool = False) -> dict[str, list[str]]:
    return {part.title: part.lines for part in parts(Submission(OTHERS | files), None, code)}


def test_what_is_as_installed_is_named_and_not_printed() -> None:
    told = shown(SHIPPED)
    assert list(told) == [archives.DESCRIPTION, "as installed here"]
    named, note = told["as installed here"][: len(SHIPPED)], " ".join(told["as installed here"][len(SHIPPED) :])
    assert [line.partition(":")[0] for line in named] == sorted(SHIPPED)
    lines = len(SHIPPED["kws/config.py"].splitlines())
    assert f"kws/config.py: as installed here, {lines} lines" in named
    assert f"in {KWS}." in note
    assert "not that anybody has read it" in note
    assert "--code" in note


def test_with_code_every_file_is_whole() -> None:
    told = shown(SHIPPED, code=True)
    assert list(told) == [archives.DESCRIPTION, *sorted(SHIPPED)]
    for name, content in SHIPPED.items():
        assert "\n".join(told[name]) == content.decode().removesuffix("\n")


def test_what_differs_is_shown_by_its_difference() -> None:
    told = shown(SHIPPED | {CHANGED: changed()})
    lines = told[f"{CHANGED}, where it differs from the one here"]
    assert lines[:2] == [f"--- installed/{CHANGED}", f"+++ submitted/{CHANGED}"]
    assert [line for line in lines[2:] if line.startswith(("+", "-"))] == ["+import subprocess"]
    assert len(lines) < 12
    assert not any(line.startswith(CHANGED) for line in told["as installed here"])
    assert len([line for line in told["as installed here"] if ": as installed here" in line]) == len(SHIPPED) - 1


def test_what_is_not_here_is_whole_and_what_is_missing_is_named() -> None:
    files = {name: content for name, content in (SHIPPED | NEW).items() if name != "kws/metrics.py"}
    told = shown(files)
    for name, content in NEW.items():
        assert told[name] == content.decode().removesuffix("\n").split("\n")
    assert told["installed here, but not submitted"] == ["kws/metrics.py"]


def test_a_file_is_never_both_hidden_and_different() -> None:
    """Ends of lines, a last line end, one letter: what is not the same bytes is not `as installed`."""
    original = SHIPPED[CHANGED]
    for other in (
        original.replace(b"\n", b"\r\n"),
        original + b"\n",
        original[:-1],
        original.replace(b"math", b"nath"),
    ):
        told = shown(SHIPPED | {CHANGED: other})
        assert not any(line.startswith(CHANGED) for line in told["as installed here"])
        assert told[f"{CHANGED}, where it differs from the one here"]
    told = shown(SHIPPED | {CHANGED: original.replace(b"\n", b"\r\n")})
    assert told[f"{CHANGED}, where it differs from the one here"] == [
        "only the ends of its lines, or the end of the file"
    ]


def test_after_an_approval_the_difference_is_to_what_was_approved() -> None:
    old, new = Submission(OTHERS | SHIPPED), Submission(OTHERS | SHIPPED | {CHANGED: changed()})
    about = Received(old.digest, "first", 0.0, None, shown=True, waits=False, experimenter="")
    told = list(parts(new, (about, old)))
    assert told[0].title == archives.DESCRIPTION
    assert told[1:] == [Part(f"difference to {old.digest[:12]}, approved last (first)", told[1].lines)]
    assert "+import subprocess" in told[1].lines
    assert list(parts(old, (about, old)))[1].lines == ["none"]


@pytest.mark.parametrize("name", ["nowhere", "sys", "__main__", "loose", "json.decoder"])
def test_packages_that_are_not_here_are_none(name: str) -> None:
    assert list(installed.packages([f"{name}/__init__.py", f"{name}.py", "experiment.json"])) == []


def test_a_package_is_found_without_being_imported(tmp_path: Path) -> None:
    """Whatever a submission is named after: to look at it runs nothing."""
    package = tmp_path / "trap"
    package.mkdir()
    (package / "__init__.py").write_text(f"import pathlib\npathlib.Path({str(tmp_path)!r}, 'ran').touch()\n")
    config = tmp_path / "envoy.yaml"
    config.write_text(yaml.safe_dump({"name": "site", "shard_descriptor": {"template": "a.B"}}))
    trap = {archives.DESCRIPTION: described(entry_point="trap:experiment"), **archives.sources(package)}
    submission = Submission(trap)
    ReviewFolder(tmp_path / "review").receive(submission, "first")
    command = [sys.executable, "-m", "federation.review", "show", submission.digest, "--config", config]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "trap/__init__.py: as installed here, 2 lines" in done.stdout
    assert f"in {package}." in done.stdout
    assert not (tmp_path / "ran").exists()
    whole = subprocess.run([*command, "--code"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "=== trap/__init__.py\nimport pathlib\n" in whole
