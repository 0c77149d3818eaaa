"""The examples in docstrings."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
PACKAGES = {"federation": HOUSE, "rules": HOUSE, "shard_descriptors": HOUSE}
PACKAGES |= {"kws": HOUSE / "workspace", "lab": HOUSE / "workspace"}
MODULES = [
    ".".join(path.relative_to(folder).with_suffix("").parts)
    for package, folder in PACKAGES.items()
    for path in sorted((folder / package).rglob("*.py"))
    if ">>>" in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("module", MODULES)
def test_examples(module: str) -> None:
    result = doctest.testmod(import_module(module))
    assert result.attempted > 0
    assert result.failed == 0
