"""Tables of recordings: every column by its setting, every bad row by its line."""

import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recordings import as_float, sound, speech_folder, write

from shard_descriptors.clips.audio import AudioError
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources.registry import open_corpus
from shard_descriptors.sources.table import load

HEADER = "path,label,speaker\n"


def table(folder: Path, content: str, name: str = "house.csv", encoding: str = "utf-8") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode(encoding))
    return folder / name


@pytest.fixture
def house(tmp_path: Path) -> Path:
    """Recordings a.wav and b.wav."""
    write(tmp_path / "a.wav", sound(0))
    write(tmp_path / "b.wav", sound(1))
    return tmp_path


def listed(house: Path, numbers: list[int]) -> Path:
    lines = [
        f"{'yes' if i % 2 == 0 else 'no'}/s{i // 2}_0.wav,{'yes' if i % 2 == 0 else 'no'},s{i // 2}\n" for i in numbers
    ]
    return table(house, HEADER + "".join(lines))


def test_as_recorded(tmp_path: Path) -> None:
    corpus = open_corpus("table", listed(speech_folder(tmp_path), list(range(40))))
    assert corpus.name == "house"
    assert corpus.format.labels == ("no", "yes")
    assert len({(u.speaker, u.split) for u in corpus.utterances}) == 20  # nobody is in two splits
    number = next(i for i, u in enumerate(corpus.utterances) if u.name == "yes/s3_0.wav")
    np.testing.assert_array_equal(ClipSet(corpus.utterances, corpus.format).read([number])[0], as_float(sound(6)))


def test_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    numbers = list(range(40))
    corpora = [load(listed(speech_folder(tmp_path), random.Random(seed).sample(numbers, 40))) for seed in range(3)]
    assert corpora[0] == corpora[1] == corpora[2]


def test_parts_of_a_longer_recording(tmp_path: Path) -> None:
    samples = sound(0, 88_200)
    write(tmp_path / "long.wav", samples, 22_050)
    rows = "long.wav,a,x,train,0.5,1\nlong.wav,b,x,dev,2.25,\nlong.wav,a,x,test,,1.5\n"
    corpus = load(table(tmp_path, "path,label,speaker,split,start,duration\n" + rows), sample_rate=22_050)
    assert [(u.split, u.start, u.num_samples) for u in corpus.utterances] == [
        ("train", 11_025, 22_050),
        ("validation", round(2.25 * 22_050), None),
        ("test", 0, 33_075),
    ]
    clips = ClipSet(corpus.utterances, corpus.format).read([0, 1])
    for clip, utterance in zip(clips, corpus.utterances, strict=False):
        np.testing.assert_array_equal(clip, as_float(samples)[utterance.start : utterance.start + 22_050])


def test_as_common_voice_has_it(tmp_path: Path) -> None:
    write(tmp_path / "clips" / "common_voice_1.mp3", sound(0))
    write(tmp_path / "clips" / "common_voice_2.mp3", sound(1))
    content = (
        "client_id\tpath\tsentence\tup_votes\taccents\n"
        '0a\tcommon_voice_1.mp3\t"Où\t2\tSuisse, \u2028romande\n'  # one quote, and what some take for a new line
        "1b\tcommon_voice_2.mp3\tlà\t3\t\n"
    )
    settings = {"label": "sentence", "speaker": "client_id", "audio_folder": "clips", "columns": ["accents"]}
    corpus = open_corpus("table", table(tmp_path, content, "validated.tsv"), **settings)
    assert corpus.format.labels == ('"Où', "là")
    rows = {u.name: u for u in corpus.utterances}
    assert rows["common_voice_1.mp3"].columns == (("accents", "Suisse, \u2028romande"),)
    assert rows["common_voice_1.mp3"].speaker == "0a"
    assert rows["common_voice_2.mp3"].columns == ()
    assert ClipSet(corpus.utterances, corpus.format).read([0, 1]).any(axis=1).all()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_as_spreadsheets_save_it(house: Path, delimiter: str) -> None:
    lines = ["path,label,accent", 'a.wav,"yes",Zürich', "", "b.wav,no,Genève", ",,"]
    content = "\r\n".join(lines).replace(",", delimiter)
    corpus = load(table(house, content, encoding="utf-8-sig"))
    assert [(u.label, u.column("accent"), u.speaker) for u in corpus.utterances] == [
        ("yes", "Zürich", None),
        ("no", "Genève", None),
    ]


def test_paths(house: Path, tmp_path: Path) -> None:
    elsewhere = table(tmp_path / "lists", f"path,label\n{house / 'a.wav'},yes\n../b.wav,no\n")
    assert {Path(u.path).resolve() for u in load(elsewhere).utterances} == {house / "a.wav", house / "b.wav"}
    given = table(tmp_path / "lists", "path,label\n./a.wav,yes\nb.wav,no\n")
    assert [u.name for u in load(given, audio_folder=house).utterances] == ["a.wav", "b.wav"]
    with pytest.raises(CorpusError, match=r"gone, which is not a folder"):
        load(given, audio_folder="gone")


@pytest.mark.parametrize(
    ("rows", "settings", "problem"),
    [
        ("a.wav,yes,ada\ngone.wav,no,ada\n", {}, r"house\.csv, line 3: .*gone\.wav is not a file"),
        ("a.wav,,ada\n", {}, r"line 2: the label is empty"),
        (",yes,ada\n", {}, r"line 2: the column path is empty"),
        ("a.wav,maybe,ada\n", {"labels": ["yes", "no"]}, r"line 2: the label 'maybe' is not known; allowed: yes, no"),
        ("a.wav,yes,ada\na.wav,no,ada\n", {}, r"line 3: a\.wav at 0 s is in house\.csv, line 2 already"),
        ("a.wav,yes,ada\n./a.wav,no,ada\n", {}, r"line 3: a\.wav at 0 s is in house\.csv, line 2 already"),
        ("a.wav,yes\n", {}, r"line 2 has 2 values, but there are 3 columns"),
        ("a.wav,yes,ada,more\n", {}, r"line 2 has 4 values"),
        ('a.wav,yes,"ada\nb.wav,no,bob\n', {}, r"cannot be read: .*; are the quotes balanced"),
        ("a.wav,yes,1 s\n", {"start": "speaker"}, r"line 2: speaker is '1 s', which is not a number of seconds"),
        ("a.wav,yes,-1\n", {"start": "speaker"}, r"line 2: start is -1; allowed: seconds, 0 and more"),
        ("a.wav,yes,inf\n", {"duration": "speaker"}, r"line 2: duration is inf"),
        ("a.wav,yes,0\n", {"duration": "speaker"}, r"line 2: duration is 0 s, which is less than a sample"),
        ("a.wav,yes,\n", {"split": "speaker"}, r"line 2: split is ''; allowed: train, validation, test"),
        ("", {}, r"house\.csv has no rows below its first line"),
        ("a.wav,yes,ada\n", {"speaker": "who"}, r"the setting speaker is 'who', .* has: path, label, speaker"),
        ("a.wav,yes,ada\n", {"audio": "file"}, r"the setting audio is 'file', but there is no such column"),
        ("a.wav,yes,ada\n", {"columns": ["accent"]}, r"the setting columns has 'accent'; give a list of some of: path"),
        ("a.wav,yes,ada\n", {"columns": "label"}, r"the setting columns has 'label'; give a list"),
    ],
)
def test_bad_rows_are_named(house: Path, rows: str, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        load(table(house, HEADER + rows), **settings)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", r"house\.csv is empty; its first line must name the columns"),
        (b"\n\n", r"house\.csv is empty"),
        (b"a.wav,yes,ada\nb.wav,no,bob\n", r"the setting audio is 'path', .* the first line has: a\.wav, yes, ada"),
        (b"path,label,label\n", r"has two columns named 'label'"),
        ("path,label\nä.wav,yes\n".encode("latin-1"), r"house\.csv is not UTF-8 \(.* at byte 11\); save it as UTF-8"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "house.csv").write_bytes(content)
    with pytest.raises(CorpusError, match=problem):
        load(tmp_path / "house.csv")


def test_no_table(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"gone\.csv cannot be read \(No such file.*data_path must name"):
        load(tmp_path / "gone.csv")
    with pytest.raises(CorpusError, match=r"cannot be read \(Is a directory"):
        load(tmp_path)
    with pytest.raises(
        CorpusError, match=r"the source table has no setting 'speakers'; allowed: audio, label, speaker"
    ):
        open_corpus("table", tmp_path, speakers="who")


@pytest.mark.parametrize(("content", "problem"), [(b"no sound", "cannot be read as audio"), (None, "holds no samples")])
def test_bad_audio_is_named_when_it_is_read(house: Path, content: bytes | None, problem: str) -> None:
    path = write(house / "a.wav", np.zeros(0, np.int16))
    if content is not None:
        path.write_bytes(content)
    corpus = load(table(house, HEADER + "a.wav,yes,ada\nb.wav,no,ada\n"))
    with pytest.raises(AudioError, match=rf"a\.wav {problem}"):
        ClipSet(corpus.utterances, corpus.format).read([0, 1])


def test_twenty_thousand_rows(house: Path) -> None:
    names = [f"clips/{i}.wav" for i in range(20_000)]
    (house / "clips").mkdir()
    for name in names:
        (house / name).touch()  # nothing is decoded
    rows = "".join(f"{name},{'yes' if i % 2 else 'no'},s{i // 10},Zürich,{i}\n" for i, name in enumerate(names))
    path = table(house, "path,label,speaker,accent,age\n" + rows)
    began = time.perf_counter()
    corpus = load(path)
    seconds = time.perf_counter() - began
    print(f"{seconds:.2f} s")
    assert len(corpus.utterances) == 20_000
    assert seconds < 3
