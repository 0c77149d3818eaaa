"""Recordings as people have them, and what a model says of them."""

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from lab.cli import app
from lab.product.commands import as_table
from lab.product.predict import Prediction, follow, predict, said
from lab.product.recordings import find, parts, stream
from lab.product.spotter import TorchSpotter, probabilities
from shard_descriptors.clips.audio import AudioError, read_clip

RATE = 16_000


def sound(seconds: float, seed: int = 0, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(round(seconds * RATE), channels)).astype(np.float32) / 8


def write(path: Path, samples: np.ndarray, rate: int = RATE, **more: str) -> Path:
    soundfile.write(path, samples, rate, **more)
    return path


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 4000), window=st.integers(1, 900), hop=st.integers(1, 900), data=st.data())
def test_windows_are_the_same_however_the_samples_come(length: int, window: int, hop: int, data: st.DataObject) -> None:
    samples = np.arange(1, length + 1, dtype="<i2")
    size = data.draw(st.integers(1, 3000))

    class Slow(io.BytesIO):
        def read(self, count: int | None = -1) -> bytes:
            return super().read(min(size, count or size))

    heard = list(stream(Slow(samples.tobytes()), "s16", RATE, RATE, window, hop))
    starts = [round(start * RATE) for each in heard for start in each.starts]
    expected = list(range(0, length - window + 1, hop))
    if not expected or expected[-1] + window < length:
        expected.append(max(0, length - window))
    assert starts == expected
    for start, waveform in zip(starts, np.concatenate([each.waveforms for each in heard]), strict=True):
        wanted = np.zeros(window)
        there = samples[start : start + window]
        wanted[: len(there)] = there / 32768
        np.testing.assert_allclose(waveform, wanted, atol=1e-6)


def test_a_stream_of_nothing_has_no_windows() -> None:
    assert list(stream(io.BytesIO(), "f32", RATE, RATE, 100, 10)) == []


@pytest.mark.parametrize("seconds", [0.3, 1.0])
def test_a_short_recording_is_the_clip_of_the_training(seconds: float, tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", sound(seconds))
    (windows,) = parts(path, RATE, RATE, 4000)
    np.testing.assert_array_equal(windows.waveforms, read_clip(path)[None])
    assert (windows.starts, windows.seconds) == ((0.0,), seconds)


def test_any_rate_and_number_of_channels(tmp_path: Path) -> None:
    tone = np.sin(2 * np.pi * 440 * np.arange(3 * 44_100) / 44_100)[:, None].repeat(2, 1) / 2
    path = write(tmp_path / "a.flac", tone, 44_100)
    heard = list(parts(path, RATE, RATE, RATE // 2))
    waveforms = np.concatenate([each.waveforms for each in heard])
    assert waveforms.shape == (5, RATE)
    spectrum = np.abs(np.fft.rfft(waveforms[2]))
    assert spectrum.argmax() == 440
    assert waveforms.std() == pytest.approx(0.5 / np.sqrt(2), rel=0.01)


def test_a_recording_that_breaks_off_or_is_none_is_named(tmp_path: Path) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("no sound")
    for path in (text, tmp_path / "none.wav", write(tmp_path / "empty.wav", sound(0)), tmp_path):
        with pytest.raises(AudioError, match=path.name):
            list(parts(path, RATE, RATE, RATE))
    broken = write(tmp_path / "nan.wav", np.full(3 * RATE, np.nan), subtype="FLOAT")
    with pytest.raises(AudioError, match=r"nan\.wav holds samples that are not finite"):
        list(parts(broken, RATE, RATE, RATE))


def test_a_folder_is_all_recordings_below_it(tmp_path: Path) -> None:
    for name in ("b/2.WAV", "b/1.flac", "a.ogg", ".hidden/3.wav", "b/.4.wav", "readme.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    named = tmp_path / "readme.txt"
    assert find([tmp_path, named]) == [tmp_path / "a.ogg", tmp_path / "b/1.flac", tmp_path / "b/2.WAV", named]


def test_batches_change_nothing_and_a_bad_file_stops_nothing(spotter: TorchSpotter, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"{n}.wav", sound(seconds, n)) for n, seconds in enumerate((0.4, 3.3, 1.0, 2.0, 0.9))]
    paths.insert(2, tmp_path / "none.wav")
    seen = []
    one, many = (list(predict(spotter, paths, 0.5, batch, done=lambda: seen.append(1))) for batch in (1, 64))
    assert [each.name for each in one] == [str(path) for path in paths]
    assert len(seen) == 2 * len(paths)
    for first, second in zip(one, many, strict=True):
        assert (first.error, first.starts, first.seconds) == (second.error, second.starts, second.seconds)
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
    assert [each.error is None for each in one] == [True, True, False, True, True, True]
    assert one[1].starts == (0.0, 0.5, 1.0, 1.5, 2.0, pytest.approx(2.3))
    expected = probabilities(spotter.logits(read_clip(paths[0])[None]))
    np.testing.assert_allclose(one[0].scores, expected, atol=1e-5)


LABELS = ("yes", "no", "_silence_", "_unknown_")


def answer(*windows: tuple[str, float], hop: float = 0.5, seconds: float | None = None) -> Prediction:
    rows = [[score if label == each else (1 - score) / 3 for each in LABELS] for label, score in windows]
    starts = tuple(hop * number for number in range(len(windows)))
    return Prediction("a.wav", LABELS, 1.0, seconds or starts[-1] + 1, starts, np.array(rows, np.float32))


def test_events_are_words_that_are_sure() -> None:
    heard = answer(
        ("_silence_", 0.9), ("yes", 0.6), ("yes", 0.8), ("no", 0.45), ("no", 0.7), ("_unknown_", 0.9), ("no", 0.9)
    )
    assert [(each.start, each.end, each.label, round(each.score, 2)) for each in heard.events()] == [
        (0.5, 2.0, "yes", 0.8), (2.0, 3.0, "no", 0.7), (3.0, 4.0, "no", 0.9),
    ]  # fmt: skip
    assert (heard.label, round(heard.score, 2)) == ("no", 0.9)
    assert answer(("_silence_", 0.9), ("_unknown_", 0.6), ("_silence_", 0.8)).label == "_silence_"
    assert heard.events(0.95) == []


def test_silence_other_words_and_doubt_are_said_plainly() -> None:
    assert [said(label, 0.9) for label in LABELS] == ["yes", "no", "(silence)", "(another word)"]
    assert said("yes", 0.3) == "(unsure: yes?)"
    assert "(no word)" in as_table([answer(("_silence_", 0.9), ("_silence_", 0.9))], 0.5)


def test_a_stream_is_answered_as_it_comes(spotter: TorchSpotter) -> None:
    samples = sound(2.5)[:, 0]
    heard = list(follow(spotter, io.BytesIO(samples.astype("<f4").tobytes()), "f32", RATE, 0.5))
    assert [start for start, _ in heard] == [0.0, 0.5, 1.0, 1.5]
    expected = probabilities(spotter.logits(samples[8000:24_000][None]))
    np.testing.assert_allclose(heard[1][1], expected[0], atol=1e-4)


def test_the_command(saved_model: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    folder = tmp_path / "sounds"
    folder.mkdir()
    for number in range(3):
        write(folder / f"{number}.wav", sound(1.0, number))
    told = run(app, ["predict", str(saved_model), str(folder), "--json"])
    assert told.exit_code == 0
    answers = json.loads(told.stdout)
    assert [Path(each["path"]).name for each in answers] == ["0.wav", "1.wav", "2.wav"]
    assert all(abs(sum(each["scores"].values()) - 1) < 1e-4 for each in answers)
    (folder / "bad.wav").write_text("bad")
    told = run(app, ["predict", str(saved_model), str(folder), "--csv"])
    assert told.exit_code == 1
    assert "1 of the recordings cannot be used" in told.stderr
    rows = list(csv.DictReader(io.StringIO(told.stdout)))
    assert [bool(row["error"]) for row in rows] == [False, False, False, True]
    assert [row["label"] for row in rows[:3]] == [each["label"] for each in answers]
    raw = (sound(2.0)[:, 0] * 32767).astype("<i2").tobytes()
    told = run(app, ["predict", str(saved_model), "-", "--json", "--hop", "0.5"], input=raw)
    assert told.exit_code == 0
    assert [json.loads(line)["start"] for line in told.stdout.splitlines()] == [0.0, 0.5, 1.0]
    for wrong, reason in {
        ("none/model/x", "a.wav"): "there is no folder none/model/x",
        (str(saved_model), str(tmp_path / "sounds" / "..")[:-3] + "empty"): "cannot be used",
        (str(saved_model), "-", "a.wav"): "- stands alone",
        (str(saved_model), "-", "--samples", "u8"): "--samples is 'u8'; allowed: s16, f32",
        (str(saved_model), "a.wav", "--json", "--csv"): "exclude each other",
    }.items():
        told = run(app, ["predict", *wrong])
        assert told.exit_code in (1, 2)
        assert reason in told.stderr
