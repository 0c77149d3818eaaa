"""Any folder of recordings: the pattern says who speaks; every bad file is named."""

import os
import shutil
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from recordings import as_float, sound, speech_folder, write

from shard_descriptors.clips.audio import AudioError
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources.folder import load
from shard_descriptors.sources.registry import open_corpus


def test_as_recorded(tmp_path: Path) -> None:
    corpus = open_corpus("folder", speech_folder(tmp_path / "house"))
    assert corpus.name == "house"
    assert corpus.format.labels == ("no", "yes")
    assert len(corpus.utterances) == 40
    assert len({(u.speaker, u.split) for u in corpus.utterances}) == 20  # nobody is in two splits
    number = next(i for i, u in enumerate(corpus.utterances) if u.name == "no/s3_0.wav")
    assert corpus.utterances[number].speaker == "s3"
    np.testing.assert_array_equal(ClipSet(corpus.utterances, corpus.format).read([number])[0], as_float(sound(7)))


def test_files_of_every_kind(tmp_path: Path) -> None:
    samples = sound(0)
    write(tmp_path / "yes" / "a_mono.wav", samples)
    write(tmp_path / "yes" / "a_stereo.WAV", np.stack([samples, samples], axis=1))
    write(tmp_path / "yes" / "a_flac.flac", samples)
    write(tmp_path / "no" / "a_8bit.wav", samples, subtype="PCM_U8")
    write(tmp_path / "no" / "a_44100.wav", sound(1, 44_100), 44_100)
    write(tmp_path / "no" / "a_ogg.ogg", samples)
    write(tmp_path / "no" / "a_mp3.mp3", samples)
    (tmp_path / "no" / "._a_mono.wav").write_bytes(b"left behind by macOS")
    (tmp_path / "no" / "notes.txt").write_text("not a recording")
    write(tmp_path / ".trash" / "b_0.wav", samples)
    corpus = load(tmp_path)
    clips = dict(
        zip([u.name for u in corpus.utterances], ClipSet(corpus.utterances, corpus.format).read(range(7)), strict=True)
    )
    for name in ("yes/a_mono.wav", "yes/a_stereo.WAV", "yes/a_flac.flac"):
        np.testing.assert_array_equal(clips[name], as_float(samples))
    np.testing.assert_allclose(clips["no/a_8bit.wav"], as_float(samples), atol=1 / 127)
    assert all(np.abs(clips[name]).max() > 0.1 for name in ("no/a_44100.wav", "no/a_ogg.ogg", "no/a_mp3.mp3"))


def test_any_length_and_rate(tmp_path: Path) -> None:
    write(tmp_path / "yes" / "a_0.wav", sound(0, 8_000), 8_000)
    write(tmp_path / "no" / "a_0.wav", sound(1, 8_000), 8_000)
    corpus = load(tmp_path, sample_rate=8_000, clip_seconds=2.5)
    clip = ClipSet(corpus.utterances, corpus.format).read([0])[0]
    assert clip.shape == (20_000,)
    np.testing.assert_array_equal(clip[:8_000], as_float(sound(1, 8_000)))
    assert not clip[8_000:].any()


def test_other_words(tmp_path: Path) -> None:
    corpus = load(speech_folder(tmp_path, 2, ("où", "là", "тест")), labels=["là", "où"], other="autre")
    assert corpus.format.labels == ("là", "où", "autre")
    assert sum(u.label == "autre" for u in corpus.utterances) == 2


def test_accents_as_macos_writes_them(tmp_path: Path) -> None:
    for number, form in enumerate(("NFC", "NFD")):
        write(
            tmp_path
            / unicodedata.normalize(form, "où")
            / f"é{number}_0.wav".replace("é", unicodedata.normalize(form, "é")),
            sound(0),
        )
    corpus = load(tmp_path, pattern="(?P<label>où)/(?P<speaker>é.)_.*", labels=["où", "là"])
    assert {(u.label, u.speaker) for u in corpus.utterances} == {("où", "é0"), ("où", "é1")}
    assert ClipSet(corpus.utterances, corpus.format).read([0, 1]).any(axis=1).all()


def test_split_and_columns_from_the_name(tmp_path: Path) -> None:
    write(tmp_path / "dev" / "ada" / "welsh" / "yes.wav", sound(0))
    write(tmp_path / "test" / "bob" / "scots" / "no.wav", sound(0))
    corpus = load(tmp_path, pattern="(?P<split>[^/]+)/(?P<speaker>[^/]+)/(?P<accent>[^/]+)/(?P<label>[^/]+)")
    assert [(u.split, u.speaker, u.column("accent"), u.label) for u in corpus.utterances] == [
        ("validation", "ada", "welsh", "yes"),
        ("test", "bob", "scots", "no"),
    ]
    (tmp_path / "dev").rename(tmp_path / "rest")
    with pytest.raises(CorpusError, match=r"yes\.wav: split is 'rest'; allowed"):
        load(tmp_path, pattern="(?P<split>[^/]+)/(?P<speaker>[^/]+)/(?P<accent>[^/]+)/(?P<label>[^/]+)")


def test_without_speakers(tmp_path: Path) -> None:
    corpus = load(speech_folder(tmp_path, 60), pattern="(?P<label>[^/]+)/.*")
    assert {u.speaker for u in corpus.utterances} == {None}
    assert {u.split for u in corpus.utterances} == {"train", "validation", "test"}


def test_the_place_and_the_order_do_not_matter(tmp_path: Path) -> None:
    here, there = speech_folder(tmp_path / "a" / "house"), tmp_path / "b" / "house"
    for path in sorted(here.rglob("*.wav"), reverse=True):
        (there / path.relative_to(here)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, there / path.relative_to(here))
    rows = [[(u.name, u.label, u.speaker, u.split) for u in load(root).utterances] for root in (here, there)]
    assert rows[0] == rows[1]


def test_file_that_does_not_match(tmp_path: Path) -> None:
    speech_folder(tmp_path)
    write(tmp_path / "yes" / "nobody.wav", sound(0))
    with pytest.raises(CorpusError, match=r"yes/nobody\.wav does not match the pattern .*; rename or remove"):
        load(tmp_path)
    write(tmp_path / "top.wav", sound(0))
    with pytest.raises(CorpusError, match=r"top\.wav \(and 1 others\) does not match"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [("(?P<label>", "which is not a regular expression"), ("(?P<speaker>.*)", r"needs a group \(\?P<label>")],
)
def test_wrong_pattern(tmp_path: Path, pattern: str, problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        load(tmp_path, pattern=pattern)


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"data_path is .*gone, which is not a folder"):
        load(tmp_path / "gone")
    with pytest.raises(CorpusError, match=r"holds no recordings; looked for .*\.wav"):
        load(tmp_path)
    write(tmp_path / "yes" / "a_0.wav", sound(0))
    with pytest.raises(CorpusError, match=r"labels are \['yes'\]; a classifier needs two"):
        load(tmp_path)
    with pytest.raises(CorpusError, match=r"yes/a_0\.wav: the label 'yes' is not known; allowed: on, off"):
        load(tmp_path, labels=["on", "off"])
    os.rename(tmp_path / "yes" / "a_0.wav", os.fsencode(tmp_path) + b"/yes/\xff_0.wav")
    with pytest.raises(CorpusError, match=r"is not UTF-8; rename the file"):
        load(tmp_path)


@pytest.mark.parametrize(("content", "problem"), [(b"no sound", "cannot be read as audio"), (None, "holds no samples")])
def test_bad_audio_is_named_when_it_is_read(tmp_path: Path, content: bytes | None, problem: str) -> None:
    path = write(tmp_path / "yes" / "a_0.wav", np.zeros(0, np.int16))
    write(tmp_path / "no" / "a_0.wav", sound(0))
    if content is not None:
        path.write_bytes(content)
    corpus = load(tmp_path)
    with pytest.raises(AudioError, match=rf"yes/a_0\.wav {problem}"):
        ClipSet(corpus.utterances, corpus.format).read([0, 1])


def test_settings_that_do_not_exist(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"the source folder has no setting 'patern'; allowed: pattern, labels"):
        open_corpus("folder", tmp_path, patern=".*")
    with pytest.raises(CorpusError, match="the source folder needs data_path"):
        open_corpus("folder")
