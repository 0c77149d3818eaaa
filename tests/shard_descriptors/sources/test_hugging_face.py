"""Hugging Face data sets, saved and opened by the real library: rows of Arrow files become clips."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Audio, Dataset, DatasetDict
from recordings import FILES, as_float, data_set, sound, speech_folder, write

from shard_descriptors.clips.audio import AudioError, read_clip
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import Corpus, CorpusError
from shard_descriptors.sources.hugging_face import Columns, corpus_of, load
from shard_descriptors.sources.registry import open_corpus
from shard_descriptors.sources.rules import Rules


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def saved(made: Dataset | DatasetDict, folder: Path, **how: Any) -> Path:
    made.save_to_disk(str(folder), **how)
    return folder


def heard(corpus: Corpus) -> dict[str, np.ndarray]:
    clips = ClipSet(corpus.utterances, corpus.format).read(range(len(corpus.utterances)))
    return dict(zip([u.name for u in corpus.utterances], clips, strict=True))


def test_saved_to_disk(tmp_path: Path) -> None:
    sets = DatasetDict(train=data_set(range(20)), dev=data_set(range(20, 24)), test=data_set(range(24, 30)))
    corpus = open_corpus("hugging_face", saved(sets, tmp_path / "house"))
    assert corpus.name == "house"
    assert corpus.format.labels == ("no", "yes")
    assert [sum(u.split == split for u in corpus.utterances) for split in ("train", "validation", "test")] == [20, 4, 6]
    third = next(u for u in corpus.utterances if u.name == "dev/3")
    assert (third.split, third.label, third.speaker, third.row) == ("validation", "yes", "s11", 3)
    clips = heard(corpus)
    for name, number in (("train/0", 0), ("train/19", 19), ("dev/3", 23), ("test/5", 29)):
        np.testing.assert_array_equal(clips[name], as_float(sound(number)))


def test_one_split_in_several_files(tmp_path: Path) -> None:
    corpus = load(saved(data_set(range(40)), tmp_path / "house", num_shards=3))
    assert len({u.path for u in corpus.utterances}) == 3
    assert len({(u.speaker, u.split) for u in corpus.utterances}) == 20  # nobody is in two splits
    for name, clip in heard(corpus).items():
        np.testing.assert_array_equal(clip, as_float(sound(int(name.removeprefix("train/")))))


def test_parquet(tmp_path: Path) -> None:
    for split, numbers in (("train", range(6)), ("test", range(6, 10))):
        (tmp_path / "house").mkdir(exist_ok=True)
        data_set(numbers, rate=8_000).to_parquet(tmp_path / "house" / f"{split}-00000-of-00001.parquet")
    corpus = load(tmp_path / "house", sample_rate=8_000, clip_seconds=2)
    assert corpus.format.labels == ("no", "yes")
    np.testing.assert_array_equal(heard(corpus)["test/3"], as_float(sound(9)))


def test_folder_with_metadata(tmp_path: Path) -> None:
    speech_folder(tmp_path)
    rows = "".join(f"{path.relative_to(tmp_path)},{path.parent.name},{path.stem}\n" for path in tmp_path.rglob("*.wav"))
    (tmp_path / "metadata.csv").write_text("file_name,label,speaker_id\n" + rows)
    corpus = load(tmp_path)
    assert len({(u.speaker, u.split) for u in corpus.utterances}) == 20
    np.testing.assert_array_equal(heard(corpus)["no/s3_0.wav"], as_float(sound(7)))
    assert {u.row for u in corpus.utterances} == {None}
    (tmp_path / rows.split(",")[0]).unlink()
    with pytest.raises(CorpusError, match=r"metadata\.csv, line 2: .* is not a file"):
        load(tmp_path)


def test_folder_with_metadata_in_each_split(tmp_path: Path) -> None:
    for number, split in enumerate(("train", "validation", "test")):
        write(tmp_path / split / "a.wav", sound(number))
        write(tmp_path / split / "b.wav", sound(number))
        (tmp_path / split / "metadata.csv").write_text("file_name,label\na.wav,yes\nb.wav,no\n")
    corpus = load(tmp_path)
    assert [u.name for u in corpus.utterances[::2]] == ["train/a.wav", "validation/a.wav", "test/a.wav"]
    assert [u.split for u in corpus.utterances[::2]] == ["train", "validation", "test"]
    np.testing.assert_array_equal(heard(corpus)["test/b.wav"], as_float(sound(2)))
    assert {u.name.split("/")[0] for u in load(tmp_path, splits=["train"]).utterances} == {"train"}
    (tmp_path / "test").rename(tmp_path / "unseen")
    with pytest.raises(CorpusError, match=r"unseen/metadata\.csv: split is 'unseen'"):
        load(tmp_path)


def test_rows_that_hold_only_a_path(tmp_path: Path) -> None:
    speech_folder(tmp_path / "clips", 2)
    paths = [f"clips/{label}/s{speaker}_0.wav" for speaker in range(2) for label in ("yes", "no")]
    columns = {"file": paths, "label": ["yes", "no"] * 2, "age": [30, 30, 40, 40], "speaker_id": [1, 1, 2, 2]}
    corpus = load(saved(Dataset.from_dict(columns), tmp_path), audio="file")
    assert {u.name: (u.row, u.speaker, u.columns) for u in corpus.utterances}[paths[3]] == (None, "2", (("age", "40"),))
    np.testing.assert_array_equal(heard(corpus)[paths[3]], as_float(sound(3)))
    as_audio = Dataset.from_dict(
        {**columns, "file": [{"bytes": None, "path": str(tmp_path / path)} for path in paths]},
        features=datasets.Features({**Dataset.from_dict(columns).features, "file": FILES}),
    ).cast_column("file", Audio(decode=False))
    assert corpus_of("house", {"train": as_audio}, Rules(), Columns("file"), tmp_path).utterances == corpus.utterances
    with_files = load(saved(as_audio, tmp_path / "more"), audio="file")  # save_to_disk takes the files along
    np.testing.assert_array_equal(heard(with_files)["train/3"], as_float(sound(3)))
    (tmp_path / paths[0]).unlink()
    with pytest.raises(CorpusError, match=r"split train: row 0: .*s0_0\.wav is not a file; bring it there, or have"):
        load(tmp_path, audio="file")


def test_selected_and_shuffled(tmp_path: Path) -> None:
    whole = datasets.load_from_disk(str(saved(data_set(range(20)), tmp_path, num_shards=3)))
    part = whole.shuffle(seed=3).select(range(12))
    corpus = corpus_of("part", {"train": part}, Rules(), Columns(), tmp_path)
    names = [u.name for u in corpus.utterances]
    assert len(set(names)) == 12
    for name, clip in heard(corpus).items():
        np.testing.assert_array_equal(clip, as_float(sound(int(name.removeprefix("train/")))))
    assert [u.split for u in corpus.utterances] == [
        u.split for u in load(tmp_path).utterances if u.name in names
    ]  # a row keeps its name and split, whatever else is selected


def test_not_on_disk(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="rows are not those of its files; save the set with save_to_disk"):
        corpus_of("loose", {"train": data_set(range(4))}, Rules(), Columns(), tmp_path)
    whole = datasets.load_from_disk(str(saved(data_set(range(20)), tmp_path)))
    with pytest.raises(CorpusError, match="rows are not those of its files"):
        corpus_of("part", {"train": whole.select(range(3, 9))}, Rules(), Columns(), tmp_path)  # a slice of the table


def test_labels(tmp_path: Path) -> None:
    folder = saved(data_set(range(6), ("où", "là")), tmp_path / "named")
    assert load(folder).format.labels == ("où", "là")  # the set's own order
    assert load(folder, labels=["là"], other="autre").format.labels == ("là", "autre")
    folder = saved(data_set(range(6), None), tmp_path / "numbers")
    with pytest.raises(CorpusError, match=r"numbers, split train: the column label is .*int64.* holds no names; give"):
        load(folder)
    folder = saved(data_set(range(6), word=["où", "là"] * 3), tmp_path / "text")
    assert load(folder, label="word").format.labels == ("là", "où")
    assert load(folder).utterances[0].columns == (("word", "où"),)
    assert load(folder, columns=[]).utterances[0].columns == ()
    folder = saved(data_set(range(6), word=["où", None] * 3), tmp_path / "missing")
    with pytest.raises(CorpusError, match=r"split train: row 1: the label is empty"):
        load(folder, label="word")


def test_splits(tmp_path: Path) -> None:
    sets = DatasetDict(
        {"train.100": data_set(range(6)), "other": data_set(range(6, 8)), "test": data_set(range(8, 10))}
    )
    folder = saved(sets, tmp_path)
    with pytest.raises(CorpusError, match=r"split train\.100: split is 'train\.100'; allowed"):
        load(folder)
    assert len(load(folder, splits=["train.100"], validation_percent=0, test_percent=0).utterances) == 6
    for wrong in ("test", ["train"], []):
        with pytest.raises(CorpusError, match=r"give a list of some of: train\.100, other, test"):
            load(folder, splits=wrong)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"audio": "sound"}, r"there is no column 'sound'; the set has: audio, label, speaker_id"),
        ({"label": "word"}, "there is no column 'word'"),
        ({"speaker": "who"}, "there is no column 'who'"),
        ({"columns": ["accent"]}, "there is no column 'accent'"),
        ({"audio": "label"}, r"the column label is .*; allowed: Audio, or text"),
        ({"label": "audio"}, r"the column audio is Audio.* holds no names"),
        ({"labels": ["yes", "maybe"]}, r"row 0: the label 'no' is not known; allowed: yes, maybe"),
    ],
)
def test_wrong_columns(tmp_path: Path, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        load(saved(data_set(range(4)), tmp_path), **settings)


def test_two_columns_of_audio(tmp_path: Path) -> None:
    both = data_set(range(4))
    both = datasets.concatenate_datasets([both, both.select_columns("audio").rename_column("audio", "noise")], axis=1)
    with pytest.raises(
        CorpusError, match="several columns of files: audio, noise; save the set again with audio alone"
    ):
        load(saved(both, tmp_path))


def test_sets_that_cannot_be_opened(tmp_path: Path) -> None:
    for wrong in ("/no/such/folder", "./no_such_folder", "~/no_such_folder"):
        with pytest.raises(CorpusError, match=r"data_path is .*no.such.folder, which is not a folder; give"):
            load(wrong)
    with pytest.raises(CorpusError, match=r"cannot be opened as a data set .*; allowed: a folder made by save_to_disk"):
        load(tmp_path)
    speech_folder(tmp_path / "loose", 2)
    with pytest.raises(
        CorpusError, match=r"loose holds audio files, but no metadata\.csv; take them with the source folder"
    ):
        load(tmp_path / "loose")
    data_set(range(2)).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"a\.parquet is a file; give the folder"):
        load(tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match=r"the source hugging_face has no setting 'split'; allowed: audio, label"):
        open_corpus("hugging_face", tmp_path, split="train")
    nothing = {"train": data_set(range(0))}  # the library cannot open one that it has saved
    with pytest.raises(CorpusError, match="empty holds no recordings"):
        corpus_of("empty", nothing, Rules(), Columns(), tmp_path)


@pytest.mark.parametrize("name", ["house.py", "other.py"])
def test_script(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "house"
    folder.mkdir()
    (folder / name).write_text("raise SystemExit('this must not run')")
    for given in (folder, folder / name):
        with pytest.raises(
            CorpusError, match=r"is made by a script, and `datasets` 4 runs none .* parquet .* folder or table"
        ):
            load(given)


def test_hub_out_of_reach() -> None:
    script = "from shard_descriptors.sources.hugging_face import load\nload('nobody/nothing')"
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert (
        "CorpusError: nobody/nothing is not a folder here, and cannot be had from the Hugging Face hub" in done.stderr
    )
    assert "hf download nobody/nothing --repo-type dataset --local-dir FOLDER" in done.stderr


def test_nothing_is_decoded_and_nothing_imported_early(tmp_path: Path) -> None:
    module = "shard_descriptors.sources.hugging_face"
    script = f"import sys; import {module}; print('datasets' in sys.modules, 'pyarrow' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
    broken = data_set(range(4)).to_dict()
    broken["audio"][2]["bytes"] = b"no sound"
    made = Dataset.from_dict(broken, features=datasets.Features({**data_set(range(4)).features, "audio": FILES}))
    corpus = load(saved(made.cast_column("audio", Audio(decode=False)), tmp_path))
    with pytest.raises(
        AudioError, match=r"data-00000-of-00001\.arrow, row 2 cannot be read as audio \(Format not recog"
    ):
        heard(corpus)


def test_rows_that_cannot_be_read(tmp_path: Path) -> None:
    path = load(saved(data_set(range(4)), tmp_path)).utterances[0].path
    np.testing.assert_array_equal(read_clip(path, 8_000, 4_000, row=3), as_float(sound(3))[8_000:12_000])
    with pytest.raises(AudioError, match=r"\.arrow has 4 rows, and no row 4; was the file replaced"):
        read_clip(path, row=4)
    with pytest.raises(AudioError, match=r"gone\.arrow is not a file"):
        read_clip(tmp_path / "gone.arrow", row=0)
    (tmp_path / "text.arrow").write_text(json.dumps({"no": "arrow"}))
    with pytest.raises(AudioError, match=r"text\.arrow cannot be read as an Arrow file with one column of audio"):
        read_clip(tmp_path / "text.arrow", row=0)
    schema = pa.schema({"audio": pa.struct({"bytes": pa.binary(), "path": pa.string()})})
    with pa.ipc.new_stream(str(tmp_path / "null.arrow"), schema) as stream:
        stream.write_table(pa.table({"audio": [None, {"bytes": None, "path": "a.wav"}]}, schema=schema))
    for row in (0, 1):
        with pytest.raises(AudioError, match=rf"null\.arrow, row {row} holds no audio file"):
            read_clip(tmp_path / "null.arrow", row=row)
