"""A data set in the form of Hugging Face `datasets`: saved to disk, parquet files, or by its name on the hub.

`datasets` is imported in the functions that need it: that takes a second.
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from shard_descriptors.clips.audio import arrow_rows, audio_columns
from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.sources import table
from shard_descriptors.sources.rules import Rules, about, split_named, text
from shard_descriptors.utterances import Utterance

SPEAKER = "speaker_id"  # the column that most sets have
METADATA = "metadata.csv"  # lists the files of an "audiofolder"


def load(
    data_path: Path | str,
    audio: str = "audio",
    label: str = "label",
    speaker: str | None = None,
    splits: Sequence[str] | None = None,
    config: str | None = None,
    columns: Sequence[str] | None = None,
    labels: Sequence[str] | None = None,
    other: str | None = None,
    sample_rate: int = 16_000,
    clip_seconds: float = 1.0,
    validation_percent: float = 10,
    test_percent: float = 10,
) -> Corpus:
    """The recordings of a data set. No audio is decoded.

    data_path: a folder made by `save_to_disk`, one of parquet files, one of recordings with a `metadata.csv`, or a
        name on the hub. Parquet files are unpacked once, into the cache of `datasets`.
    audio, label: names of the columns with the recording and with what is spoken.
    speaker: name of the column that says who speaks; None: `speaker_id`, if there is one.
    splits: those of the set to use; None: all. Their names must be in `sources.rules.SPLIT_NAMES`. If it is only one, a
        speaker's hash decides the split; without the speaker that of each recording's name, and a speaker will then
        be in several splits: scores flatter.
    config: which of a set's configurations, where it has several.
    columns: other columns to keep, such as an accent; None: all of text and whole numbers.
    The other settings are those of `Rules`. Without `labels` they are the names of a ClassLabel in its order, or else
    the strings found, sorted; every site of a federation must find the same.

    CorpusError for a set that cannot be opened, for a script, for a column that is missing or of another kind, for
    labels without names, and for a row that cannot be used.
    """
    rules = Rules(labels, other, sample_rate, clip_seconds, validation_percent, test_percent)
    folder = Path(data_path).expanduser()
    root = folder.resolve()
    name = root.name if folder.exists() else str(data_path)
    if tables := _metadata(root):
        used = _chosen(name, tables, splits)
        return rules.corpus(name, _listed(rules, root, used, label, speaker, columns))
    sets = _chosen(name, _opened(data_path, config), splits)
    return corpus_of(name, sets, rules, Columns(audio, label, speaker, columns), root)


@dataclass(frozen=True)
class Columns:
    """Names of a set's columns, as in `load`."""

    audio: str = "audio"
    label: str = "label"
    speaker: str | None = None
    others: Sequence[str] | None = None


def corpus_of(name: str, sets: Mapping[str, Any], rules: Rules, columns: Columns, root: Path) -> Corpus:
    """The corpus of one or several `datasets.Dataset`, by the names of their splits. CorpusError as in `load`.

    root: what relative paths of audio files begin at.
    """
    rows: list[Utterance] = []
    for split, dataset in sets.items():
        with about(f"{name}, split {split}"):
            given = None if len(sets) == 1 else split_named(split)
            rows.extend(_utterances(rules, split, given, dataset, columns, root))
    names = getattr(next(iter(sets.values())).features[columns.label], "names", None) if rows else None
    return rules.corpus(name, rows, names and [text(each) for each in names])


def _utterances(
    rules: Rules, name: str, split: str | None, dataset: Any, columns: Columns, root: Path
) -> Iterator[Utterance]:
    """The utterances of one split; `name` is the split's name in the set, `split` ours."""
    speaker = columns.speaker or SPEAKER
    used = _used_columns(dataset.features, columns)
    paths, embedded = _audio(dataset, columns.audio)
    place = _rows_of_files(dataset, columns.audio) if any(embedded) else None
    values = {column: _texts(dataset, column) for column in (columns.label, *used)}
    # `select` and `shuffle` leave the rows where they are, and list their numbers; there is no public way to that list.
    listed = range(len(paths)) if dataset._indices is None else dataset._indices.column(0).to_pylist()
    for row in listed:
        with about(f"row {row}"):
            if embedded[row] and place:
                recording, path, file_row = f"{name}/{row}", *place(row)
            else:
                recording, path, file_row = *_file(root, paths[row], f"{name}/{row}"), None
            yield rules.utterance(
                recording,
                path,
                values[columns.label][row] or "",
                values[speaker][row] if speaker in values else None,
                split,
                row=file_row,
                columns=[(column, values[column][row] or "") for column in used if column != speaker],
            )


def _used_columns(features: Mapping[str, Any], columns: Columns) -> list[str]:
    """Columns to keep beside audio and label, the speaker's among them; CorpusError for those that cannot be used."""
    others = [] if columns.others is None else list(columns.others)
    for column in (columns.audio, columns.label, *filter(None, [columns.speaker]), *others):
        if column not in features:
            raise CorpusError(f"there is no column {column!r}; the set has: {', '.join(features)}")
    if not hasattr(features[columns.label], "names") and not _is_text(features[columns.label]):
        raise CorpusError(
            f"the column {columns.label} is {features[columns.label]}, and holds no names; give the numbers names with "
            f"cast_column({columns.label!r}, ClassLabel(names=[...])) and save the set again, or take another column"
        )
    if columns.others is None:
        others = [column for column, feature in features.items() if _is_plain(feature)]
    speaker = columns.speaker or SPEAKER
    wanted = dict.fromkeys([*others, *([speaker] if speaker in features else [])])
    return [column for column in wanted if column not in (columns.audio, columns.label)]


def _is_text(feature: Any) -> bool:
    return getattr(feature, "dtype", None) in ("string", "large_string")


def _is_plain(feature: Any) -> bool:
    """Text, names and whole numbers: what people may be told apart by."""
    return _is_text(feature) or getattr(feature, "dtype", "").startswith(("int", "uint", "bool"))


def _texts(dataset: Any, column: str) -> list[str | None]:
    """A column's values as text, for all rows of the files; None where there is nothing."""
    names = getattr(dataset.features[column], "names", None)
    values = dataset.data.column(column).to_pylist()
    if names:
        return [names[value] if value is not None and value >= 0 else None for value in values]
    return [None if value is None else str(value) for value in values]


def _audio(dataset: Any, column: str) -> tuple[list[str | None], list[bool]]:
    """For all rows of the files: the path of the audio file, and whether the row holds the file itself."""
    import pyarrow.compute as pc

    feature, data = dataset.features[column], dataset.data.column(column)
    if _is_text(feature):
        return data.to_pylist(), [False] * len(data)
    if column not in audio_columns(dataset.data.schema):
        raise CorpusError(f"the column {column} is {feature}; allowed: Audio, or text with the paths of audio files")
    return pc.struct_field(data, "path").to_pylist(), pc.struct_field(data, "bytes").is_valid().to_pylist()


def _rows_of_files(dataset: Any, column: str) -> Callable[[int], tuple[str, int]]:
    """Where each row lies: Arrow file, and row of it."""
    from datasets.table import list_table_cache_files

    if len(found := audio_columns(dataset.data.schema)) > 1:
        raise CorpusError(
            f"there are several columns of files: {', '.join(found)}; save the set again with {column} alone"
        )
    files = list_table_cache_files(dataset.data)
    ends = list(accumulate(len(arrow_rows(file)) for file in files))
    if not ends or ends[-1] != dataset.data.num_rows:
        raise CorpusError("its rows are not those of its files; save the set with save_to_disk and use that folder")

    def place(row: int) -> tuple[str, int]:
        number = bisect_right(ends, row)
        return files[number], row - (ends[number - 1] if number else 0)

    return place


def _file(root: Path, path: str | None, number: str) -> tuple[str, str]:
    """Name and path of an audio file beside the set; its name is `number` where it lies elsewhere."""
    if not path:
        raise CorpusError("there is no audio; remove the row")
    full = os.path.normpath(os.path.join(root, path))
    if not os.path.isfile(full):
        raise CorpusError(
            f"{full} is not a file; bring it there, or have the set saved as parquet, which holds the files"
        )
    return (os.path.relpath(full, root) if Path(full).is_relative_to(root) else number), full


def _metadata(root: Path) -> dict[str, Path]:
    """The tables of a folder of recordings, by split: one for all, or one in each split's folder."""
    if (root / METADATA).is_file():
        return {"train": root / METADATA}
    return {path.parent.name: path for path in sorted(root.glob(f"*/{METADATA}"))}


def _listed(
    rules: Rules,
    root: Path,
    tables: Mapping[str, Path],
    label: str,
    speaker: str | None,
    columns: Sequence[str] | None,
) -> Iterator[Utterance]:
    """The utterances of a folder with metadata. `datasets` would want a decoder for it that we do not need."""
    for split, path in tables.items():
        if speaker is None and SPEAKER in table.read(path)[0]:
            speaker = SPEAKER
        named = {"audio": "file_name", "label": label, "speaker": speaker, "split": None}
        with about(str(path)):
            given = None if len(tables) == 1 else split_named(split)
        for found in table.utterances(rules, path, path.parent, named, columns):
            name = found.name if path.parent == root else f"{split}/{found.name}"
            yield replace(found, name=name, split=given or found.split)


def _opened(data_path: Path | str, config: str | None) -> dict[str, Any]:
    """The `datasets.Dataset` of each split, memory-mapped."""
    import datasets

    folder = Path(data_path).expanduser()
    if folder.is_file() and folder.suffix != ".py":
        raise CorpusError(f"{folder} is a file; give the folder that holds the data set")
    if str(data_path).startswith(("/", ".", "~")) and not folder.exists():
        raise CorpusError(
            f"data_path is {data_path}, which is not a folder; give that of the data set, or its hub name"
        )
    try:
        if any((folder / made).is_file() for made in ("dataset_dict.json", "state.json")):
            sets = datasets.load_from_disk(str(folder), keep_in_memory=False)
        else:
            sets = datasets.load_dataset(str(folder), name=config, keep_in_memory=False)
    except Exception as error:  # there is hardly a kind that is not raised
        raise CorpusError(_why(folder, error)) from error
    return dict(sets) if isinstance(sets, datasets.DatasetDict) else {"train": sets}


def _why(folder: Path, error: Exception) -> str:
    """What to do about a data set that cannot be opened."""
    cause = error.__cause__ or error
    problem = " ".join(str(cause).split())
    if "scripts are no longer supported" in problem or any(folder.glob("*.py")):
        return (
            f"{folder} is made by a script, and `datasets` 4 runs none ({problem}); let whoever trusts the script save "
            f"the set as parquet with `datasets` 3 (to_parquet), or take its recordings with the source folder or table"
        )
    if isinstance(cause, ImportError):
        return f"{folder} holds audio files, but no {METADATA}; take them with the source folder or table"
    if folder.exists():
        return (
            f"{folder} cannot be opened as a data set ({problem}); allowed: a folder made by save_to_disk, one of "
            f"parquet files, one of audio files with {METADATA}"
        )
    return (
        f"{folder} is not a folder here, and cannot be had from the Hugging Face hub ({problem}); on a machine that "
        f"can: hf download {folder} --repo-type dataset --local-dir FOLDER; bring FOLDER here and give it as data_path"
    )


def _chosen(name: str, sets: Mapping[str, Any], splits: Sequence[str] | None) -> dict[str, Any]:
    if splits is None:
        return dict(sets)
    if isinstance(splits, str) or not splits or not set(splits) <= sets.keys():
        raise CorpusError(f"{name}: splits is {splits!r}; give a list of some of: {', '.join(sets)}")
    return {split: sets[split] for split in splits}
