"""What a source gives: its utterances, and the form in which a model gets them."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from shard_descriptors.clips.audio import CLIP_SAMPLES, SAMPLE_RATE
from shard_descriptors.labels import LABELS
from shard_descriptors.utterances import SPLITS, Utterance, canonical_order


class CorpusError(ValueError):
    """Recordings that cannot be used; the message says which, and what to do."""


@dataclass(frozen=True)
class ClipFormat:
    """What a model hears and answers; every site of a federation must have the same.

    labels:      label names, in the order of their ids.
    sample_rate: Hz; recordings of another rate are resampled.
    num_samples: length of a clip; shorter ones are padded with zeros, longer ones cut.
    """

    labels: tuple[str, ...] = LABELS
    sample_rate: int = SAMPLE_RATE
    num_samples: int = CLIP_SAMPLES

    def __post_init__(self) -> None:
        """CorpusError names every value that cannot be used."""
        problems = [f"the label {label!r} is there twice" for label, n in Counter(self.labels).items() if n > 1]
        if len(self.labels) < 2:
            problems.append(f"labels are {list(self.labels)}; a classifier needs two at least")
        if self.sample_rate < 1000:
            problems.append(f"sample_rate is {self.sample_rate} Hz; allowed: 1000 and more")
        if self.num_samples < 1:
            problems.append(f"a clip has {self.num_samples} samples; it needs one at least")
        if problems:
            raise CorpusError("; ".join(problems))

    @property
    def label_ids(self) -> dict[str, int]:
        """The id of each label."""
        return {label: label_id for label_id, label in enumerate(self.labels)}


SUPERB_KS = ClipFormat()
"""One second at 16 kHz, the twelve labels of keyword spotting."""


@dataclass(frozen=True)
class Corpus:
    """The recordings of one source, in canonical order; made by `Corpus.of`."""

    name: str
    utterances: tuple[Utterance, ...]
    format: ClipFormat = SUPERB_KS

    @classmethod
    def of(cls, name: str, utterances: Iterable[Utterance], form: ClipFormat = SUPERB_KS) -> "Corpus":
        """A corpus of these utterances, in whatever order they come.

        CorpusError when there are none, for a label or split that does not exist, and for two utterances of one name.
        """
        rows = list(utterances)
        if not rows:
            raise CorpusError(f"{name} holds no recordings")
        for row in rows:
            if row.split not in SPLITS:
                raise CorpusError(f"{row.name}: split is {row.split!r}; allowed: {', '.join(SPLITS)}")
        if unknown := sorted({row.label for row in rows} - set(form.labels)):
            example = next(row.name for row in rows if row.label == unknown[0])
            raise CorpusError(
                f"{name}: {example} has the label {unknown[0]!r}"
                f"{f' (and {len(unknown) - 1} others are as unknown)' if len(unknown) > 1 else ''}; "
                f"allowed: {', '.join(form.labels)}"
            )
        rows.sort(key=canonical_order)
        seen: dict[tuple[str, int], Utterance] = {}
        for row in rows:
            if (other := seen.setdefault((row.name, row.start), row)) is not row:
                raise CorpusError(
                    f"{name}: two recordings have the name {row.name} ({other.path} and {row.path}); "
                    f"rename or remove one"
                )
        return cls(name, tuple(rows), form)
