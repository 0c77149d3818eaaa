"""The official rule, against the official lists."""

import pytest
from corpora import BESIDE_THE_REPO

from shard_descriptors.splits import speaker_of, which_split

LISTS = BESIDE_THE_REPO / "speech_commands_v0.01_lists"


@pytest.mark.parametrize(
    ("split", "filename"),
    [
        ("train", "train_list.txt"),
        ("validation", "validation_list.txt"),
        ("test", "testing_list.txt"),
    ],
)
def test_official_lists(split: str, filename: str) -> None:
    if not LISTS.is_dir():
        pytest.skip("the official file lists are not beside the repository")
    names = (LISTS / filename).read_text().split()
    assert len(names) > 6_000
    assert [name for name in names if which_split(name) != split] == []


def test_known_speakers() -> None:
    assert which_split("e91d173e") == "train"
    assert which_split("026290a7") == "validation"
    assert which_split("0c40e715") == "test"


def test_all_clips_of_a_speaker_together() -> None:
    names = ["0c40e715", "0c40e715_nohash_7.wav", "bed/0c40e715_nohash_0.wav", "/x/0c40e715"]
    assert {which_split(name) for name in names} == {"test"}
    assert {speaker_of(name) for name in names} == {"0c40e715"}


def test_percentages() -> None:
    speakers = [f"{number:08x}" for number in range(2_000)]
    assert {which_split(s, 0, 0) for s in speakers} == {"train"}
    assert {which_split(s, 100, 0) for s in speakers} == {"validation"}
    assert {which_split(s, 0, 101) for s in speakers} == {"test"}
    assert 0.08 < sum(which_split(s) == "test" for s in speakers) / 2_000 < 0.12
