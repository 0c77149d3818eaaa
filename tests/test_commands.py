"""Libraries and commands apart: a library prints nothing, and nobody builds on a command."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_imports import MODULES, imported, within

COMMANDS = {
    "federation.director.__main__": "python -m federation.director, which director/start_director.sh runs",
    "federation.envoy": "python -m federation.envoy, which envoy/start_envoy.sh runs",
    "federation.review": "python -m federation.review",
    "federation.certificates": "python -m federation.certificates",
    "lab.cli": "kws",
    "lab.__main__": "python -m lab",
}
"""Translate between a person and a library."""
PROGRAMS = {
    "lab.demo": "`kws demo`: shows how the processes that it has started get on",
    "lab.notebook": "python -m lab.notebook, which the demo starts",
    "lab.product.example": "lies beside an exported model, for whoever builds an app on it",
}
"""Have something to say while they run."""
SHOWS = {"lab.sounds.play": "a line above each player that it puts into the notebook"}
"""Functions for a notebook's cell."""
TALKING = ("print", "typer.echo", "typer.secho", "click.echo", "sys.stdout.write", "sys.stderr.write", "input")


def talking(path: Path) -> Iterator[tuple[str, int, str]]:
    """Where a file talks to a person: the function or class at the top that does, the line, and by what."""
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        for node in ast.walk(part):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in TALKING:
                yield getattr(part, "name", ""), node.lineno, ast.unparse(node.func)


def libraries() -> dict[str, Path]:
    return {name: path for name, path in MODULES.items() if name not in COMMANDS | PROGRAMS}


def test_libraries_print_nothing() -> None:
    found = [
        f"{path}:{line}: {name} calls {call}; a library returns what there is to say, and its command prints it"
        for name, path in libraries().items()
        for function, line, call in talking(path)
        if f"{name}.{function}" not in SHOWS
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "name", ["federation.authority", "federation.site.review", "federation.site.view", "lab.partitions"]
)
def test_each_of_these_is_a_library_with_a_command(name: str) -> None:
    assert name in libraries()
    assert any(target.startswith(name) for command in COMMANDS for target, _ in imported(MODULES[command]))


def test_nobody_builds_on_a_command() -> None:
    """Else what it prints, or decides, is used by others too, and belongs into a library."""
    found = [
        f"{path}:{line}: {name} imports {target}"
        for name, path in libraries().items()
        for target, line in imported(path)
        if any(within(target, command) for command in COMMANDS | PROGRAMS)
    ]
    assert not found, "\n".join(found)


def test_the_check_can_fail(tmp_path: Path) -> None:
    file = tmp_path / "library.py"
    file.write_text("import sys, typer\nprint(1)\ndef f():\n    typer.echo('x')\nclass C:\n    def g(self): print()\n")
    assert list(talking(file)) == [("", 2, "print"), ("f", 4, "typer.echo"), ("C", 6, "print")]
    assert all(list(talking(MODULES[name])) for name in ("federation.review", "federation.certificates", "lab.demo"))
    assert [function for function, _, _ in talking(MODULES["lab.sounds"])] == ["play"]


def test_commands_have_no_parts_of_their_own() -> None:
    """A class, or a function that others could call, would be a decision in the wrong place."""
    for command in COMMANDS:
        tree = ast.parse(MODULES[command].read_text(encoding="utf-8"))
        typer = {
            node.name
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and any("app." in ast.unparse(each) for each in node.decorator_list)
        }
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)} - typer
        assert {name for name in own if not name.startswith("_")} <= {"main"}, command
