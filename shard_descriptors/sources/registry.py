"""Which recordings to use: the one list of sources, each a module with a function `load`."""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.sources import archives
from shard_descriptors.sources.synthetic import default_corpus

SOURCES = {
    "speech_commands": "the official archives, or synthetic speech in their place",
    "folder": "a folder whose file names say what is spoken, and by whom",
    "table": "a CSV or TSV file that lists the recordings",
    "hugging_face": "a data set in the form of Hugging Face `datasets`",
}
"""Sources by name; `shard_descriptors.sources.<name>.load(data_path, **settings)` gives the corpus."""

DOWNLOAD = "download"
"""In place of a path: get the official archives from where they are published."""


def open_corpus(source: str = "speech_commands", data_path: Path | str | None = None, **settings: Any) -> Corpus:
    """The corpus of a source. No audio is decoded.

    data_path: where the recordings lie; for "speech_commands" it may be left out (see `resolve_corpus`).
    settings: what the source's own `load` takes.

    CorpusError for a source or a setting that does not exist, and for recordings that cannot be used.
    """
    if source not in SOURCES:
        raise CorpusError(f"source is {source!r}; allowed: {', '.join(SOURCES)}")
    load = importlib.import_module(f"shard_descriptors.sources.{source}").load
    allowed = list(inspect.signature(load).parameters)[1:]
    if wrong := sorted(settings.keys() - set(allowed)):
        raise CorpusError(f"the source {source} has no setting {wrong[0]!r}; allowed: {', '.join(allowed) or 'none'}")
    if source == "speech_commands":
        data_path = resolve_corpus(data_path)
    elif not data_path:
        raise CorpusError(f"the source {source} needs data_path: where the recordings lie")
    corpus: Corpus = load(data_path, **settings)
    return corpus


def resolve_corpus(data_path: Path | str | None = None) -> Path:
    """Folder of Speech Commands: `data_path`, else the environment's DATA, else synthetic speech.

    Either names a folder that holds the two official archives, unpacked or as tarballs; one of the tarballs; or is
    "download", which gets them. Tarballs are unpacked into the cache, on first use, as the synthetic corpus is made.
    An empty string counts as not given.

    CorpusError for a path that does not exist, and for archives that cannot be used, downloaded or unpacked.
    """
    for given, source in ((data_path, "data_path"), (os.environ.get("DATA"), "DATA")):
        if given:
            return archives.downloaded() if str(given) == DOWNLOAD else _unpacked(given, source)
    return default_corpus()


def _unpacked(given: Path | str, source: str) -> Path:
    path = Path(given).expanduser()
    tarballs = [archive.filename for archive in archives.ARCHIVES]
    if not path.is_dir() and not (path.is_file() and path.name in tarballs):
        raise CorpusError(
            f"{source} is {given}, which is not a folder, nor one of {' and '.join(tarballs)}; give the folder that "
            f'holds them, unpacked or not, or "{DOWNLOAD}" to get them, or leave it out to use synthetic speech'
        )
    return archives.unpacked(path).resolve()
