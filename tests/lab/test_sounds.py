from pathlib import Path

import librosa
import numpy as np
import pytest

from lab import sounds
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.sources.speech_commands import load


def test_a_tone_is_loudest_in_its_own_band() -> None:
    time = np.arange(16_000) / 16_000
    spectrogram = sounds.mel_spectrogram(np.sin(2 * np.pi * 1000 * time).astype(np.float32), 16_000)
    assert spectrogram.shape == (64, 101), "a column every 10 ms"
    assert spectrogram.max() == pytest.approx(0, abs=1e-3)
    centres = librosa.mel_frequencies(66, fmax=8000)[1:-1]
    assert centres[spectrogram[:, 50].argmax()] == pytest.approx(1000, rel=0.05)


def test_silence_has_a_spectrogram() -> None:
    assert np.isfinite(sounds.mel_spectrogram(np.zeros(16_000, np.float32), 16_000)).all()


def test_one_clip_of_each_label_that_is_there(tiny_corpus: Path) -> None:
    corpus = load(tiny_corpus)
    some = sounds.one_of_each(corpus, ("no", "nothing", "yes"))
    assert [utterance.label for utterance in some] == ["no", "yes"]
    assert {utterance.split for utterance in some} == {"train"}


def test_players_come_with_captions(tiny_corpus: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus = load(tiny_corpus)
    clips = ClipSet(sounds.one_of_each(corpus, ("yes", "no")), corpus.format)
    sounds.play(clips, range(len(clips)))
    sounds.play(clips, [1], ["somebody says no"])
    shown = [line for line in capsys.readouterr().out.splitlines() if "Audio object" not in line]
    assert shown == ["yes", "no", "somebody says no"]
