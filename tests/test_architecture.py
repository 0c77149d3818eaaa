"""docs/architecture.md: one page, and everything that it names is there."""

import importlib
import re

import pytest
from written import HOUSE, LIES_IN, exists

PAGE = (HOUSE / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([^`\n]+)`", PAGE)))
WORDS = {"make demo", "wire", "load", "assign", "transformers"}
"""Set as names, and neither a path nor a name of the house."""
NEW = (
    "source of recordings", "partition scheme", "model family", "head", "aggregation rule", "metric", "augmentation",
    "task", "exporter",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_everything_on_the_page_exists(name: str) -> None:
    if name in WORDS:
        return
    if "/" in name or name.endswith(".md"):
        assert any(HOUSE.glob(name.replace("<name>", "*"))), f"there is no {name}"
    elif name not in LIES_IN:
        assert name.split(".")[0] in LIES_IN, f"{name} is neither a path, nor a dotted name of the house, nor in WORDS"
        assert exists(name), f"there is no {name}"


def test_it_is_one_page() -> None:
    assert len(PAGE.splitlines()) <= 90
    assert len(PAGE.split()) <= 1_000


def test_all_that_can_be_added_is_in_the_table() -> None:
    table = PAGE.partition("## To add one")[2]
    rows = re.findall(r"^\| ([^|]+?) \|", table, flags=re.MULTILINE)
    assert sorted(rows) == sorted((*NEW, "a new"))


def test_the_files_of_the_table_are_what_its_lists_name() -> None:
    """`<name>.py` and the list beside it: each entry of the list has its file."""
    rows = re.findall(r"^\| [^|]+ \| `([^`]+)/<name>\.py`.* \| `([\w.]+)` \|$", PAGE, flags=re.MULTILINE)
    assert len(rows) >= 2
    for folder, registry in rows:
        module, _, name = registry.rpartition(".")
        listed = getattr(importlib.import_module(module), name)
        assert listed
        for entry in listed:
            assert (HOUSE / folder / f"{entry}.py").is_file(), f"{registry} has {entry!r}; no such file in {folder}"


def test_readme_leads_to_it() -> None:
    assert "(docs/architecture.md)" in (HOUSE / "README.md").read_text(encoding="utf-8")
