"""What leaves a site of an error: its kind, its place and its last line, unless the owner allows another measure.

A traceback shows paths, and what a library says of a file names it: in a folder of recordings both can be somebody's
name. The whole error is in the site's own log.
"""

import os
import re
import sys
import traceback
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from federation.errors import FederationError
from federation.settings import Failures

CHARACTERS = 2000
MOST_NAMES = 300_000
"""Names of files and folders with which an error's words are compared."""

HIDDEN = "<hidden>"
_ENDINGS = (
    "wav|flac|mp3|ogg|opus|m4a|mp4|aac|aiff?|wma|webm|amr|sph|npy|npz|parquet|arrow|csv|tsv|jsonl?|txt|zip|tar|t?gz"
)
_PATHS = (
    re.compile(r"""(["'`])(?:(?!\1).)*[/\\](?:(?!\1).)*\1"""),
    re.compile(rf"""(["'`])(?:(?!\1).)*\.(?:{_ENDINGS})\1""", re.IGNORECASE),
    re.compile(r"[^\s:]*[/\\].*[/\\]\S*|[^\s:]*[/\\]\S*"),  # from the first separator to the last: names have blanks
    re.compile(rf"[^\s:]+\.(?:{_ENDINGS})\b", re.IGNORECASE),
)
_WORD = re.compile(r"[^\s\"'`()\[\]{}<>,;:=]+")


class TaskFailed(FederationError):
    """A task of a round has raised an error, which is this one's cause; `where` names site, round and task."""

    def __init__(self, where: str, error: BaseException) -> None:
        super().__init__(f"{where}: {type(error).__name__}: {error}")
        self.where = where


def told(error: BaseException, failures: str, shipped: Path, private: Iterable[Path] = ()) -> str:
    """What a site tells of an error.

    Args:
        error: what was raised.
        failures: what the site's owner allows (`federation.settings.Failures`).
        shipped: the folder of the shipped code.
        private: folders of recordings; the names of what lies in them are hidden.
    """
    if failures == Failures.FULL:
        return "".join(traceback.format_exception(error))
    cause = error.__cause__ if isinstance(error, TaskFailed) and error.__cause__ else error
    words = [type(cause).__name__]
    if isinstance(error, TaskFailed):
        words.insert(0, error.where)
    if failures == Failures.LINE and (last := str(cause).strip().rpartition("\n")[2][:CHARACTERS]):
        words.append(hidden(last, private))
    return f"{': '.join(words)}\n  at {_place(cause, shipped)}"


def hidden(text: str, private: Iterable[Path]) -> str:
    r"""One line without what looks like a path or a recording's name, or is the name of something in these folders.

    >>> hidden("cannot read '/home/ann lee/one.wav'", []), hidden("expected shape (3, 4), got 0.5", [])
    ('cannot read <hidden>', 'expected shape (3, 4), got 0.5')
    """
    for pattern in _PATHS:
        text = pattern.sub(HIDDEN, text)
    words = set(_WORD.findall(text))
    found = {name for name in _names(private) if name in words or (" " in name and name in text)}
    for name in sorted(found, key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", HIDDEN, text)
    return text


def folders(params: Any) -> list[Path]:
    """The folders that the parameters of a shard descriptor name, wherever in them; relative ones count from here."""
    if isinstance(params, Mapping):
        params = list(params.values())
    if isinstance(params, list | tuple):
        return [folder for each in params for folder in folders(each)]
    if not isinstance(params, str | os.PathLike) or not str(params) or len(str(params)) > 4096:
        return []
    path = Path(os.path.expanduser(params)).absolute()
    folder = path.parent if path.is_file() else path
    return [folder] if folder.is_dir() and folder != Path("/") else []


def _names(private: Iterable[Path]) -> Iterator[str]:
    """The names of what lies in these folders, files also without their endings."""
    left = MOST_NAMES
    for folder in private:
        for _, directories, files in os.walk(folder):
            yield from directories
            for file in files:
                yield file
                yield file.partition(".")[0]
            left -= len(directories) + len(files)
            if left < 0:
                return


def _place(error: BaseException, shipped: Path) -> str:
    """Where it happened: the innermost line of the shipped code, or, where there is none, of what raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    for frame in reversed(frames):
        if Path(frame.filename).is_relative_to(shipped):
            return f"{Path(frame.filename).relative_to(shipped).as_posix()}:{frame.lineno}, in {frame.name}"
    if not frames:
        return "an unknown place"
    path, line = Path(frames[-1].filename), frames[-1].lineno
    roots = [Path(each) for each in sys.path if each and path.is_relative_to(each)]
    root = max(roots, key=lambda each: len(each.parts), default=path.parent)
    return f"{path.relative_to(root).as_posix()}:{line}, in {frames[-1].name}"
