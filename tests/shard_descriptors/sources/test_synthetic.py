"""Synthetic speech: the official layout, the same bytes every time, made once and safely."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from corpora import TINY, read_all

from shard_descriptors.corpus import CorpusError
from shard_descriptors.labels import KEYWORDS, OTHER_WORDS
from shard_descriptors.sources import synthetic
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.sources.synthetic import (
    Speaker,
    SyntheticSettings,
    default_corpus,
    make_corpus,
    record,
)
from shard_descriptors.splits import which_split

MINUTE = SyntheticSettings(
    train_speakers=3,
    validation_speakers=1,
    test_speakers=1,
    train_clips=24,
    validation_clips=4,
    test_clips_per_label=1,
    noise_seconds=2,
)
BREATHY = Speaker("0", "train", "en-us+f5", 50, 50, 150, 1.0, 0.0, -20, 20)
DEEP = Speaker("1", "train", "en-gb-scotland+m3", 40, 50, 150, 1.0, 0.0, -20, 20)


def contents(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def run(program: str, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_layout(tiny_corpus: Path) -> None:
    archive = tiny_corpus / "speech_commands_v0.01"
    assert {p.name for p in archive.iterdir()} == {
        *KEYWORDS, *OTHER_WORDS, "_background_noise_", "validation_list.txt", "testing_list.txt",
    }  # fmt: skip
    assert len(list((archive / "_background_noise_").iterdir())) == 6
    tested = tiny_corpus / "speech_commands_test_set_v0.01" / "_unknown_"
    assert all(p.name.endswith(".wav.wav") for p in tested.iterdir())
    assert "SYNTHETIC SPEECH" in (tiny_corpus / "README.txt").read_text()
    assert json.loads((tiny_corpus / "synthetic.json").read_text())["train_speakers"] == 12


def test_files_are_as_the_official_ones(tiny_corpus: Path) -> None:
    words = [p for p in tiny_corpus.rglob("*.wav") if p.parent.name != "_background_noise_"]
    for path in words:
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.frames) == (16_000, 1, 16_000)
        assert info.subtype == "PCM_16"


def test_split_follows_the_official_rule(tiny_corpus: Path) -> None:
    rows = load(tiny_corpus).utterances
    assert all(which_split(u.speaker) == u.split for u in rows if u.speaker is not None)


def test_testing_list_names_the_test_archive_speakers(tiny_corpus: Path) -> None:
    listed = (tiny_corpus / "speech_commands_v0.01" / "testing_list.txt").read_text().split()
    rows = [u for u in load(tiny_corpus).utterances if u.split == "test" and u.speaker]
    assert len(listed) == len(rows)
    assert {name[-21:-13] for name in listed} >= {str(u.speaker)[:8] for u in rows}


def test_unknown_share(tiny_corpus: Path) -> None:
    labels = Counter(u.label for u in load(tiny_corpus).utterances if u.split == "train" and u.speaker)
    assert labels["_unknown_"] == 54
    assert set(labels.values()) == {54, 12, 13}


def test_levels(tiny_corpus: Path) -> None:
    rows = load(tiny_corpus).utterances
    clips = read_all(rows)
    spoken = np.array([u.speaker is not None for u in rows])
    rms = 20 * np.log10(np.sqrt(np.mean(np.square(clips), axis=1)))
    assert np.abs(clips).max() < 0.96
    assert rms[spoken].min() > -50
    assert rms[spoken].max() < -10
    assert np.ptp(rms[spoken]) > 10
    assert len({clip.tobytes() for clip in clips}) == len(clips)


def test_words_can_be_told_apart_on_unseen_speakers(tiny_corpus: Path) -> None:
    """Far above chance even for nearest neighbours on coarse spectra of 180 train clips."""
    rows = load(tiny_corpus).utterances
    frames = read_all(rows).reshape(len(rows), 50, 320)
    power = np.abs(np.fft.rfft(frames * np.hanning(320)))[:, :, 1:129] ** 2
    bands = np.log(power.reshape(len(rows), 50, 16, 8).mean(axis=3) + 1e-7)
    features = np.stack([np.roll(b, 25 - int(np.argmax(b.mean(axis=1))), axis=0) for b in bands]).reshape(len(rows), -1)
    features -= features.mean(axis=1, keepdims=True)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    train = np.array([u.split == "train" for u in rows])
    labels = np.array([u.label for u in rows])
    keyword = np.isin(labels, KEYWORDS)
    nearest = (features[~train & keyword] @ features[train & keyword].T).argmax(axis=1)
    accuracy = np.mean(labels[train & keyword][nearest] == labels[~train & keyword])
    assert 0.25 < accuracy < 0.95  # chance: 0.1


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    first, second, other = tmp_path / "a", tmp_path / "b", tmp_path / "c"
    make_corpus(first, MINUTE)
    list(record(DEEP, ["yes", "marvin"], [np.ones(20_000)], np.random.default_rng(0)))
    make_corpus(second, MINUTE)
    assert contents(first) == contents(second)
    make_corpus(other, SyntheticSettings(**{**_fields(MINUTE), "seed": 1}))
    assert not contents(first).keys() >= contents(other).keys()


def _fields(settings: SyntheticSettings) -> dict[str, float]:
    return {name: getattr(settings, name) for name in SyntheticSettings.__dataclass_fields__}


def test_same_bytes_in_another_process(tmp_path: Path) -> None:
    make_corpus(tmp_path / "here", MINUTE)
    program = (
        f"from shard_descriptors.sources.synthetic import *\nmake_corpus({str(tmp_path / 'there')!r}, {MINUTE!r})\n"
    )
    process = run(program, PYTHONHASHSEED="77")
    assert process.wait() == 0, process.stderr
    assert contents(tmp_path / "here") == contents(tmp_path / "there")


@pytest.mark.parametrize("speaker", [BREATHY, DEEP])
def test_nothing_carries_over_from_speaker_to_speaker(speaker: Speaker) -> None:
    """What someone says is the same after silence and after another speaker."""

    def say(who: Speaker) -> bytes:
        noise = [np.full(20_000, 0.01)]
        clips = record(who, ["seven", "yes", "happy"], noise, np.random.default_rng(5))
        return b"".join(clip.tobytes() for clip in clips)

    alone = say(speaker)
    say(BREATHY)
    say(DEEP)
    assert say(speaker) == alone


def test_noise_of_the_splits_differs(tiny_corpus: Path) -> None:
    """No second of train silence is heard again in the test archive."""
    rows = [u for u in load(tiny_corpus).utterances if u.speaker is None]
    clips = read_all(rows)
    clips /= np.linalg.norm(clips, axis=1, keepdims=True)
    train = np.array([u.split == "train" for u in rows])
    for test in clips[~train]:
        for noise in clips[train]:
            spectrum = np.fft.rfft(test, 32_000) * np.conj(np.fft.rfft(noise, 32_000))
            whitened = spectrum / np.maximum(np.abs(spectrum), 1e-9)
            assert np.abs(np.fft.irfft(whitened)).max() < 0.3


def test_settings_report_every_problem() -> None:
    with pytest.raises(ValueError, match=r"seed is -1.*train_clips is 5.*unknown_share is 2"):
        SyntheticSettings(seed=-1, train_clips=5, unknown_share=2)
    with pytest.raises(ValueError, match=r"train_speakers is 2\.5"):
        SyntheticSettings(train_speakers=2.5)  # type: ignore[arg-type]


def test_digest_names_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SyntheticSettings().digest == SyntheticSettings(seed=0).digest
    assert SyntheticSettings().digest != SyntheticSettings(seed=1).digest
    before = SyntheticSettings().digest
    monkeypatch.setattr(synthetic, "GENERATOR_VERSION", synthetic.GENERATOR_VERSION + 1)
    assert SyntheticSettings().digest != before


def test_full_scale_plan() -> None:
    """The size of the original, without its audio."""
    full = SyntheticSettings(
        train_speakers=1_503,
        validation_speakers=189,
        test_speakers=189,
        train_clips=51_088,
        validation_clips=6_798,
        test_clips_per_label=621,
    )
    plan = synthetic._plan(full, np.random.default_rng(0))
    assert len({speaker.name for speaker, _ in plan}) == 1_881
    assert sum(len(words) for _, words in plan) == 51_088 + 6_798 + 621 * 11


def test_folder_in_use(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("")
    with pytest.raises(CorpusError, match="is not empty"):
        make_corpus(tmp_path, MINUTE)


def test_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_CACHE", str(tmp_path / "cache"))
    corpus = default_corpus(progress=False, settings=MINUTE)
    assert corpus == tmp_path / "cache" / f"synthetic-{MINUTE.digest}"
    assert load(corpus).utterances
    monkeypatch.setattr(synthetic, "make_corpus", None)
    assert default_corpus(settings=MINUTE) == corpus


def test_progress_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("KWS_CACHE", str(tmp_path / "a"))
    default_corpus(progress=False, settings=MINUTE)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("KWS_CACHE", str(tmp_path / "b"))
    default_corpus(settings=MINUTE)
    assert "synthetic speech: 100%" in capsys.readouterr().err


DEFAULT = f"from shard_descriptors.sources.synthetic import *\nprint(default_corpus(settings={TINY!r}))"


def test_two_processes_at_once(tmp_path: Path) -> None:
    processes = [run(DEFAULT, KWS_CACHE=str(tmp_path)) for _ in range(2)]
    answers = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], answers
    assert {out.strip() for out, _ in answers} == {str(tmp_path / f"synthetic-{TINY.digest}")}
    assert sum("100%" in err for _, err in answers) == 1  # only one of them made it
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == [f"synthetic-{TINY.digest}"]


def test_killed_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process = run(DEFAULT, KWS_CACHE=str(tmp_path))
    while not list(tmp_path.glob("*/*/*/*/*_nohash_*.wav")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (tmp_path / f"synthetic-{TINY.digest}").exists()
    monkeypatch.setenv("KWS_CACHE", str(tmp_path))
    corpus = default_corpus(progress=False, settings=TINY)
    assert len(load(corpus).utterances) == 281
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == [corpus]  # the remains are gone


def test_cache_that_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("KWS_CACHE", str(tmp_path / "file"))
    with pytest.raises(CorpusError, match=r"cannot be written to .*KWS_CACHE"):
        default_corpus(progress=False, settings=MINUTE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_read_only_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o500)
    monkeypatch.setenv("KWS_CACHE", str(tmp_path))
    with pytest.raises(CorpusError, match=r"Permission denied\. Set KWS_CACHE"):
        default_corpus(progress=False, settings=MINUTE)


@pytest.mark.parametrize("number", [0, 5, 20])
def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setenv("KWS_CACHE", str(tmp_path))
    monkeypatch.setattr(Path, "write_bytes", _full_after(number, Path.write_bytes))
    with pytest.raises(CorpusError, match=r"No space left on device\. Set KWS_CACHE"):
        default_corpus(progress=False, settings=MINUTE)
    assert not any(p.is_dir() for p in tmp_path.iterdir())


def _full_after(number: int, write: Callable[[Path, bytes], int]) -> Callable[[Path, bytes], int]:
    left = iter(range(number))

    def full(path: Path, data: bytes) -> int:
        if next(left, None) is None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, data)

    return full


def test_no_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic.espeakng_loader, "get_library_path", lambda: "/gone/espeak.so")
    monkeypatch.setenv("KWS_CACHE", str(tmp_path))
    with pytest.raises(CorpusError, match="espeak-ng cannot be loaded"):
        default_corpus(progress=False, settings=MINUTE)


def test_every_voice_is_there() -> None:
    """Looked up by file too: espeak-ng speaks plainly when it does not know a variant."""
    variants = Path(synthetic.espeakng_loader.get_data_path()) / "voices" / "!v"
    assert set(synthetic.VARIANTS) <= {path.name for path in variants.iterdir()}
    voices = [f"en-us+{v}" for v in synthetic.VARIANTS] + [f"{a}+f1" for a in synthetic.ACCENTS]
    for voice in voices:
        with synthetic._Espeak(voice) as espeak:
            assert 2_000 < len(espeak.say("yes", 150, 50, 50)) < 30_000
    with pytest.raises(CorpusError, match=r"no voice martian\+f1"):
        synthetic._Espeak("martian+f1")
