"""A given folder comes first, then DATA, then synthetic speech."""

from pathlib import Path

import pytest

from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources import registry as sources


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


def test_silence_is_a_setting(tiny_corpus: Path) -> None:
    noise = [u for u in sources.open_corpus(data_path=tiny_corpus, silence="files").utterances if u.speaker is None]
    assert sorted(u.num_samples for u in noise if u.split == "train") == [6 * 16_000] * 6
    with pytest.raises(CorpusError, match=r"no setting 'quiet'; allowed: silence"):
        sources.open_corpus(data_path=tiny_corpus, quiet=True)


def test_a_folder_called_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "download").mkdir()
    monkeypatch.chdir(tmp_path)
    assert sources.resolve_corpus("./download") == tmp_path / "download"
