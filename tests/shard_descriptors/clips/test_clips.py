"""Decoded clips are kept in one file, made once and safely, and what is read is the same with it and without."""

import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shard_descriptors.clips import packed
from shard_descriptors.clips.audio import AudioError, read_clip
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.utterances import Utterance

SHORT = ClipFormat(num_samples=800)


def noise(path: Path, samples: int = 16_000, rate: int = 16_000, channels: int = 1, seed: int = 0) -> Path:
    """A recording of noise at a tenth of full scale."""
    sound = np.random.default_rng(seed).normal(0, 0.1, (samples, channels)).clip(-1, 1)
    soundfile.write(path, sound, rate)
    return path


def rows(*paths: Path, num_samples: int | None = None) -> list[Utterance]:
    return [Utterance(path.name, str(path), "yes", "1", "train", num_samples=num_samples) for path in paths]


def kept(folder: Path) -> list[Path]:
    """What lies in a cache, but for locks."""
    return sorted(path for path in folder.iterdir() if path.suffix != ".lock")


@pytest.fixture
def recordings(tmp_path: Path) -> list[Utterance]:
    return rows(*(noise(tmp_path / f"{number}.wav", seed=number) for number in range(5)))


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "packed"


@pytest.fixture
def nowhere(tmp_path: Path) -> Path:
    """A cache that cannot be."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file"


def test_clips_by_number(recordings: list[Utterance], cache: Path) -> None:
    clips = ClipSet(recordings, cache=cache)
    read = clips.read([3, 1, 3])
    assert read.shape == (3, 16_000)
    assert read.dtype == np.float32
    for clip, number in zip(read, [3, 1, 3], strict=True):
        np.testing.assert_array_equal(clip, read_clip(recordings[number].path))  # 16 bits, as they were recorded
    assert len(clips) == 5
    assert clips.labels.tolist() == [0] * 5
    (file,) = kept(cache)
    assert file.stat().st_size == 5 * 2 * 16_000 + 32


def test_no_clips(cache: Path) -> None:
    assert ClipSet([], cache=cache).read([]).shape == (0, 16_000)
    assert not cache.exists()


def test_the_users_cache(recordings: list[Utterance], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_CACHE", str(tmp_path / "mine"))
    ClipSet(recordings).prepare()
    assert len(kept(tmp_path / "mine" / "clips")) == 1


def test_nobody_else_may_read_what_was_recorded(recordings: list[Utterance], cache: Path) -> None:
    before = os.umask(0)  # nothing but the mode itself protects the files
    try:
        ClipSet(recordings, cache=cache).prepare()
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700
    assert kept(cache)[0].stat().st_mode & 0o777 == 0o600


RECORDINGS = [(16_000, 1, 40_000), (16_000, 2, 5_000), (8_000, 1, 12_000), (44_100, 2, 100_000), (22_050, 1, 50)]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, int]]:
    """Recordings of several kinds, and how long they last in samples at 16 kHz."""
    folder = tmp_path_factory.mktemp("kinds")
    return [
        (noise(folder / f"{rate}.{channels}.wav", samples, rate, channels, seed=rate), samples * 16_000 // rate)
        for rate, channels, samples in RECORDINGS
    ]


SHARES = st.floats(0, 1, exclude_max=True)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_the_same_samples_with_the_cache_and_without(
    tmp_path_factory: pytest.TempPathFactory, kinds: list[tuple[Path, int]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("equal")
    (folder / "file").write_text("")
    utterances = []
    for name in range(data.draw(st.integers(1, 6), "utterances")):
        path, length = data.draw(st.sampled_from(kinds), "recording")
        start = data.draw(st.integers(0, length - 1), "start")
        lasts = data.draw(st.none() | st.integers(1, 20_000), "num_samples")  # also beyond the end
        utterances.append(Utterance(str(name), str(path), "yes", "1", "train", start, lasts))
    form = ClipFormat(num_samples=data.draw(st.sampled_from([1, 700, 16_000]), "clip"))
    numbers = data.draw(st.lists(st.integers(0, len(utterances) - 1), max_size=8), "numbers")
    places = data.draw(st.none() | arrays.arrays(float, len(numbers), elements=SHARES), "places")
    cached = ClipSet(utterances, form, folder / "cache")
    again, uncached = ClipSet(utterances, form, folder / "cache"), ClipSet(utterances, form, folder / "file")
    answers = [(clips.read(numbers, places), clips.keys) for clips in (cached, cached, again, uncached)]
    for (one, keys), (other, same_keys) in pairwise(answers):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(keys, same_keys)
    assert len(kept(folder / "cache")) == 1


def test_of_a_long_recording_the_part_at_the_place_is_heard(tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "steps.wav"
    soundfile.write(path, np.arange(8_000) / 32768, 16_000)  # sample n is n
    clips = ClipSet(rows(path, num_samples=8_000), ClipFormat(num_samples=1_000), cache)
    places = np.array([0, 0.25, 0.5, np.nextafter(1, 0)])  # of the 7,001 places from which there is a whole clip
    parts = clips.read([0] * 4, places) * 32768
    np.testing.assert_array_equal(parts, np.array([0, 1_750, 3_500, 7_000])[:, None] + np.arange(1_000))
    np.testing.assert_array_equal(clips.read([0])[0] * 32768, np.arange(1_000))


def test_all_parts_are_equally_likely(tmp_path: Path, cache: Path) -> None:
    clips = ClipSet(rows(noise(tmp_path / "a.wav", 1_002), num_samples=1_002), ClipFormat(num_samples=1_000), cache)
    drawn = clips.read([0] * 60, np.arange(60) / 60)[:, 0]
    np.testing.assert_array_equal(drawn, np.repeat(read_clip(tmp_path / "a.wav")[:3], 20))


def test_of_a_short_utterance_nothing_is_heard_that_follows_it(tmp_path: Path, cache: Path) -> None:
    clip = ClipSet(rows(noise(tmp_path / "a.wav"), num_samples=5_000), cache=cache).read([0], np.array([0.9]))[0]
    np.testing.assert_array_equal(clip[:5_000], read_clip(tmp_path / "a.wav")[:5_000])
    assert not clip[5_000:].any()


def test_a_clip_has_the_same_key_wherever_it_lies_and_no_two_have_one(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "there").mkdir()
    here, there, other = (
        noise(tmp_path / "a.wav"),
        noise(tmp_path / "there" / "a.wav"),
        noise(tmp_path / "b.wav", seed=1),
    )

    def keys(*utterances: Utterance) -> list[int]:
        return [int(key) for key in ClipSet(utterances, cache=cache).keys]

    def row(path: Path, name: str = "yes/1.wav", start: int = 0) -> Utterance:
        return Utterance(name, str(path), "yes", "1", "train", start, 8_000)

    (first,) = keys(row(here))
    assert keys(row(other), row(there))[1] == first  # whatever else is in the set, and whatever its folder is called
    others = [*keys(row(other)), *keys(row(here, "yes/2.wav")), *keys(row(here, start=1))]
    assert len({first, *others}) == 4  # two owners call different sounds the same


def test_what_is_there_is_not_decoded_again(recordings: list[Utterance], cache: Path) -> None:
    before = ClipSet(recordings, cache=cache).read(range(5))
    path = Path(recordings[2].path)
    found = path.stat()
    noise(path, seed=99)
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))  # as if nothing had happened
    np.testing.assert_array_equal(ClipSet(recordings, cache=cache).read(range(5)), before)


def test_a_changed_recording_is_decoded_anew(recordings: list[Utterance], cache: Path) -> None:
    before = ClipSet(recordings, cache=cache).read(range(5))
    noise(Path(recordings[2].path), seed=99)
    after = ClipSet(recordings, cache=cache).read(range(5))
    assert [np.array_equal(*both) for both in zip(before, after, strict=True)] == [True, True, False, True, True]


def test_other_parts_and_other_rates_are_other_files(recordings: list[Utterance], cache: Path) -> None:
    for utterances, form in (
        (recordings, SUPERB_KS),
        (recordings[::-1], SUPERB_KS),
        (recordings[:4], SUPERB_KS),
        ([replace(u, start=5) for u in recordings], SUPERB_KS),
        (recordings, ClipFormat(num_samples=8_000)),
        (recordings, ClipFormat(sample_rate=8_000, num_samples=8_000)),
    ):
        clips = ClipSet(utterances, form, cache)
        expected = [read_clip(u.path, u.start, form.num_samples, form.sample_rate) for u in utterances]
        np.testing.assert_allclose(clips.read(range(len(clips))), expected, atol=0.51 / 32768)
    assert len(kept(cache)) == 6


def flip(file: Path, place: int) -> None:
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda file: flip(file, 0),
        lambda file: flip(file, 80_000),
        lambda file: flip(file, -1),
        lambda file: os.truncate(file, 100_000),
        lambda file: os.truncate(file, 32),
        lambda file: os.truncate(file, 0),
        lambda file: file.write_bytes(file.read_bytes() + b"\0\0"),
    ],
)
def test_a_damaged_file_is_made_again(
    recordings: list[Utterance], cache: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    before = ClipSet(recordings, cache=cache).read(range(5))
    (file,) = kept(cache)
    good = file.read_bytes()
    damage(file)  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(ClipSet(recordings, cache=cache).read(range(5)), before)
    assert f"{file} is damaged and made again" in caplog.text
    assert file.read_bytes() == good


@pytest.mark.parametrize("content", [b"RIFF, but not really", None])
def test_a_recording_that_cannot_be_used_is_named_and_nothing_is_left(
    recordings: list[Utterance], cache: Path, content: bytes | None
) -> None:
    path = Path(recordings[3].path)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    clips = ClipSet(recordings, cache=cache)
    for _ in range(2):
        with pytest.raises(AudioError, match=r"3\.wav"):
            clips.read([0])
        assert not cache.exists() or not kept(cache)
    noise(path)
    assert clips.read([3]).any()


def assert_decoded_each_time(clips: ClipSet, caplog: pytest.LogCaptureFixture, cause: str) -> None:
    with caplog.at_level(logging.WARNING):
        for number in (0, 3, 0):
            np.testing.assert_array_equal(clips.read([number])[0], read_clip(clips.utterances[number].path))
    (record,) = caplog.records  # once is enough
    assert cause in record.getMessage()
    assert "Set KWS_CACHE" in record.getMessage()


def test_a_file_in_place_of_the_cache(
    recordings: list[Utterance], nowhere: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert_decoded_each_time(ClipSet(recordings, cache=nowhere), caplog, "File exists")


def test_a_folder_in_place_of_the_file(
    recordings: list[Utterance], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ClipSet(recordings, cache=cache).prepare()
    (file,) = kept(cache)
    file.unlink()
    file.mkdir()
    assert_decoded_each_time(ClipSet(recordings, cache=cache), caplog, "Is a directory")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_cache_that_may_not_be_written(
    recordings: list[Utterance], cache: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache.mkdir(mode=0o500)
    assert_decoded_each_time(ClipSet(recordings, cache=cache), caplog, "Permission denied")


PROGRAM = """
import hashlib, resource, sys
from pathlib import Path
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat
from shard_descriptors.utterances import Utterance

def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon")) * 1024

def clips(path, count, samples, cache):
    rows = [Utterance(str(n), path, "yes", "1", "train", start=n % 100) for n in range(count)]
    return ClipSet(rows, ClipFormat(num_samples=samples), Path(cache))
"""


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM + program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


MANY = "print(hashlib.sha256(clips(sys.argv[1], 15_000, 800, sys.argv[2]).read(range(15_000))).hexdigest())"


def test_killed_half_way(tmp_path: Path, cache: Path) -> None:
    path = noise(tmp_path / "a.wav")
    process = run(MANY, path, cache)
    while not any(file.stat().st_size > 2_000_000 for file in cache.glob("*.partial-*/*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [file.is_dir() for file in kept(cache)] == [True]  # no file that counts
    process = run(MANY, path, cache)
    answer, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert len(answer) == 65
    (file,) = kept(cache)  # the remains are gone
    assert file.stat().st_size == 15_000 * 1_600 + 32


def test_two_processes_at_once(tmp_path: Path, cache: Path) -> None:
    path = noise(tmp_path / "a.wav")
    processes = [run(MANY, path, cache) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert len({answer for answer, _ in answers}) == 1
    assert sum("100%" in errors for _, errors in answers) == 1  # only one of them has decoded
    assert len(kept(cache)) == 1


def test_a_full_disk(tmp_path: Path, cache: Path) -> None:
    program = """
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
print(hashlib.sha256(clips(sys.argv[1], 200, 800, sys.argv[2]).read(range(200))).hexdigest())
"""
    path = noise(tmp_path / "a.wav")
    full = run(program, path, cache)
    answer, errors = full.communicate(timeout=60)
    assert full.returncode == 0, errors
    assert "(File too large)" in errors
    assert "Set KWS_CACHE" in errors
    assert kept(cache) == []
    roomy = run(program.replace("100_000", "1_000_000"), path, cache)
    assert roomy.communicate(timeout=60) == (answer, "")
    assert len(kept(cache)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_does_not_grow_with_the_clips(tmp_path: Path, cache: Path) -> None:
    program = """
first = clips(sys.argv[1], 3_200, 16_000, sys.argv[2])  # 100 MB as they are kept, 200 MB as they are read
first.read([0])
before = anonymous()
for number in range(0, 3_200, 16):
    first.read(range(number, number + 16))
second = clips(sys.argv[1], 3_201, 16_000, sys.argv[2])
second.prepare()
print(anonymous() - before)
"""
    process = run(program, noise(tmp_path / "a.wav"), cache)
    answer, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(answer) < 10_000_000


def first_samples(clips: ClipSet) -> bytes:
    return clips.read([1, 0]).tobytes()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_another_process_maps_the_same_file(recordings: list[Utterance], cache: Path, method: str) -> None:
    clips = ClipSet(recordings, cache=cache)
    here = first_samples(clips)
    with multiprocessing.get_context(method).Pool(1) as pool:
        assert pool.apply(first_samples, (clips,)) == here
    assert len(kept(cache)) == 1


def test_a_pickle_has_no_samples(tiny_corpus: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_corpus)  # each folder above the corpus would count, too
    clips = ClipSet(load(Path()).utterances, cache=cache)
    clips.prepare()
    pickled = pickle.dumps(clips)
    assert len(pickled) < 200 * len(clips)
    again = pickle.loads(pickled)
    assert (again.utterances, again.format, again.labels.tolist()) == (
        clips.utterances, clips.format, clips.labels.tolist(),
    )  # fmt: skip
    np.testing.assert_array_equal(again.read([5, 7]), clips.read([5, 7]))


def test_what_was_opened_longest_ago_goes_and_who_has_it_open_keeps_it(
    recordings: list[Utterance], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "KEPT_BYTES", 2 * (32_000 + 32))
    first, second, third = (ClipSet([u], cache=cache) for u in recordings[:3])
    files = []
    for clips in (first, second, third):
        clips.prepare()
        files.append(next(file for file in kept(cache) if file not in files))
        time.sleep(0.01)
    ClipSet([recordings[0]], cache=cache).prepare()  # opened again, so now the second is the oldest
    ClipSet([recordings[3]], cache=cache).prepare()
    assert [file.exists() for file in files] == [True, False, True]
    assert len(kept(cache)) == 3
    assert len(list(cache.iterdir())) == 6
    np.testing.assert_array_equal(second.read([0])[0], read_clip(recordings[1].path))
    np.testing.assert_array_equal(ClipSet([recordings[1]], cache=cache).read([0]), second.read([0]))


def test_what_killed_processes_have_left_goes_and_what_is_being_made_stays(
    recordings: list[Utterance], cache: Path
) -> None:
    dead, living = (cache / f"{name}.int16.partial-xyz" for name in ("dead", "living"))
    for folder in (dead, living):
        folder.mkdir(parents=True)
        (folder / "half").write_bytes(bytes(1000))
    with FileLock(cache / "living.int16.lock"):
        ClipSet(recordings, cache=cache).prepare()
    assert not dead.exists()
    assert living.exists()
