"""Every example of docs/recordings.md, on recordings made for it; and a newcomer's own source, as it stands there."""

import re
import sys
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from openfl.interface.interactive_api.shard_descriptor import ShardDescriptor
from recordings import as_float, data_set, sound, write

from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources import registry as sources
from shard_descriptors.utterances import SPLITS

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "recordings.md").read_text(encoding="utf-8")
SETTINGS = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
CODE = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with all that the page tells of; sound(1) of speaker 1 is there in each."""
    monkeypatch.setenv("HOME", str(tmp_path))
    root = tmp_path / "recordings"
    calls, french = ["path,word,speaker,begin,duration"], ["client_id\tpath\tsentence\taccents"]
    for i in range(20):
        write(root / "commands" / ("yes", "no", "cat")[i % 3] / f"s{i}_0.wav", sound(i))
        write(root / "ward" / f"s{i}" / "welsh" / f"2024-02-29 {('help', 'stop', 'light')[i % 3]}.wav", sound(i), 8_000)
        write(root / "calls" / f"{i // 10}.wav", np.concatenate([sound(j) for j in range(10)]))
        calls.append(f"{i // 10}.wav,{('hello', 'goodbye', 'er')[i % 3]},s{i},{i % 10},1.0")
        write(root / "cv-corpus" / "fr" / "clips" / f"{i}.mp3", sound(i))
        french.append(f"s{i}\t{i}.mp3\t{('oui', 'non', 'Où est-ce ?')[i % 3]}\tSuisse")
    (root / "calls" / "words.csv").write_text("\n".join(calls))
    (root / "cv-corpus" / "fr" / "validated.tsv").write_text("\n".join(french))
    data_set(range(40)).save_to_disk(str(root / "saved_set"))
    return tmp_path


def described(settings: dict[str, Any]) -> ShardDescriptor:
    section = settings["shard_descriptor"]
    descriptor: ShardDescriptor = locate(section["template"])(**section["params"])  # type: ignore[operator]
    assert section["params"]["partition"] == "own"
    return descriptor


def test_every_source_is_on_the_page() -> None:
    params = [settings["shard_descriptor"]["params"] for settings in SETTINGS]
    assert {each["source"] for each in params} | {"speech_commands"} == sources.SOURCES.keys()
    assert all(f"`{source}`" in PAGE for source in sources.SOURCES)


@pytest.mark.parametrize("number", range(len(SETTINGS)))
def test_settings(number: int) -> None:
    descriptor = described(SETTINGS[number])
    splits = [descriptor.get_dataset(split) for split in SPLITS]
    utterances = [u for clips in splits for u in clips.utterances]
    assert len({u.speaker for u in utterances}) == 20
    assert len({(u.speaker, u.split) for u in utterances}) == 20
    clips, spoken = next((c, i) for c in splits for i, u in enumerate(c.utterances) if u.speaker == "s2")
    clip = clips.read([spoken])[0]
    assert clip.shape == (clips.format.num_samples,)
    expected = as_float(sound(4 if clips.utterances[spoken].row is not None else 2))
    if clips.utterances[spoken].path.endswith(".mp3"):
        assert np.corrcoef(clip[:15_000], expected[:15_000])[0, 1] > 0.3
    else:
        np.testing.assert_array_equal(clip[:8_000], expected[:8_000])


@pytest.mark.parametrize("code", CODE[:2])
def test_code(code: str, capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(code, "docs/recordings.md", "exec"), {})
    if "print" in code:
        assert "('train', 'yes')" in capsys.readouterr().out


def test_a_source_of_ones_own(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("shard_descriptors.sources.kaldi")
    exec(compile(CODE[-1], "docs/recordings.md", "exec"), module.__dict__)
    monkeypatch.setitem(sys.modules, "shard_descriptors.sources.kaldi", module)
    monkeypatch.setitem(sources.SOURCES, "kaldi", "a data folder in Kaldi's form")
    folder = home / "data"
    for i in range(10):
        write(folder / "wav" / f"{i}.wav", sound(i))
    (folder / "wav.scp").write_text("".join(f"u{i} wav/{i}.wav\n" for i in range(10)))
    (folder / "text").write_text("".join(f"u{i} {'yes' if i % 2 else 'no'}\n" for i in range(10)))
    (folder / "utt2spk").write_text("".join(f"u{i} s{i // 2}\n" for i in range(10)))
    corpus = sources.open_corpus("kaldi", folder, labels=["yes", "no"])
    assert len({(u.speaker, u.split) for u in corpus.utterances}) == 5
    number = next(i for i, u in enumerate(corpus.utterances) if u.name == "u3")
    np.testing.assert_array_equal(ClipSet(corpus.utterances, corpus.format).read([number])[0], as_float(sound(3)))
    with pytest.raises(CorpusError, match="the source kaldi has no setting 'sample_rate'; allowed: labels, other"):
        sources.open_corpus("kaldi", folder, sample_rate=8_000)
    with pytest.raises(CorpusError, match=r"wav\.scp, u0: the label 'no' is not known; allowed: on, off"):
        sources.open_corpus("kaldi", folder, labels=["on", "off"])
    (folder / "text").unlink()
    with pytest.raises(CorpusError, match="text is missing; a data folder holds"):
        sources.open_corpus("kaldi", folder)
