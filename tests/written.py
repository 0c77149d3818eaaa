"""Names of the house in prose: what a text names, and whether there is such a thing. Nothing is imported for that."""

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

HOUSE = Path(__file__).resolve().parents[1]
LIES_IN = {
    "federation": HOUSE,
    "rules": HOUSE,
    "shard_descriptors": HOUSE,
    "kws": HOUSE / "workspace",
    "lab": HOUSE / "workspace",
}
"""The house's packages, and the folder that each lies in."""

_DOTTED = re.compile(rf"(?<![\w./-])(?:{'|'.join(LIES_IN)})(?:\.[A-Za-z_]\w*)+(?![\w/(])")
_FILES = (".py", ".md", ".yaml", ".json", ".zip", ".ipynb")


def dotted(text: str) -> Iterator[tuple[str, int]]:
    """Every dotted name of a module, or of something in one, and its line."""
    for found in _DOTTED.finditer(text):
        if not found[0].endswith(_FILES):
            yield found[0], text.count("\n", 0, found.start()) + 1


def prose(path: Path) -> str:
    """What a file says to its readers: all of it, and of Python its comments and texts; lines stay where they are."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        return text
    lines = [""] * (text.count("\n") + 2)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            for number, line in enumerate(token.string.split("\n"), token.start[0]):
                lines[number - 1] += f" {line}"
    return "\n".join(lines)


def exists(name: str) -> bool:
    """Whether there is a module of this dotted name, or a module with such a class, function, value or member."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        place = LIES_IN[parts[0]].joinpath(*parts[:length])
        for file in (place.with_suffix(".py"), place / "__init__.py"):
            if file.is_file():
                return _has(ast.parse(file.read_text(encoding="utf-8")).body, parts[length:])
    return False


def _has(body: list[ast.stmt], names: list[str]) -> bool:
    """Whether statements define the first name, and its own statements the next one."""
    if not names:
        return True
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name == names[0]:
            return _has(node.body, names[1:])
        if names[1:]:
            continue
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == names[0]:
            return True
        if isinstance(node, ast.Import | ast.ImportFrom) and names[0] in {a.asname or a.name for a in node.names}:
            return True
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if names[0] in {each.id for each in targets if isinstance(each, ast.Name)}:
            return True
    return False
