"""What all sources share: wrong settings are named, labels and splits follow one rule."""

import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shard_descriptors.corpus import CorpusError
from shard_descriptors.sources.rules import Rules, split_named

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12).filter(str.strip)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"labels": [True, False]}, r"True among labels and other is not text; put it in quotes"),
        ({"labels": "yes no"}, r"labels is 'yes no'; give a list"),
        ({"labels": ["yes", " "]}, r"' ' among labels"),
        ({"labels": ["yes"], "other": False}, r"False among labels and other"),
        ({"other": "rest"}, r"other is 'rest', but labels is not given"),
        ({"sample_rate": "16k"}, r"sample_rate is '16k'; allowed: whole Hz"),
        ({"sample_rate": True}, r"sample_rate is True"),
        ({"sample_rate": 16_000.5}, r"sample_rate is 16000\.5"),
        ({"clip_seconds": 0}, r"clip_seconds is 0; allowed: seconds, more than 0"),
        ({"clip_seconds": float("nan")}, r"clip_seconds is nan"),
        ({"validation_percent": -1}, r"validation_percent is -1"),
        ({"validation_percent": 60, "test_percent": 50}, r"both together at most 100"),
        ({"clip_seconds": -1, "sample_rate": None}, r"sample_rate is None.*; clip_seconds is -1"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(CorpusError, match=problem):
        Rules(**settings)


def test_clip_format_that_cannot_be() -> None:
    with pytest.raises(CorpusError, match=r"house: labels are \['yes'\]; a classifier needs two at least"):
        Rules().corpus("house", [Rules().utterance("a", "a", "yes")])
    rules = Rules(["yes", "no"], sample_rate=10)
    with pytest.raises(CorpusError, match="sample_rate is 10 Hz"):
        rules.corpus("house", [rules.utterance("a", "a", "yes")])
    with pytest.raises(CorpusError, match="house holds no recordings"):
        rules.corpus("house", [])


def test_other_is_one_label_more() -> None:
    rules = Rules(["no", "yes"], other="rest")
    corpus = rules.corpus("house", [rules.utterance(label, label, label) for label in ("yes", "maybe")])
    assert corpus.format.labels == ("no", "yes", "rest")
    assert {u.name: u.label for u in corpus.utterances} == {"yes": "yes", "maybe": "rest"}
    assert Rules(["rest", "yes"], other="rest").labels == ("rest", "yes")


def test_unknown_label() -> None:
    with pytest.raises(CorpusError, match=r"the label 'maybe' is not known; allowed: yes, no; add it .* or let"):
        Rules(["yes", "no"]).utterance("a", "a", "maybe")
    with pytest.raises(CorpusError, match="the label is empty"):
        Rules().utterance("a", "a", " ")


def test_accents_in_either_form_are_one_label() -> None:
    apart = unicodedata.normalize("NFD", "où")
    rules = Rules(["où", "là"])
    assert rules.utterance("a", "a", apart).label == "où"
    assert Rules([apart, "là"]).labels == ("où", "là")


@given(speakers=st.lists(NAMES, min_size=1), number=st.integers(0, 9))
def test_a_speaker_is_in_one_split(speakers: list[str], number: int) -> None:
    rows = [Rules().utterance(f"{i}/{number}", "a", "yes", speaker) for i, speaker in enumerate(speakers * 2)]
    assert len({(row.speaker, row.split) for row in rows}) == len({row.speaker for row in rows})


def test_shares_of_the_splits() -> None:
    rules = Rules(validation_percent=20, test_percent=30)
    rows = [rules.utterance(f"yes/{i}", "a", "yes") for i in range(4_000)]
    assert 0.17 < sum(row.split == "validation" for row in rows) / 4_000 < 0.23
    assert 0.27 < sum(row.split == "test" for row in rows) / 4_000 < 0.33


def test_names_in_folders_are_told_apart() -> None:
    # Every folder has the same few file names; they must not all fall into the same split.
    rows = [Rules().utterance(f"{i}/a.wav", "a", "yes") for i in range(200)]
    assert {row.split for row in rows} == {"train", "validation", "test"}


@pytest.mark.parametrize("name", ["dev", "Valid", "EVAL", " validation"])
def test_names_of_splits(name: str) -> None:
    assert split_named(name) == "validation"
    with pytest.raises(CorpusError, match=r"split is 'train\.100'; allowed: train, validation, test"):
        split_named("train.100")


def test_seconds_become_samples() -> None:
    row = Rules(sample_rate=8_000).utterance("a", "a", "yes", start=1.5, duration=0.25)
    assert (row.start, row.num_samples) == (12_000, 2_000)
    for wrong in ({"start": -1.0}, {"start": float("inf")}, {"duration": float("nan")}, {"duration": 0.0}):
        with pytest.raises(CorpusError, match=f"{next(iter(wrong))} is"):
            Rules().utterance("a", "a", "yes", **wrong)  # type: ignore[arg-type]
