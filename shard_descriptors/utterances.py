"""One row per one-second clip: where it lies, what is said, by whom. Nothing is decoded here."""

import os
from dataclasses import dataclass
from pathlib import Path

SPLITS: tuple[str, ...] = ("train", "validation", "test")


@dataclass(frozen=True, order=True, slots=True)
class Utterance:
    """One clip of one second.

    path:    the audio file.
    label:   one of `labels.LABELS`.
    word:    the word spoken, or `_background_noise_` / `_silence_`.
    speaker: the speaker's id; None where nobody speaks.
    split:   one of `SPLITS`.
    start:   first sample of the clip within the file, counted at 16 kHz; 0 but for noise files.
    """

    path: Path | str
    label: str
    word: str
    speaker: str | None
    split: str
    start: int = 0

    @property
    def name(self) -> str:
        """`word/filename`: the same on every machine, wherever the corpus lies."""
        return f"{self.word}/{os.path.basename(self.path)}"


def canonical_order(utterance: Utterance) -> tuple[int, str, int]:
    """Sort key (split, name, start) that does not depend on where the corpus lies."""
    return SPLITS.index(utterance.split), utterance.name, utterance.start
