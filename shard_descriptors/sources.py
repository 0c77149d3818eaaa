"""Which recordings to use: the one list of sources, each a module with a function `load`."""

import importlib
import inspect
import os
from pathlib import Path
from typing import Any

from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.synthetic import default_corpus

SOURCES = {
    "speech_commands": "the official archives, or synthetic speech in their place",
    "folder": "a folder whose file names say what is spoken, and by whom",
    "table": "a CSV or TSV file that lists the recordings",
    "hugging_face": "a data set in the form of Hugging Face `datasets`",
}
"""Sources by name; `shard_descriptors.<name>.load(data_path, **settings)` gives the corpus."""


def open_corpus(source: str = "speech_commands", data_path: Path | str | None = None, **settings: Any) -> Corpus:
    """The corpus of a source. No audio is decoded.

    data_path: where the recordings lie; for "speech_commands" it may be left out (see `resolve_corpus`).
    settings: what the source's own `load` takes.

    CorpusError for a source or a setting that does not exist, and for recordings that cannot be used.
    """
    if source not in SOURCES:
        raise CorpusError(f"source is {source!r}; allowed: {', '.join(SOURCES)}")
    load = importlib.import_module(f"shard_descriptors.{source}").load
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

    An empty string counts as not given. The synthetic corpus is made on first use.
    CorpusError for a folder that does not exist.
    """
    for given, source in ((data_path, "data_path"), (os.environ.get("DATA"), "DATA")):
        if given:
            root = Path(given).expanduser()
            if not root.is_dir():
                raise CorpusError(
                    f"{source} is {given}, which is not a folder; give the folder that holds "
                    "speech_commands_v0.01, or leave it out to use synthetic speech"
                )
            return root.resolve()
    return default_corpus()
