"""A given folder comes first, then DATA, then synthetic speech."""

from pathlib import Path

import pytest

from shard_descriptors import sources
from shard_descriptors.corpus import CorpusError


def test_given_folder_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, data = tmp_path / "given", tmp_path / "data"
    given.mkdir()
    data.mkdir()
    monkeypatch.setenv("DATA", str(data))
    assert sources.resolve_corpus(str(given)) == given
    assert sources.resolve_corpus() == data
    assert sources.resolve_corpus("") == data


def test_synthetic_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "default_corpus", lambda: tmp_path)
    monkeypatch.delenv("DATA", raising=False)
    assert sources.resolve_corpus() == tmp_path
    monkeypatch.setenv("DATA", "")
    assert sources.resolve_corpus(None) == tmp_path


def test_folder_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CorpusError, match=r"data_path is .*gone, which is not a folder"):
        sources.resolve_corpus(str(tmp_path / "gone"))
    monkeypatch.setenv("DATA", str(tmp_path / "lost"))
    with pytest.raises(CorpusError, match=r"DATA is .*lost, which is not a folder"):
        sources.resolve_corpus()


def test_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "recordings").mkdir()
    assert sources.resolve_corpus("~/recordings") == tmp_path / "recordings"
