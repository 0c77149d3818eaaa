"""Submissions as text: nothing hides in a terminal, and what may mislead a reader is pointed out."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from submissions import described

from federation.site.letters import BLANKS, LONGEST_LINE, MOST, oddities
from federation.site.listing import lines, readable

NAMES = st.sampled_from(["experiment.json", "toy/model.py"])


@settings(max_examples=200, deadline=None)
@given(NAMES, st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_bytes_can_be_shown(name: str, content: bytes) -> None:
    shown = lines(name, content)
    assert shown
    assert all(line.replace("\t", " ").isprintable() for line in shown)
    assert all(each.startswith(name) for each in oddities(name, content))


def test_source_is_shown_at_pythons_line_ends() -> None:
    source = "x = 1  # \x1b[2K\u202e harmless\rimport os\u2028\n"
    assert lines("toy/model.py", source.encode()) == ["x = 1  # \\x1b[2K\\u202e harmless", "import os\\u2028"]


def test_a_description_is_shown_as_json_with_its_letters() -> None:
    shown = lines("experiment.json", described(settings={"label": "grün \u202e", "rate": 0.5}))
    assert '  "rounds": 3,' in shown
    assert '    "label": "grün \\u202e",' in shown
    assert '    "rate": 0.5' in shown
    assert readable("no {json") == "no {json"


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("x = 1 # \u202e } if admin", "the direction of writing is turned: U+202E RIGHT-TO-LEFT OVERRIDE"),
        ("x = '\u2067y\u2069'", "the direction of writing is turned: U+2067 RIGHT-TO-LEFT ISOLATE, U+2069"),
        ("x\u200b = 1", "a letter that cannot be seen: U+200B ZERO WIDTH SPACE"),
        ("x = 'a\u00adb'", "a letter that cannot be seen: U+00AD SOFT HYPHEN"),
        ("x = 'a\U000e0061b'", "a letter that cannot be seen: U+E0061 TAG LATIN SMALL LETTER A"),
        ("x = 'a\u3164b'", "a letter that cannot be seen: U+3164 HANGUL FILLER"),
        ("x = 1\x0c", "a control character: U+000C"),
        ("x = 1 # \x1b[2K", "a control character: U+001B"),
        ("x = 1 # \u2028", "a control character: U+2028 LINE SEPARATOR"),
        ("l\u0430st = 2", r"the name 'l\u0430st' is not ASCII: CYRILLIC SMALL LETTER A"),
        ("sch\u00f6n = 2", r"the name 'sch\xf6n' is not ASCII: LATIN SMALL LETTER O WITH DIAERESIS"),
        ("\uff45\uff56\uff41\uff4c('1')", "; Python reads it as 'eval'"),
        ("x = 'l\u0430st'", r"the word 'l\u0430st' mixes CYRILLIC and LATIN letters"),
        ("x = '\u03bfn'", r"the word '\u03bfn' mixes GREEK and LATIN letters"),
        ("x = 1" + " " * BLANKS + "; import os", f"{BLANKS} blanks, and text behind them"),
        ("x = '" + "a" * LONGEST_LINE + "'", f"the line has {LONGEST_LINE + 6} characters"),
    ],
)
def test_odd_letters_are_pointed_out(line: str, words: str) -> None:
    found = oddities("toy/a.py", f"import os\n\n{line}\n".encode())
    assert any(each.startswith("toy/a.py:3: ") and words in each for each in found), found


@pytest.mark.parametrize(
    "text",
    [
        "x = 1\n\ty = 2\r\n",
        "\ufeffx = 1\n",
        "# Grüße, naïve café, Москва, 東京, Ελλάδα, 'x' × 3 – 5 µm\n",
        "x = 'größer'  # im Café\n",
        '"""Two lines.\n\nMore."""\n',
    ],
)
def test_plain_text_of_any_language_is_not(text: str) -> None:
    assert oddities("toy/a.py", text.encode()) == []


def test_what_is_no_code_is_pointed_out() -> None:
    assert "cannot be read as Python" in oddities("toy/a.py", b"x = (\n")[0]
    assert oddities("toy/a.py", b"  x = 1\n y = 2\n")[0].startswith("toy/a.py:2: cannot be read as Python")


def test_a_description_is_no_code() -> None:
    assert oddities("experiment.json", readable(described().decode()).encode()) == []
    odd = readable(described(settings={"l\u0430bel": "\u200b"}).decode())
    found = oddities("experiment.json", odd.encode())
    assert [each.rpartition(": ")[2] for each in found] == ["U+200B ZERO WIDTH SPACE"] or len(found) == 2
    assert any("mixes CYRILLIC and LATIN" in each for each in found)


def test_a_file_of_nothing_else_is_told_in_few_lines() -> None:
    found = oddities("toy/a.py", ("x\u200b = 1\n" * 1000).encode())
    assert len(found) == MOST + 1
    assert found[-1].startswith("toy/a.py: and ")
