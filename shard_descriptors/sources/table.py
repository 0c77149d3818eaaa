"""A CSV or TSV file that lists the recordings: one row for each, or for each part of a longer one."""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.sources.rules import Rules, about, given_folder
from shard_descriptors.utterances import Utterance

DELIMITERS = ",;\t|"
Rows = Iterator[tuple[str, Mapping[str, str]]]


def load(
    data_path: Path | str,
    audio: str = "path",
    label: str = "label",
    speaker: str | None = None,
    split: str | None = None,
    start: str | None = None,
    duration: str | None = None,
    columns: Sequence[str] | None = None,
    audio_folder: Path | str | None = None,
    labels: Sequence[str] | None = None,
    other: str | None = None,
    sample_rate: int = 16_000,
    clip_seconds: float = 1.0,
    validation_percent: float = 10,
    test_percent: float = 10,
) -> Corpus:
    """The recordings that a table lists. No audio is decoded.

    data_path: a file in UTF-8 with column names in its first line. `.tsv` and `.tab` are split at tabs, and quotes
        in them are text like any other; other files at the one of , ; | and tab that the first line has most of.
    audio, label: names of the columns with the audio file, relative to `audio_folder`, and with what is spoken.
    speaker, split, start, duration: names of columns that may be there; None: the one of this very name, if there is
        one. start and duration are seconds; an empty one is 0, and unknown.
    columns: other columns to keep, such as an accent; None: all.
    audio_folder: None: the folder of the table. A relative one counts from there.
    The other settings are those of `Rules`. Without `labels` they are the ones found, sorted; every site of a
    federation must find the same. Without a column for the split, a speaker's hash decides. Without the speaker, the
    hash of each file's name decides, and a speaker will then be in several splits: scores flatter.

    CorpusError names file and line: a column that is named but missing, a file that is not there, a label that is
    empty or unknown, a number that is none, two rows for the same file and start.
    """
    rules = Rules(labels, other, sample_rate, clip_seconds, validation_percent, test_percent)
    table = Path(data_path).expanduser().resolve()
    named = {"audio": audio, "label": label, "speaker": speaker, "split": split, "start": start, "duration": duration}
    folder = given_folder(table.parent / Path(audio_folder or "").expanduser())
    return rules.corpus(table.stem, utterances(rules, table, folder, named, columns))


def utterances(
    rules: Rules, table: Path, folder: Path, named: Mapping[str, str | None], columns: Sequence[str] | None = None
) -> Iterator[Utterance]:
    """The utterances of a table whose audio files lie in `folder`.

    named: the column for each of audio, label, speaker, split, start and duration, as in `load`.
    CorpusError names file and line.
    """
    header, rows = read(table)
    with about(str(table)):
        used = _used_columns(header, named)
        kept = _kept_columns(header, used, columns)
    is_file = cache(os.path.isfile)
    lines: dict[tuple[str, float], str] = {}
    for line, row in rows:
        found = {what: row[column] for what, column in used.items()}
        with about(line):
            if not (name := os.path.normpath(found["audio"]) if found["audio"] else ""):
                raise CorpusError(f"the column {used['audio']} is empty; name the audio file or remove the row")
            path = os.path.join(folder, name)
            if not is_file(path):
                raise CorpusError(f"{path} is not a file; correct the row, or the setting audio_folder")
            start = _number(used, found, "start")
            if first := lines.get((name, start or 0.0)):
                raise CorpusError(f"{name} at {start or 0:g} s is in {os.path.basename(first)} already; remove one row")
            lines[name, start or 0.0] = line
            yield rules.utterance(
                name,
                path,
                found["label"],
                found.get("speaker"),
                found.get("split"),
                start or 0.0,
                _number(used, found, "duration"),
                columns=[(column, row[column]) for column in kept],
            )
    if not lines:
        raise CorpusError(f"{table} has no rows below its first line")


def read(table: Path) -> tuple[Sequence[str], Rows]:
    """Column names of a table, and its rows: where each ends (file and line), and its values by column.

    CorpusError for a file that is missing, empty or not text, and for a row with more or fewer values than names.
    """
    try:
        content = table.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorpusError(f"{table} is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise CorpusError(
            f"{table} cannot be read ({error.strerror}); data_path must name a CSV or TSV file"
        ) from error
    if not content.strip():
        raise CorpusError(f"{table} is empty; its first line must name the columns")
    if table.suffix.lower() in (".tsv", ".tab"):
        form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
    else:
        form = {"delimiter": max(DELIMITERS, key=content.partition("\n")[0].count)}
    reader = csv.reader(io.StringIO(content), strict=True, **form)
    header = [name.strip() for name in next(reader)]
    if twice := {name for name in header if name and header.count(name) > 1}:
        raise CorpusError(f"{table} has two columns named {min(twice)!r}; rename one")
    return header, _rows(table, header, reader)


def _rows(table: Path, header: Sequence[str], reader: Any) -> Rows:
    try:
        for values in reader:
            where = f"{table}, line {reader.line_num}"
            if len(values) != len(header) and any(values):
                raise CorpusError(f"{where} has {len(values)} values, but there are {len(header)} columns")
            if any(values):  # not a blank line
                yield where, dict(zip(header, values, strict=True))
    except csv.Error as error:
        raise CorpusError(
            f"{table}, line {reader.line_num} cannot be read: {error}; are the quotes balanced?"
        ) from error


def _used_columns(header: Sequence[str], named: Mapping[str, str | None]) -> dict[str, str]:
    """The column for each purpose; those that are neither named nor there are left out."""
    used = {purpose: column or purpose for purpose, column in named.items() if column or purpose in header}
    for purpose, column in used.items():
        if column not in header:
            raise CorpusError(
                f"the setting {purpose} is {column!r}, but there is no such column; "
                f"the first line has: {', '.join(header)}"
            )
    return used


def _kept_columns(header: Sequence[str], used: Mapping[str, str], columns: Sequence[str] | None) -> list[str]:
    if columns is None:
        return [name for name in header if name and name not in used.values()]
    if isinstance(columns, str) or (missing := [name for name in columns if name not in header]):
        wrong = columns if isinstance(columns, str) else missing[0]
        raise CorpusError(f"the setting columns has {wrong!r}; give a list of some of: {', '.join(header)}")
    return list(columns)


def _number(used: Mapping[str, str], found: Mapping[str, str], what: str) -> float | None:
    """Seconds in the column for `what`; None where there is none, or nothing in it."""
    if not (written := found.get(what, "").strip()):
        return None
    try:
        return float(written)
    except ValueError:
        raise CorpusError(f"{used[what]} is {written!r}, which is not a number of seconds, such as 1.5") from None
