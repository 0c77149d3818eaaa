"""The labels are SUPERB's, in SUPERB's order."""

from shard_descriptors.corpus import SUPERB_KS
from shard_descriptors.labels import KEYWORDS, LABELS, OTHER_WORDS, label_of


def test_superb_order() -> None:
    assert LABELS == (
        "yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go",
        "_silence_", "_unknown_",
    )  # fmt: skip
    assert SUPERB_KS.label_ids["yes"] == 0
    assert SUPERB_KS.label_ids["_silence_"] == 10
    assert SUPERB_KS.label_ids["_unknown_"] == 11


def test_thirty_words() -> None:
    assert len({*KEYWORDS, *OTHER_WORDS}) == 30


def test_label_of() -> None:
    assert all(label_of(word) == word for word in KEYWORDS)
    assert all(label_of(word) == "_unknown_" for word in (*OTHER_WORDS, "backward", "Yes"))
    assert label_of("_background_noise_") == label_of("_silence_") == "_silence_"
