"""Submissions as text: what a pickle imports is known without loading it, and nothing hides in a terminal."""

import os
import pickle
import sys

import cloudpickle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.policy import RoundPolicy
from federation.site.listing import lines, pickle_lines


class Runs:
    """Loading it runs a command."""

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return os.system, ("touch /tmp/loaded",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_imports_and_values_of_every_protocol(protocol: int) -> None:
    shown = pickle_lines(pickle.dumps([Runs(), 1.5, True, None, b"abc"], protocol))
    assert "imports posix.system" in shown
    assert "value 'touch /tmp/loaded'" in shown
    assert "value 1.5" in shown
    assert not any("WARNING" in line for line in shown)


@pytest.mark.parametrize(
    ("code", "words"),
    [
        # The names come out of the pickle's memory, behind decoys that are dropped again.
        (b"\x8c\x02os\x94\x8c\x06system\x940\x8c\x04good\x8c\x04name00h\x010h\x00h\x01\x93.", "imports os.system"),
        (b"\x8c\x02os\x8c\x06system2\x8c\x01a1(\x8c\x01b10\x93.", "WARNING: cannot be read"),  # 1: POP_MARK, none there
        (b"(\x8c\x01a\x8c\x01b1\x8c\x02os\x8c\x06system\x93.", "imports os.system"),
        (b"\x8c\x03one\x8c\x03two2\x93.", "imports two.two"),  # 2: DUP
        (b"cbuiltins\ngetattr\n)R\x8c\x06system\x93.", "imports (computed).system"),
        (b"\x82\x01.", "imports (computed), by EXT1"),
        (b"Pid\n.", "imports (computed), by PERSID"),
        (b"(ios\nsystem\n.", "imports os.system"),
        (b"\x8c\x05a\nb\x1b[\x8c\x01c\x93.", "imports a\\nb\\x1b[.c"),
    ],
)
def test_pickles_made_to_mislead(code: bytes, words: str) -> None:
    assert any(line.startswith(words) for line in pickle_lines(b"\x80\x04" + code)), pickle_lines(b"\x80\x04" + code)


def test_nothing_is_imported_or_loaded() -> None:
    shown = pickle_lines(b"cno_such_module_at_all\nname\n(tR.")
    assert "imports no_such_module_at_all.name" in shown
    shown = pickle_lines(b"\x80\x04cxmlrpc.server\nSimpleXMLRPCServer\n.")
    assert "imports xmlrpc.server.SimpleXMLRPCServer" in shown
    assert "xmlrpc.server" not in sys.modules


def test_compiled_code_is_pointed_out() -> None:
    assert "compiled code" in pickle_lines(cloudpickle.dumps(lambda: 1))[1]
    assert not any("WARNING" in line for line in pickle_lines(cloudpickle.dumps(RoundPolicy(gone_seconds=3.0))))
    assert "value 3.0" in pickle_lines(cloudpickle.dumps(RoundPolicy(gone_seconds=3.0)))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=60))
def test_any_bytes_can_be_shown(content: bytes) -> None:
    for name in ("model_obj.pkl", "toy/model.py"):
        shown = lines(name, b"\x80\x04" + content if name.endswith("pkl") else content)
        assert shown
        assert all(line.replace("\t", " ").isprintable() for line in shown)


def test_source_is_shown_at_pythons_line_ends() -> None:
    source = "x = 1  # \x1b[2K\u202e harmless\rimport os\u2028\n"
    assert lines("toy/model.py", source.encode()) == ["x = 1  # \\x1b[2K\\u202e harmless", "import os\\u2028"]
