"""Who may import whom: the sites' packages do without OpenFL, and the federation knows nothing of speech."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

HOUSE = Path(__file__).resolve().parents[1]
PACKAGES = {
    "federation": HOUSE / "federation",
    "kws": HOUSE / "workspace" / "kws",
    "rules": HOUSE / "rules",
    "shard_descriptors": HOUSE / "shard_descriptors",
}
WITH_OPENFL = {"shard_descriptors.descriptor", "kws.tasks"}
ON_TOP = {"shard_descriptors.superb_ks"}
"""Imports one of those."""


def modules(package: str) -> dict[str, Path]:
    """Files of a package by dotted name."""
    return {
        ".".join((package, *path.relative_to(PACKAGES[package]).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in sorted(PACKAGES[package].rglob("*.py"))
    }


def imported(path: Path) -> Iterator[str]:
    """Dotted names that a file imports, at the top or within a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importers(package: str, *tops: str) -> set[str]:
    """Modules of a package that import anything of one of these top-level packages."""
    return {
        name for name, path in modules(package).items() if any(each.split(".")[0] in tops for each in imported(path))
    }


def test_the_rules_look_at_real_files() -> None:
    assert modules("kws").keys() | modules("shard_descriptors").keys() >= WITH_OPENFL
    assert len(modules("federation")) > 5
    assert importers("federation", "openfl")


def test_openfl_is_imported_only_where_it_is_meant_to_be() -> None:
    assert importers("kws", "openfl") | importers("shard_descriptors", "openfl") == WITH_OPENFL


def test_the_federation_knows_nothing_of_speech() -> None:
    assert not importers("federation", "kws", "shard_descriptors")


def test_the_rules_know_numbers_only() -> None:
    assert not importers("rules", "openfl", "kws", "lab", "shard_descriptors", "federation", "torch", "sklearn")


def test_the_data_owners_side_needs_neither_models_nor_experiments() -> None:
    assert not importers("shard_descriptors", "kws", "federation", "torch", "transformers")


def test_only_the_bridge_imports_the_federation() -> None:
    assert importers("kws", "federation") == {"kws.tasks"}


@pytest.mark.parametrize("package", ["kws", "shard_descriptors"])
def test_everything_else_imports_where_openfl_is_missing(package: str) -> None:
    names = [name for name in modules(package) if name not in WITH_OPENFL | ON_TOP | {"lab.__main__"}]
    assert len(names) > 5
    code = (
        "import importlib, sys, traceback\n"
        "sys.modules['openfl'] = None\n"
        "sys.modules['federation'] = None\n"
        "for name in sys.argv[1:]:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception: print(name); traceback.print_exc(limit=-1, file=sys.stdout)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert not done.stdout, done.stdout
