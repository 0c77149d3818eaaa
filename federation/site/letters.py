"""Odd letters in submitted text: what a reader does not see, or takes for something else.

Boucher and Anderson, "Trojan Source: Invisible Vulnerabilities" (USENIX Security 2023) show code that reads other than
it runs. Here nothing is forbidden but what `federation.wire.archives` refuses (other encodings than UTF-8); it is
pointed out, with file and line, to the person who decides.
"""

import io
import re
import token
import tokenize
import unicodedata
from collections.abc import Iterator

LONGEST_LINE = 300
BLANKS = 40
"""Blanks within a line behind which something may be out of sight."""
MOST = 200
"""Oddities that are told of one file."""

_DIRECTIONS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_INVISIBLE = re.compile(
    "[\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200d\u2060-\u2065\u206a-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0]"
    "|[\U000e0000-\U000e0fff]"
)
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")
_BLANKS = re.compile(rf"\S(?P<blanks>[^\S\n]{{{BLANKS},}})\S")
_WORD = re.compile(r"[^\W\d_]+")
_SIMILAR = ("LATIN", "GREEK", "CYRILLIC", "ARMENIAN", "CHEROKEE")
"""Alphabets with letters that look like each other's."""


def oddities(name: str, content: bytes) -> list[str]:
    """What a reader of a file could miss, each as `file:line: what`; at most `MOST`, then how many more there are.

    >>> odd = oddities("a.py", "x = 1\\nl\\u0430st = 2\\n".encode())
    >>> odd[1].partition(": ")[2]
    "the name 'l\\\\u0430st' is not ASCII: CYRILLIC SMALL LETTER A"
    """
    text = content.decode("utf-8", errors="backslashreplace").replace("\r\n", "\n").replace("\r", "\n")
    names = _odd_names(text.removeprefix("\ufeff")) if name.endswith(".py") else {}
    found = []
    for number, line in enumerate(text.split("\n"), 1):
        found += [f"{name}:{number}: {what}" for what in [*_of_line(line, first=number == 1), *names.get(number, [])]]
    if len(found) > MOST:
        found[MOST:] = [f"{name}: and {len(found) - MOST} more"]
    return found


def _of_line(line: str, first: bool) -> Iterator[str]:
    if _DIRECTIONS.search(line):
        yield f"the direction of writing is turned: {_named(_DIRECTIONS, line)}"
    if found := _INVISIBLE.search(line[1:] if first and line.startswith("\ufeff") else line):
        yield f"a letter that cannot be seen: {_named(_INVISIBLE, line[found.start() :])}"
    if _CONTROLS.search(line):
        yield f"a control character: {_named(_CONTROLS, line)}"
    if len(line) > LONGEST_LINE:
        yield f"the line has {len(line)} characters"
    if blanks := _BLANKS.search(line):
        yield f"{len(blanks['blanks'])} blanks, and text behind them"
    for word in _WORD.findall(line) if not line.isascii() else ():
        alphabets = {each for letter in word if (each := _alphabet(letter)) in _SIMILAR}
        if len(alphabets) > 1:
            yield f"the word '{word.encode('unicode_escape').decode()}' mixes {' and '.join(sorted(alphabets))} letters"


def _odd_names(text: str) -> dict[int, list[str]]:
    """Names of Python code that are not ASCII, by line, and where it cannot be read as code."""
    found: dict[int, list[str]] = {}
    try:
        for each in tokenize.generate_tokens(io.StringIO(text).readline):
            if each.type in (token.NAME, token.ERRORTOKEN) and not each.string.isascii():
                letters = ", ".join(
                    unicodedata.name(letter, f"U+{ord(letter):04X}") for letter in each.string if letter > "~"
                )
                shown = each.string.encode("unicode_escape").decode()
                read = unicodedata.normalize("NFKC", each.string)
                becomes = f"; Python reads it as {read!a}" if read != each.string else ""
                found.setdefault(each.start[0], []).append(f"the name '{shown}' is not ASCII: {letters[:200]}{becomes}")
    except (tokenize.TokenError, SyntaxError) as error:
        line = error.args[1][0] if isinstance(error, tokenize.TokenError) else error.lineno
        found.setdefault(line or 1, []).append(f"cannot be read as Python from here on ({error.args[0]})")
    return found


def _alphabet(letter: str) -> str:
    return unicodedata.name(letter, "").partition(" ")[0]


def _named(pattern: re.Pattern[str], line: str) -> str:
    letters = dict.fromkeys(pattern.findall(line))
    return ", ".join(f"U+{ord(each):04X} {unicodedata.name(each, '')}".strip() for each in letters)[:300]
