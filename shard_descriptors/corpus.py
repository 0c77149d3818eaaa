"""Which recordings to use: a given folder, the folder in the environment, or synthetic speech."""

import os
from pathlib import Path

from shard_descriptors.speech_commands import CorpusError
from shard_descriptors.synthetic import SETTINGS_FILE, default_corpus

SYNTHETIC = "synthetic"
"""The name of every corpus that was made by espeak-ng."""


def resolve_corpus(data_path: Path | str | None = None) -> Path:
    """Folder of the corpus: `data_path`, else the environment's DATA, else synthetic speech.

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


def corpus_name(root: Path | str) -> str:
    """`synthetic` for a synthetic corpus, else the folder's name. For titles and records."""
    root = Path(root)
    return SYNTHETIC if (root / SETTINGS_FILE).is_file() else root.resolve().name
