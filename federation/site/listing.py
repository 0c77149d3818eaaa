"""A submission as text for the person who decides on it: nothing of it is run, imported or unpickled for that."""

import hashlib
import pickletools
from typing import Any

COMPILED = tuple(f"imports {name}" for name in ("cloudpickle.", "dill.", "marshal.", "types.CodeType"))
"""Imports by which a pickle brings functions or classes of its own, compiled, so that their source is not shown."""
LONGEST = 300
_MARK = pickletools.markobject
_CONSTANTS = {"NEWTRUE": "True", "NEWFALSE": "False", "NONE": "None"}


def visible(text: str) -> str:
    """The text on one line, with every character escaped that a terminal would act upon, or that would not show.

    >>> visible("one\\x1b[2Ktwo \\u202e")
    'one\\\\x1b[2Ktwo \\\\u202e'
    """
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def lines(name: str, content: bytes) -> list[str]:
    """A file of a submission, line by line: source as it is, a pickle by what it imports and holds."""
    if name.endswith(".pkl"):
        return pickle_lines(content)
    text = content.decode("utf-8", errors="backslashreplace").replace("\r\n", "\n").replace("\r", "\n")
    whole = text.removesuffix("\n").split("\n")  # at Python's line ends, not at all of Unicode's
    return [visible(line) for line in whole]


def pickle_lines(content: bytes) -> list[str]:
    """Everything that a pickle imports and the plain values in it, in their order.

    The instructions are followed without being carried out: what is imported is known even where its name lies in
    the pickle's memory, and "computed" where only loading would tell.
    """
    told: list[str] = []
    try:
        _follow(content, told)
    except Exception as error:  # a pickle that is broken on purpose may break its reader anywhere
        told.append(f"WARNING: cannot be read to its end: {visible(f'{type(error).__name__}: {error}')}")
    if any(line.startswith(COMPILED) for line in told):
        told.insert(0, "WARNING: brings compiled code of its own, whose source is not in the submission")
    return [f"{len(content)} bytes, sha256 {hashlib.sha256(content).hexdigest()}", *told]


def _follow(content: bytes, told: list[str]) -> None:
    """Follow the pickle's stack and memory as `pickletools.dis` does."""
    stack: list[Any] = []
    memory: dict[int, Any] = {}
    argument: Any
    for code, argument, _ in pickletools.genops(content):
        pushed: list[Any] = list(code.stack_after)
        if code.name in ("GLOBAL", "INST"):
            told.append("imports " + visible(str(argument).replace(" ", ".")))
        elif code.name == "STACK_GLOBAL":
            names = [each if isinstance(each, str) else "(computed)" for each in stack[-2:]]
            if told[-2:] == [_value(name) for name in names]:
                del told[-2:]  # the names alone, said already
            told.append("imports " + visible(".".join(names)))
        elif code.name in ("EXT1", "EXT2", "EXT4", "PERSID", "BINPERSID"):
            told.append(f"imports (computed), by {code.name}")
        elif code.name in _CONSTANTS:
            told.append(f"value {_CONSTANTS[code.name]}")
        elif code.name in ("GET", "BINGET", "LONG_BINGET"):
            pushed = [memory[argument]]
            if isinstance(pushed[0], str):
                told.append(_value(pushed[0]))
        elif code.name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            memory[len(memory) if argument is None else argument] = stack[-1]
            continue
        elif code.name == "DUP":
            pushed = stack[-1:] * 2
        elif argument is not None and code.name not in ("PROTO", "FRAME"):
            told.append(_value(argument))
            pushed = [argument]
        taken = len(code.stack_before)
        if _MARK in code.stack_before or (code.name == "POP" and stack[-1] is _MARK):
            while stack.pop() is not _MARK:
                pass
            taken = code.stack_before.index(_MARK) if _MARK in code.stack_before else 0
        if taken:
            del stack[-taken:]
        stack += pushed


def _value(value: object) -> str:
    if isinstance(value, bytes | bytearray):
        return f"value of {len(value)} bytes, sha256 {hashlib.sha256(value).hexdigest()[:16]}"
    text = f"value {visible(repr(value))}"
    if len(text) <= LONGEST:
        return text
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return f"{text[:LONGEST]}... ({len(text)} characters, sha256 {digest})"
