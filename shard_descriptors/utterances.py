"""One row per clip: where it lies, what is said, by whom. Nothing is decoded here."""

from dataclasses import dataclass

SPLITS: tuple[str, ...] = ("train", "validation", "test")


@dataclass(frozen=True, order=True, slots=True)
class Utterance:
    """One clip, or a longer recording to take clips from.

    name:        the same on every machine, wherever the corpus lies; with `start` unique in its corpus.
    path:        the audio file, or the Arrow file whose row `row` holds it.
    label:       one of the corpus' labels.
    speaker:     the speaker's id; None where nobody speaks, or nobody knows who.
    split:       one of `SPLITS`.
    start:       first sample within the file, counted at the corpus' sample rate.
    num_samples: how long it lasts, counted likewise, where the source knows; longer than a clip: clips are cut from it.
    row:         row of an Arrow file.
    columns:     what else is known, by name: the word, an accent, a microphone.
    """

    name: str
    path: str
    label: str
    speaker: str | None
    split: str
    start: int = 0
    num_samples: int | None = None
    row: int | None = None
    columns: tuple[tuple[str, str], ...] = ()

    def column(self, name: str) -> str | None:
        """The value of a column, "label" and "speaker" included; None where it is not known."""
        if name in ("label", "speaker"):
            known: str | None = getattr(self, name)
            return known
        return dict(self.columns).get(name)


def canonical_order(utterance: Utterance) -> tuple[int, str, int]:
    """Sort key (split, name, start) that does not depend on where the corpus lies."""
    return SPLITS.index(utterance.split), utterance.name, utterance.start
