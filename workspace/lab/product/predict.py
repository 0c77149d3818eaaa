"""From recordings to words: labels and scores of clips, scores over time and events of long recordings."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from kws.batches import prefetched
from lab.product.recordings import Windows, parts, stream
from lab.product.spotter import BATCH, Floats, Spotter, probabilities
from shard_descriptors.clips.audio import AudioError
from shard_descriptors.labels import SILENCE, UNKNOWN

THRESHOLD = 0.5
HOP_SECONDS = 0.25
PLAIN = {SILENCE: "(silence)", UNKNOWN: "(another word)"}
"""What people are told of the labels that are no words."""


@dataclass(frozen=True)
class Event:
    """A word that was heard: from `start` to `end` (seconds), with the highest score of its windows."""

    start: float
    end: float
    label: str
    score: float


@dataclass(frozen=True)
class Prediction:
    """What a model has heard in one recording.

    name: the file's. seconds: its length. labels: the model's. starts: where each window begins (seconds). window: how
    long one is. scores: probabilities, float32 (windows, num_labels). error: why there is nothing, or None.
    """

    name: str
    labels: tuple[str, ...]
    window: float
    seconds: float = 0.0
    starts: tuple[float, ...] = ()
    scores: Floats = field(default_factory=lambda: np.zeros((0, 0), np.float32), compare=False)
    error: str | None = None

    @property
    def overall(self) -> Floats:
        """One score for each label: of the window that heard a word most surely, or, without a word, of all windows."""
        words = [number for number, label in enumerate(self.labels) if label not in PLAIN] or list(
            range(len(self.labels))
        )
        best: Floats = self.scores[self.scores[:, words].max(axis=1).argmax()]
        return best if int(best.argmax()) in words else self.scores.mean(axis=0)

    @property
    def label(self) -> str:
        """The label with the highest score."""
        return self.labels[int(self.overall.argmax())]

    @property
    def score(self) -> float:
        """Its probability, 0 to 1."""
        return float(self.overall.max())

    def events(self, threshold: float = THRESHOLD) -> list[Event]:
        """The words in it: windows one after the other with the same answer, and a score of `threshold` at least."""
        found: list[Event] = []
        before = -2
        for number, (start, scores) in enumerate(zip(self.starts, self.scores, strict=True)):
            label, score = self.labels[int(scores.argmax())], float(scores.max())
            if label in PLAIN or score < threshold:
                continue
            end = min(start + self.window, self.seconds)
            if found and before == number - 1 and found[-1].label == label:
                found[-1] = Event(found[-1].start, end, label, max(found[-1].score, score))
            else:
                found.append(Event(start, end, label, score))
            before = number
        return found

    def as_values(self, threshold: float = THRESHOLD) -> dict[str, Any]:
        """Plain values, for JSON."""
        if self.error is not None:
            return {"path": self.name, "error": self.error}
        scores = {label: round(float(score), 6) for label, score in zip(self.labels, self.overall, strict=True)}
        told: dict[str, Any] = {
            "path": self.name,
            "seconds": round(self.seconds, 4),
            "label": self.label,
            "score": round(self.score, 6),
            "sure": self.score >= threshold,
            "scores": scores,
        }
        if len(self.starts) > 1:
            told["windows"] = [
                {"start": round(start, 4), "label": self.labels[int(row.argmax())], "score": round(float(row.max()), 6)}
                for start, row in zip(self.starts, self.scores, strict=True)
            ]
            told["events"] = [
                {
                    "start": round(each.start, 4),
                    "end": round(each.end, 4),
                    "label": each.label,
                    "score": round(each.score, 6),
                }
                for each in self.events(threshold)
            ]
        return told


def said(label: str, score: float, threshold: float = THRESHOLD) -> str:
    """A label as people are told it."""
    return PLAIN.get(label, label) if score >= threshold else f"(unsure: {PLAIN.get(label, label).strip('()')}?)"


def predict(
    spotter: Spotter,
    paths: Iterable[Path],
    hop_seconds: float = HOP_SECONDS,
    batch: int = BATCH,
    done: Callable[[], None] = lambda: None,
) -> Iterator[Prediction]:
    """Ask a model about recordings, in their order; a file that cannot be read has an `error`, and the rest goes on.

    Windows of several files go into one batch; files are decoded while the model works.

    Args:
        hop_seconds: between the windows of a recording that is longer than one.
        done: called after each recording.
    """
    paths = list(paths)
    waiting: list[tuple[int, Windows]] = []
    gathered: dict[int, list[tuple[Windows, Floats]]] = {}
    errors: dict[int, str] = {}
    following = 0

    def finished(until: int) -> Iterator[Prediction]:
        nonlocal following
        while following < until:
            yield _prediction(spotter, str(paths[following]), gathered.pop(following, []), errors.get(following))
            done()
            following += 1

    for number, windows in prefetched(_all_parts(spotter, paths, hop_seconds)):
        if isinstance(windows, str):
            errors[number] = windows
            continue
        waiting.append((number, windows))
        if sum(len(each.starts) for _, each in waiting) >= batch:
            _ask(spotter, waiting, gathered, batch)
            waiting = []
            yield from finished(number)  # of the last one there may be more to come
    _ask(spotter, waiting, gathered, batch)
    yield from finished(len(paths))


def follow(
    spotter: Spotter, source: BinaryIO, form: str, given_rate: int, hop_seconds: float = HOP_SECONDS
) -> Iterator[tuple[float, Floats]]:
    """Listen to a stream of raw samples: for each window where it begins (seconds) and its scores, as they come."""
    hop = max(1, round(hop_seconds * spotter.sample_rate))
    for windows in stream(source, form, given_rate, spotter.sample_rate, spotter.window, hop):
        yield from zip(windows.starts, probabilities(spotter.logits(windows.waveforms)), strict=True)


def _all_parts(spotter: Spotter, paths: list[Path], hop_seconds: float) -> Iterator[tuple[int, Windows | str]]:
    hop = max(1, round(hop_seconds * spotter.sample_rate))
    for number, path in enumerate(paths):
        try:
            for windows in parts(path, spotter.sample_rate, spotter.window, hop):
                yield number, windows
        except AudioError as error:
            yield number, str(error)


def _ask(
    spotter: Spotter,
    waiting: list[tuple[int, Windows]],
    gathered: dict[int, list[tuple[Windows, Floats]]],
    batch: int,
) -> None:
    if not waiting:
        return
    waveforms = np.concatenate([windows.waveforms for _, windows in waiting])
    logits = [spotter.logits(waveforms[first : first + batch]) for first in range(0, len(waveforms), batch)]
    scores, first = probabilities(np.concatenate(logits)), 0
    for number, windows in waiting:
        gathered.setdefault(number, []).append((windows, scores[first : first + len(windows.starts)]))
        first += len(windows.starts)


def _prediction(spotter: Spotter, name: str, heard: list[tuple[Windows, Floats]], error: str | None) -> Prediction:
    window = spotter.window / spotter.sample_rate
    if error is not None or not heard:
        return Prediction(name, spotter.labels, window, error=error or f"{name} holds no samples")
    starts = tuple(start for windows, _ in heard for start in windows.starts)
    return Prediction(
        name, spotter.labels, window, heard[0][0].seconds, starts, np.concatenate([scores for _, scores in heard])
    )
