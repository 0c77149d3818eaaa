"""Any file becomes one second at 16 kHz, or an error that names it."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import read_all

from shard_descriptors.clips.audio import AudioError, read_clip
from shard_descriptors.utterances import Utterance


def tone(hertz: float, seconds: float, rate: int) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype("f4")


def write(path: Path, samples: np.ndarray, rate: int = 16_000, subtype: str = "PCM_16") -> Path:
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def test_as_recorded(tmp_path: Path) -> None:
    samples = tone(440, 1, 16_000)
    clip = read_clip(write(tmp_path / "a.wav", samples))
    assert clip.shape == (16_000,)
    assert clip.dtype == np.float32
    np.testing.assert_allclose(clip, samples, atol=2 / 32768)


def test_stereo_is_averaged(tmp_path: Path) -> None:
    left, right = tone(440, 1, 16_000), tone(880, 1, 16_000)
    clip = read_clip(write(tmp_path / "a.wav", np.stack([left, right], axis=1)))
    np.testing.assert_allclose(clip, (left + right) / 2, atol=2 / 32768)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(tmp_path: Path, rate: int) -> None:
    clip = read_clip(write(tmp_path / "a.wav", tone(440, 1, rate), rate))
    middle = slice(1_000, 15_000)  # a cut tone rings at its ends
    np.testing.assert_allclose(clip[middle], tone(440, 1, 16_000)[middle], atol=2e-3)


def test_short_is_padded_on_the_right(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.wav", tone(440, 0.5, 16_000)))
    assert np.abs(clip[:8_000]).max() > 0.4
    assert not clip[8_000:].any()


def test_long_is_cut(tmp_path: Path) -> None:
    samples = tone(440, 2.5, 16_000)
    clip = read_clip(write(tmp_path / "a.wav", samples))
    np.testing.assert_allclose(clip, samples[:16_000], atol=2 / 32768)


@pytest.mark.parametrize("rate", [16_000, 32_000])
def test_start_is_counted_at_16_khz(tmp_path: Path, rate: int) -> None:
    steps = np.repeat(np.float32([0.1, 0.2, 0.3]), rate)
    clip = read_clip(write(tmp_path / "a.wav", steps, rate), start=16_000)
    np.testing.assert_allclose(clip[100:-100], 0.2, atol=1e-3)


def test_last_clip_of_a_file_is_padded(tmp_path: Path) -> None:
    clip = read_clip(write(tmp_path / "a.wav", tone(440, 1.5, 16_000)), start=16_000)
    assert clip[:8_000].any()
    assert not clip[8_000:].any()


def test_never_beyond_full_scale(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", 4 * tone(440, 1, 16_000), subtype="FLOAT")
    assert np.abs(read_clip(path)).max() == 1.0


def test_one_sample_is_enough(tmp_path: Path) -> None:
    assert read_clip(write(tmp_path / "a.wav", np.float32([0.5])))[0] == pytest.approx(0.5)


def test_other_containers(tmp_path: Path) -> None:
    path = tmp_path / "a.flac"
    soundfile.write(path, tone(440, 1, 16_000), 16_000)
    assert read_clip(path).any()


def test_cut_off_download(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(440, 1, 16_000))
    path.write_bytes(path.read_bytes()[:10_044])  # 5,000 samples of the 16,000 in its header
    clip = read_clip(path)
    assert clip[:5_000].any()
    assert not clip[5_000:].any()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be read as audio"),
        (b"not a recording", "cannot be read as audio"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "cannot be read as audio"),
    ],
)
def test_corrupt(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(content)
    with pytest.raises(AudioError, match=problem) as error:
        read_clip(path)
    assert str(path) in str(error.value)


def test_without_samples(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"a\.wav holds no samples"):
        read_clip(write(tmp_path / "a.wav", np.zeros(0, dtype="f4")))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"gone\.wav is not a file"):
        read_clip(tmp_path / "gone.wav")
    with pytest.raises(AudioError, match="is not a file"):
        read_clip(tmp_path)


def test_not_finite(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", np.float32([0, np.nan]), subtype="FLOAT")
    with pytest.raises(AudioError, match=r"a\.wav holds samples that are not finite"):
        read_clip(path)


def test_start_beyond_the_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(440, 1, 16_000))
    with pytest.raises(AudioError, match=r"lasts 1\.00 s, but the clip starts at 1\.00 s"):
        read_clip(path, start=16_000)
    with pytest.raises(AudioError, match="start -1"):
        read_clip(path, start=-1)


def test_read_clips(tmp_path: Path) -> None:
    path = write(tmp_path / "a.wav", tone(440, 2, 16_000))
    rows = [Utterance("a", str(path), "_silence_", None, "train", s) for s in (16_000, 0)]
    clips = read_all(rows)
    assert clips.shape == (2, 16_000)
    assert clips.dtype == np.float32
    np.testing.assert_array_equal(clips[1], read_clip(path))
    assert read_all([]).shape == (0, 16_000)
