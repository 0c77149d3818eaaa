"""What every source does alike: which label, which split, and how a clip is cut. One place for all of them."""

import math
import os
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shard_descriptors.corpus import ClipFormat, Corpus, CorpusError
from shard_descriptors.splits import which_split
from shard_descriptors.utterances import SPLITS, Utterance

AUDIO_SUFFIXES = frozenset(
    (
        ".aif", ".aifc", ".aiff", ".au", ".caf", ".flac", ".mp3", ".oga", ".ogg", ".opus", ".rf64", ".snd", ".sph",
        ".voc", ".w64", ".wav",
    )
)  # fmt: skip
"""File suffixes, in lower case, of what soundfile reads."""

SPLIT_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("validation", "valid", "val", "dev", "eval"), "validation"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""The names by which recordings come, and ours."""


@dataclass(frozen=True)
class Rules:
    """The settings that all sources share; a source makes its utterances and its corpus with them.

    labels:             label names in the order of their ids; None: those found. The sites of a federation must have
                        the same list, so name it unless each site surely has recordings of every label.
    other:              the label of everything that is not in `labels`; None: such a recording is an error.
    sample_rate:        Hz, 1000 and more.
    clip_seconds:       length of a clip.
    validation_percent: of the speakers, where no split is given; 0 to 100.
    test_percent:       likewise; both together at most 100.

    CorpusError names every value that cannot be used.
    """

    labels: Sequence[str] | None = None
    other: str | None = None
    sample_rate: int = 16_000
    clip_seconds: float = 1.0
    validation_percent: float = 10
    test_percent: float = 10

    def __post_init__(self) -> None:
        if problems := [*self._label_problems(), *self._number_problems()]:
            raise CorpusError("; ".join(problems))
        if self.labels is not None:
            labels = [text(label) for label in self.labels]
            if self.other is not None and text(self.other) not in labels:
                labels.append(text(self.other))
            object.__setattr__(self, "labels", tuple(labels))

    def utterance(
        self,
        name: str,
        path: Path | str,
        label: str,
        speaker: str | None = None,
        split: str | None = None,
        start: float = 0.0,
        duration: float | None = None,
        row: int | None = None,
        columns: Iterable[tuple[str, str]] = (),
    ) -> Utterance:
        """An utterance from what a source has found.

        label:           as found; becomes `other` where `labels` does not have it.
        speaker:         "" counts as None.
        split:           one of `SPLIT_NAMES`, in any case. None: by the speaker's hash, so that nobody is in two
                         splits; by that of the name where the speaker is not known, and then somebody may be.
        start, duration: seconds, where the recording holds more than this utterance.

        CorpusError for a label or split that does not exist, and for a time that cannot be; it does not say of which
        recording: see `about`.
        """
        speaker = text(speaker or "") or None
        return Utterance(
            name=text(name),
            path=os.fspath(path),
            label=self._label(text(label)),
            speaker=speaker,
            split=self._split_of(speaker or name) if split is None else split_named(split),
            start=round(_seconds("start", start) * self.sample_rate),
            num_samples=None if duration is None else self._length(duration),
            row=row,
            columns=tuple((column, text(value)) for column, value in columns if value),
        )

    def corpus(self, name: str, utterances: Iterable[Utterance], labels: Sequence[str] | None = None) -> Corpus:
        """A corpus of these utterances. `labels`: the order that the source knows; None: sorted. CorpusError."""
        rows = list(utterances)
        if not rows:
            raise CorpusError(f"{name} holds no recordings")
        names = self.labels or labels or sorted({row.label for row in rows})
        with about(name):
            form = ClipFormat(tuple(names), self.sample_rate, round(self.clip_seconds * self.sample_rate))
        return Corpus.of(name, rows, form)

    def _label(self, found: str) -> str:
        if not found:
            raise CorpusError("the label is empty; say what is spoken, or remove the recording")
        if self.labels is None or found in self.labels:
            return found
        if self.other is None:
            raise CorpusError(
                f"the label {found!r} is not known; allowed: {', '.join(self.labels)}; "
                f"add it to the setting labels, or let the setting other name the label for all the rest"
            )
        return text(self.other)

    def _split_of(self, who: str) -> str:
        # The published rule takes a file name and drops its folders; here they are part of the name.
        return which_split(text(who).replace("/", " "), self.validation_percent, self.test_percent)

    def _length(self, seconds: float) -> int:
        if (samples := round(_seconds("duration", seconds) * self.sample_rate)) < 1:
            raise CorpusError(
                f"duration is {seconds:g} s, which is less than a sample; correct or remove the recording"
            )
        return samples

    def _label_problems(self) -> Iterator[str]:
        if self.labels is None:
            if self.other is not None:
                yield f"other is {self.other!r}, but labels is not given; list the labels that are not {self.other!r}"
            return
        if isinstance(self.labels, str) or not isinstance(self.labels, Sequence):
            yield f"labels is {self.labels!r}; give a list of names"
            return
        for label in (*self.labels, *([] if self.other is None else [self.other])):
            if not isinstance(label, str) or not label.strip():
                # To YAML a bare yes, no, on or off is not text.
                yield f"{label!r} among labels and other is not text; put it in quotes"

    def _number_problems(self) -> Iterator[str]:
        if not _is_number(self.sample_rate) or self.sample_rate != int(self.sample_rate):
            yield f"sample_rate is {self.sample_rate!r}; allowed: whole Hz, 1000 and more"
        if not _is_number(self.clip_seconds) or self.clip_seconds <= 0:
            yield f"clip_seconds is {self.clip_seconds!r}; allowed: seconds, more than 0"
        percents = (self.validation_percent, self.test_percent)
        if not all(_is_number(percent) and percent >= 0 for percent in percents) or sum(percents) > 100:
            yield (
                f"validation_percent is {percents[0]!r} and test_percent {percents[1]!r}; "
                "allowed: 0 and more, both together at most 100"
            )


def split_named(name: str) -> str:
    """Our name of a split, from one of `SPLIT_NAMES` in any case. CorpusError for any other.

    >>> split_named("Dev")
    'validation'
    """
    try:
        return SPLIT_NAMES[name.strip().lower()]
    except KeyError:
        raise CorpusError(f"split is {name!r}; allowed: {', '.join(SPLITS)}, for all recordings or for none") from None


def text(value: str) -> str:
    """`value` without blanks around it, its accents in one form (NFC): what macOS and Linux write differently."""
    return unicodedata.normalize("NFC", value).strip()


@contextmanager
def about(what: str) -> Iterator[None]:
    """Let the CorpusErrors in this block begin with what they are about: a file, a line."""
    try:
        yield
    except CorpusError as problem:
        raise CorpusError(f"{what}: {problem}") from problem


def given_folder(data_path: Path | str) -> Path:
    """The folder that a setting names, in full; `~` is the home. CorpusError when it is not a folder."""
    folder = Path(data_path).expanduser()
    if not folder.is_dir():
        raise CorpusError(f"data_path is {data_path}, which is not a folder; give the folder that holds the recordings")
    return folder.resolve()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _seconds(what: str, value: float) -> float:
    if not math.isfinite(value) or value < 0:
        raise CorpusError(f"{what} is {value:g}; allowed: seconds, 0 and more")
    return value
