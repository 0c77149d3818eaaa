"""What leaves a site of an error: neither paths nor the names of what is recorded there."""

import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.errors import FederationError
from federation.settings import Failures
from federation.site.failure import HIDDEN, TaskFailed, folders, hidden, told

SOURCE = """
import pathlib

def read(path):
    return pathlib.Path(path).read_bytes()

def many():
    raise ValueError("first line\\nsecond line")

def deep(error):
    raise error
"""


@pytest.fixture
def shipped(tmp_path: Path) -> Path:
    """A folder with a package whose code raises."""
    package = tmp_path / "work" / "speech"
    package.mkdir(parents=True)
    (package / "model.py").write_text(SOURCE)
    return tmp_path / "work"


@pytest.fixture
def code(shipped: Path) -> ModuleType:
    module = ModuleType("speech.model")
    path = shipped / "speech" / "model.py"
    exec(compile(path.read_text(), str(path), "exec"), module.__dict__)
    return module


def raised(work: object, *given: object) -> BaseException:
    try:
        work(*given)  # type: ignore[operator]
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def test_kind_place_and_last_line(code: ModuleType, shipped: Path) -> None:
    error = raised(code.many)
    assert told(error, Failures.LINE, shipped) == "ValueError: second line\n  at speech/model.py:8, in many"
    assert told(error, Failures.PLACE, shipped) == "ValueError\n  at speech/model.py:8, in many"
    whole = told(error, Failures.FULL, shipped)
    assert whole.startswith("Traceback (most recent call last)")
    assert whole.endswith("ValueError: first line\nsecond line\n")


def test_a_task_says_where_and_what_was_raised_in_it(code: ModuleType, shipped: Path) -> None:
    error = TaskFailed("site north, round 2, task train", raised(code.many))
    error.__cause__ = raised(code.many)
    expected = "site north, round 2, task train: ValueError: second line\n  at speech/model.py:8, in many"
    assert told(error, Failures.LINE, shipped) == expected
    assert str(error) == "site north, round 2, task train: ValueError: first line\nsecond line"


def test_the_name_of_a_recording_stays(code: ModuleType, shipped: Path, tmp_path: Path) -> None:
    recordings = tmp_path / "recordings"
    (recordings / "ann-lee").mkdir(parents=True)
    (recordings / "ann-lee" / "hello there.wav").touch()
    missing = raised(code.read, recordings / "ann-lee" / "bye.wav")
    assert "ann-lee" in str(missing)
    said = told(missing, Failures.LINE, shipped, [recordings])
    assert said == f"FileNotFoundError: [Errno 2] No such file or directory: {HIDDEN}\n  at speech/model.py:5, in read"
    for words, expected in (
        ("ann-lee", HIDDEN),
        ("no clip of ann-lee, only 'hello there'", f"no clip of {HIDDEN}, only '{HIDDEN}'"),
        ("ann-leelee and hello", "ann-leelee and hello"),
    ):
        said = told(raised(code.deep, KeyError(words)), Failures.LINE, shipped, [recordings])
        assert expected in said.splitlines()[0], said


def test_without_a_line_of_the_shipped_code_the_place_is_where_it_was_raised(shipped: Path) -> None:
    error = raised(subprocess.run, ["/no/such/command/of/ann"])
    said = told(error, Failures.LINE, shipped)
    assert said.startswith(f"FileNotFoundError: [Errno 2] No such file or directory: {HIDDEN}\n  at subprocess.py:")
    assert told(FederationError("never raised"), Failures.LINE, shipped).endswith("at an unknown place")
    assert sys.prefix not in said


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot read '/home/ann lee/one.wav' here", f"cannot read {HIDDEN} here"),
        ('cannot read "C:\\ann\\one.wav"', f"cannot read {HIDDEN}"),
        ("cannot read /home/Ann Lee Smith/one 2.wav: empty", f"cannot read {HIDDEN} 2.wav: empty"),
        ("recordings/ann is empty", f"{HIDDEN} is empty"),
        ("ann.wav has no samples", f"{HIDDEN} has no samples"),
        ("'Ann Lee.flac' has no samples", f"{HIDDEN} has no samples"),
        ("ANN_03.WAV: too short", f"{HIDDEN}: too short"),
        ("file://host/ann.ogg", f"file:{HIDDEN}"),
        ("expected shape (3, 4), got 0.5 of 1e-3", "expected shape (3, 4), got 0.5 of 1e-3"),
        ("shapes cannot be multiplied (4x3 and 5x2)", "shapes cannot be multiplied (4x3 and 5x2)"),
    ],
)  # fmt: skip
def test_what_looks_like_a_path_or_a_recording_is_hidden(text: str, expected: str) -> None:
    assert hidden(text, []) == expected.replace(f"{HIDDEN} 2.wav", f"{HIDDEN} {HIDDEN}")


WORDS = st.from_regex(r"[a-z][a-z0-9_-]{3,9}", fullmatch=True)


@settings(max_examples=100, deadline=None)
@given(st.lists(WORDS, min_size=2, max_size=5), st.sampled_from(["wav", "FLAC", "npz"]), st.text(max_size=30))
def test_no_name_of_a_path_is_left(names: list[str], ending: str, around: str) -> None:
    around = "".join(letter for letter in around if not letter.isalnum() and letter not in "'\"`")
    for path in ("/".join(names) + f".{ending}", "\\".join(["C:", *names]), f"/{'/'.join(names)}/"):
        left = hidden(f"read {around} {path} failed", [])
        assert not set(names) & set(left.replace(HIDDEN, " ").split()) - {"read", "failed"}


def test_the_folders_that_a_descriptor_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    (tmp_path / "b" / "table.csv").touch()
    params = {
        "data": "a",
        "sources": [{"table": "b/table.csv"}, ["c"]],
        "seed": 3,
        "name": "no such folder",
        "long": "x" * 5000,
    }
    assert folders(params) == [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    assert folders({"data": "/", "user": "~no such user", "none": None, "empty": ""}) == []
    assert folders({"here": "."}) == [tmp_path]
