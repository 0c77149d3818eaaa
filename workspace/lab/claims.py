"""What may be said of the test utterances: counted, before it is printed."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from shard_descriptors.clips.audio import AudioError, read_clip
from shard_descriptors.corpus import Corpus
from shard_descriptors.labels import SILENCE
from shard_descriptors.utterances import Utterance


@dataclass(frozen=True)
class Overlap:
    """How far the test utterances are new to the sites.

    speakers: in the test split. trained, validated: how many of them speak in the train and in the validation split as
    well. nameless: test or train utterances, silence aside, whose speaker nobody knows. recordings: in the test split.
    equal: how many of those are, sample for sample, in the train or validation split as well (digital silence aside).
    """

    speakers: int
    trained: int
    validated: int
    nameless: int
    recordings: int
    equal: int

    @property
    def new(self) -> bool:
        """Whether no site trained on any of these speakers or recordings, as far as it can be counted."""
        return self.speakers > 0 and not (self.trained or self.nameless or self.equal)

    def sentence(self) -> str:
        """What is the case, to go on from "on N test utterances of"."""
        if self.new:
            told = [f"{_counted(self.speakers, 'speaker')} that no site trained on"]
        else:
            told = [_counted(self.speakers, "speaker") if self.speakers else "nobody knows whom"]
            if self.trained:
                told.append(f"{self.trained} of them also in the training data")
            if self.nameless:
                told.append(f"the speakers of {_counted(self.nameless, 'utterance')} (train and test) are not known")
            if self.equal:
                told.append(f"{self.equal} of {_counted(self.recordings, 'recording')} also in train or validation")
        if self.validated:
            told.append(f"the best model was chosen on {self.validated} of them")
        return "; ".join(told)

    def to_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)


def count_overlap(corpus: Corpus, sounds: Sequence[bytes | None] | None = None) -> Overlap:
    """Count speakers that are in two splits, and recordings that are there twice.

    sounds: what `sounds_of` gives, where it is there already.
    """
    parts: dict[str, list[Utterance]] = {"train": [], "validation": [], "test": []}
    for utterance in corpus.utterances:
        parts[utterance.split].append(utterance)
    speakers = {split: {u.speaker for u in rows} - {None} for split, rows in parts.items()}
    heard = list(zip(corpus.utterances, sounds or sounds_of(corpus), strict=True))
    known = {sound for utterance, sound in heard if utterance.split != "test"} - {None, b""}
    return Overlap(
        len(speakers["test"]),
        len(speakers["test"] & speakers["train"]),
        len(speakers["test"] & speakers["validation"]),
        sum(u.speaker is None and u.label != SILENCE for u in [*parts["train"], *parts["test"]]),
        len(parts["test"]),
        sum(sound in known for utterance, sound in heard if utterance.split == "test"),
    )


def sounds_of(corpus: Corpus) -> tuple[bytes | None, ...]:
    """A digest of the samples of every utterance; b"" of digital silence, None of what cannot be read.

    Decodes every clip. What a short recording was padded with does not count.
    """
    return tuple(_sound(utterance, corpus) for utterance in corpus.utterances)


def _sound(utterance: Utterance, corpus: Corpus) -> bytes | None:
    length = utterance.num_samples or corpus.format.num_samples
    try:
        clip = read_clip(utterance.path, utterance.start, length, corpus.format.sample_rate, utterance.row)
    except AudioError:  # who trains or tests on it is told; it is no other's equal
        return None
    sound = np.trim_zeros(clip, "b")
    return hashlib.blake2b(sound.tobytes(), digest_size=16).digest() if len(sound) else b""


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' if number != 1 else ''}"
