"""What a model makes of clips is computed once and kept safely, and is the same with the file and without."""

import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from shard_descriptors.clips import packed
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.clips.features import FeatureError, Features
from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.utterances import Utterance

COUNT = 71
SHAPE = (3, 2)


class Counting:
    """Features that say which they are, and how often they were computed."""

    def __init__(self) -> None:
        self.computed: list[int] = []

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        self.computed += numbers.tolist()
        return expected(numbers)


def expected(numbers: np.ndarray | range) -> np.ndarray:
    return (np.asarray(numbers)[:, None, None] + np.arange(6).reshape(SHAPE) / 8).astype(np.float32)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def clips(tmp_path: Path, cache: Path) -> ClipSet:
    return clip_set(tmp_path, cache)


def clip_set(folder: Path, cache: Path, form: ClipFormat = SUPERB_KS) -> ClipSet:
    path = folder / "a.wav"
    if not path.exists():
        soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, 16_000), 16_000)
    return ClipSet([Utterance("a", str(path), "yes", "1", "train")], form, cache)


def features(clips: ClipSet, compute: object = expected, made_by: str = "weights", count: int = COUNT) -> Features:
    return Features(clips, made_by, SHAPE, count, compute, "the answer")  # type: ignore[arg-type]


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


def test_all_are_computed_once_in_blocks_and_read_by_number(clips: ClipSet, cache: Path) -> None:
    compute = Counting()
    computed = features(clips, compute)
    read = computed.read(np.array([5, 70, 5]))
    assert read.dtype == np.float16
    np.testing.assert_array_equal(read, expected([5, 70, 5]))
    assert compute.computed == list(range(COUNT))
    np.testing.assert_array_equal(computed.read(np.arange(COUNT)), expected(range(COUNT)))
    np.testing.assert_array_equal(features(clips, compute).read(np.arange(COUNT)), expected(range(COUNT)))
    assert len(compute.computed) == COUNT
    (file,) = kept(cache)
    assert file.stat().st_size == COUNT * 6 * 2 + 32 == computed.size + 32
    assert file.stat().st_mode & 0o777 == 0o600
    assert cache.stat().st_mode & 0o777 == 0o700


def test_none_at_all(clips: ClipSet, cache: Path) -> None:
    features(clips, count=0).prepare()
    assert not cache.exists()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, COUNT - 1), max_size=10), st.booleans())
def test_the_same_values_with_the_file_and_without(
    tmp_path_factory: pytest.TempPathFactory, numbers: list[int], rounded: bool
) -> None:
    folder = tmp_path_factory.mktemp("equal")
    (folder / "file").write_text("in the way")

    def compute(rows: np.ndarray) -> np.ndarray:
        return expected(rows) / (3 if rounded else 1)

    answers = [
        features(clip_set(folder, folder / where), compute).read(np.array(numbers, np.int64))
        for where in ("cache", "file", "cache")
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    np.testing.assert_array_equal(answers[0], answers[2])
    np.testing.assert_allclose(answers[0], compute(np.array(numbers, np.int64)), rtol=2**-11)


def test_other_weights_clips_and_lengths_are_other_files(tmp_path: Path, clips: ClipSet, cache: Path) -> None:
    compute = Counting()
    features(clips, compute).prepare()
    features(clips, compute, made_by="other weights").prepare()
    features(clip_set(tmp_path, cache, ClipFormat(num_samples=8_000)), compute).prepare()
    features(clips, compute, count=COUNT + 1).prepare()
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)  # another recording under the same name
    features(clips, compute).prepare()
    assert len(compute.computed) == 5 * COUNT + 1
    assert len(kept(cache)) == 5


@pytest.mark.parametrize("place", [0, 500, -1])
def test_a_damaged_file_is_made_again(
    clips: ClipSet, cache: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    features(clips).prepare()
    (file,) = kept(cache)
    good = file.read_bytes()
    content = bytearray(good)
    content[place] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(features(clips).read(np.arange(COUNT)), expected(range(COUNT)))
    assert f"{file} is damaged and made again" in caplog.text
    assert file.read_bytes() == good


def test_a_folder_that_cannot_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("in the way")
    compute = Counting()
    computed = features(clip_set(tmp_path, tmp_path / "file"), compute)
    with caplog.at_level(logging.WARNING):
        for numbers in ([3, 1], [1]):
            np.testing.assert_array_equal(computed.read(np.array(numbers)), expected(numbers))
    (record,) = caplog.records
    assert "the answer cannot be kept" in record.getMessage()
    assert "Set KWS_CACHE" in record.getMessage()
    assert compute.computed == [3, 1, 1]  # nothing that nobody asked for


def test_the_size_is_named_before_anything_is_computed(
    clips: ClipSet, cache: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", COUNT * 12)
    with caplog.at_level(logging.INFO):
        features(clips).prepare()
    assert "the answer of 71 clips: 0.0 MB (3 x 2 x 2 bytes each)" in caplog.text
    monkeypatch.setattr(packed, "KEPT_BYTES", COUNT * 12 - 1)
    compute = Counting()
    with pytest.raises(FeatureError, match=r"the answer of 71 clips: .* training\.cache"):
        features(clips, compute, "larger").read(np.array([0]))
    assert not compute.computed
    assert len(kept(cache)) == 1


def test_samples_and_features_share_one_limit(clips: ClipSet, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", 33_000)  # 32,032 of samples and 884 of features
    clips.prepare()
    time.sleep(0.01)
    first = features(clips)
    first.prepare()
    time.sleep(0.01)
    assert [file.suffix for file in kept(cache)] in ([".int16", ".float16"], [".float16", ".int16"])
    features(clips, made_by="second").prepare()
    features(clips, made_by="third").prepare()  # now the samples, opened longest ago, are too much
    assert [file.suffix for file in kept(cache)] == [".float16"] * 3
    assert clips.read([0]).any()  # who has them open keeps them


@pytest.mark.parametrize("value", [70_000.0, np.nan, np.inf])
def test_what_half_precision_does_not_hold_is_refused_and_leaves_nothing(
    clips: ClipSet, cache: Path, value: float
) -> None:
    def compute(numbers: np.ndarray) -> np.ndarray:
        return np.where(numbers[:, None, None] == COUNT - 1, value, expected(numbers)).astype(np.float32)

    with pytest.raises(FeatureError, match=r"half precision .* training\.cache"):
        features(clips, compute).read(np.array([0]))
    assert kept(cache) == []


PROGRAM = """
import hashlib, resource, sys, time
from pathlib import Path
import numpy as np
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.clips.features import Features
from shard_descriptors.utterances import Utterance

def compute(numbers):
    time.sleep(float(sys.argv[3]))
    return np.repeat(numbers[:, None], 1_000, axis=1).astype(np.float32)

clips = ClipSet([Utterance("a", sys.argv[1], "yes", "1", "train")], cache=Path(sys.argv[2]))
"""
READ = """
read = Features(clips, "weights", (1_000,), 2_000, compute, "the answer").read(np.arange(2_000))
print(hashlib.sha256(read).hexdigest())
"""


def run(program: str, tmp_path: Path, cache: Path, pause: float) -> subprocess.Popen[str]:
    clip_set(tmp_path, cache)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program, str(tmp_path / "a.wav"), str(cache), str(pause)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_killed_half_way(tmp_path: Path, cache: Path) -> None:
    process = run(READ, tmp_path, cache, 0.1)
    while not any(file.stat().st_size > 500_000 for file in cache.glob("*.partial-*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [file.is_dir() for file in kept(cache)] == [True]  # no file that counts
    process = run(READ, tmp_path, cache, 0)
    answer, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert len(answer) == 65
    (file,) = kept(cache)  # the remains are gone
    assert file.stat().st_size == 4_000_032


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    processes = [run(READ, tmp_path, cache, 0.03) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len({answer for answer, _ in answers}) == 1
    assert sum("100%" in errors for _, errors in answers) == 1  # only one of them has computed
    assert len(kept(cache)) == 1


def test_a_full_disk(tmp_path: Path, cache: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    answer, errors = run(limit + READ, tmp_path, cache, 0).communicate(timeout=60)
    assert "(File too large)" in errors
    assert "Set KWS_CACHE" in errors
    assert kept(cache) == []
    assert run(READ, tmp_path, cache, 0).communicate(timeout=60) == (answer, "")
    assert len(kept(cache)) == 1
