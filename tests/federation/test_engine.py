"""docs/engine.md, the docstrings and the engine's own lines agree."""

import ast
import re
from dataclasses import dataclass
from pathlib import Path

import openfl
import pytest

HOUSE = Path(__file__).resolve().parents[2]
ENGINE = Path(openfl.__file__).parent
SOURCES = [*sorted((HOUSE / "federation").rglob("*.py")), HOUSE / "workspace" / "kws" / "tasks.py"]
Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
LINE = re.compile(r"\b([\w/]+\.py):(\d+)")


@dataclass(frozen=True)
class Mend:
    """A row of the table."""

    line: str
    code: str
    by: str
    test: str


def rows() -> list[Mend]:
    text = (HOUSE / "docs" / "engine.md").read_text()
    lines = [line for line in text.splitlines() if re.match(r"\| `[\w/]+\.py:\d+` ", line)]
    found = []
    for line in lines:
        engine, stock, here, by, test = (cell.strip() for cell in line.strip("|").split(" | "))
        assert stock.endswith(".")
        assert here.endswith((".", ".)"))
        place, code = re.fullmatch(r"`([^`]+)` `([^`]+)`", engine).groups()  # type: ignore[union-attr]
        found.append(Mend(place, code, by.strip("`"), test.strip("`")))
    return found


MENDS = rows()


def named(path: Path) -> set[str]:
    """The engine's lines that a source file names, as the table writes them."""
    text = re.sub(r"\s+", " ", path.read_text(encoding="utf-8"))
    found = set()
    for file, number in LINE.findall(text):
        matching = [mend.line for mend in MENDS if f"/{mend.line}".endswith(f"/{file}:{number}")]
        assert matching, f"{path.name} names {file}:{number}; give it a row in docs/engine.md and a test under @fault"
        assert len(matching) == 1, f"{path.name} names {file}:{number}; which of {matching}? Write its folder"
        found.add(matching[0])
    return found


def definitions(path: Path) -> dict[str, Definition]:
    """Functions and classes of a source file by name; it is not imported, which may take a GPU."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name: node for node in tree.body if isinstance(node, Definition)}


def module(path: Path) -> str:
    """The dotted name of a source file."""
    root = HOUSE / "workspace" if HOUSE / "workspace" in path.parents else HOUSE
    return ".".join(path.relative_to(root).with_suffix("").parts)


MODULES = {path: module(path) for path in SOURCES}
OURS = {*MODULES.values(), *(f"{module}.{name}" for path, module in MODULES.items() for name in definitions(path))}


def test_the_table_is_read() -> None:
    assert len(MENDS) > 30
    assert len({mend.line for mend in MENDS}) == len(MENDS)


def test_every_line_that_a_docstring_names_has_its_row_and_the_other_way_round() -> None:
    by_source = {path: named(path) for path in SOURCES}
    assert set().union(*by_source.values()) == {mend.line for mend in MENDS}


@pytest.mark.parametrize("mend", MENDS, ids=lambda mend: mend.line)
def test_a_row(mend: Mend) -> None:
    # The engine's line reads so.
    file, number = mend.line.split(":")
    assert mend.code in (ENGINE / file).read_text(encoding="utf-8").splitlines()[int(number) - 1]
    # There is such a part of ours.
    assert mend.by in OURS
    # There is such a test, and it is about this line.
    path, name = mend.test.split("::")
    decorators = definitions(HOUSE / path)[name].decorator_list
    arguments = [argument for each in decorators if isinstance(each, ast.Call) for argument in each.args]
    assert mend.line in {each.value for each in arguments if isinstance(each, ast.Constant)}


def test_every_stock_test_has_a_row() -> None:
    tests = [*(HOUSE / "tests" / "federation").glob("test_stock_*.py"), HOUSE / "tests" / "kws" / "test_tasks.py"]
    faults = [line for path in tests for line in re.findall(r'"([\w/]+\.py:\d+)"', path.read_text(encoding="utf-8"))]
    assert sorted(faults) == sorted(mend.line for mend in MENDS)
