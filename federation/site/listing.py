"""A submission as text for the person who decides on it: nothing of it is run or imported for that."""

import json

from federation.wire import archives


def visible(text: str) -> str:
    """The text on one line, with every character escaped that a terminal would act upon, or that would not show.

    >>> visible("one\\x1b[2Ktwo \\u202e")
    'one\\\\x1b[2Ktwo \\\\u202e'
    """
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def lines(name: str, content: bytes) -> list[str]:
    """A file of a submission, line by line: source as it is, a description with its letters as they are read."""
    text = content.decode("utf-8", errors="backslashreplace")
    if name == archives.DESCRIPTION:
        text = readable(text)
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    whole = text.removesuffix("\n").split("\n")  # at Python's line ends, not at all of Unicode's
    return [visible(line) for line in whole]


def readable(text: str) -> str:
    """JSON with its keys in order, and with letters in place of their numbers; what is no JSON is left as it is."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
