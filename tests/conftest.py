"""Corpora that several tests share."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from corpora import BESIDE_THE_REPO, TINY

from shard_descriptors.sources.synthetic import make_corpus


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What tests keep, they do not keep in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KWS_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic corpus: 12 train, 4 validation and 4 test speakers."""
    root = tmp_path_factory.mktemp("tiny") / "corpus"
    make_corpus(root, TINY)
    return root


@pytest.fixture(scope="session")
def real_corpus() -> Path:
    """A folder of real recordings in the official layout: DATA, or one beside the repository."""
    for root in (os.environ.get("DATA"), BESIDE_THE_REPO / "speech_commands_mini"):
        if root and Path(root).is_dir():
            return Path(root)
    pytest.skip("no real recordings: set DATA to a folder that holds speech_commands_v0.01")
