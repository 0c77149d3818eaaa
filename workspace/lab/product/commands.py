"""What the commands about a saved model print: tables, JSON, CSV, and progress on the way."""

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from lab.product.predict import Event, Prediction, follow, predict, said
from lab.product.recordings import find
from lab.product.spotter import Spotter

NAME_WIDTH = 48


def predict_files(
    spotter: Spotter, paths: Sequence[str], form: str, threshold: float, hop_seconds: float, batch: int
) -> tuple[str, int]:
    """What a model says of files and folders, in a form ("table", "json" or "csv"), and how many cannot be used."""
    files = find(paths)
    if not files:
        raise ValueError(f"there are no recordings in {', '.join(paths)}")
    with tqdm(total=len(files), unit="recording", disable=None, file=sys.stderr, leave=False) as bar:
        answers = list(predict(spotter, files, hop_seconds, batch, done=bar.update))
    show = {"table": as_table, "json": as_json, "csv": as_csv}[form]
    return show(answers, threshold), sum(each.error is not None for each in answers)


def as_table(answers: Iterable[Prediction], threshold: float) -> str:
    """A line for each recording: word, score, file; of long ones what was heard when."""
    lines = []
    for each in answers:
        if each.error is not None:
            lines.append(f"{'(failed)':<20}       {each.error}")
            continue
        lines.append(f"{said(each.label, each.score, threshold):<20} {each.score:.2f}  {each.name}")
        if len(each.starts) > 1:
            lines += [f"    {line}" for line in map(event_line, each.events(threshold))] or ["    (no word)"]
    return "\n".join(lines)


def event_line(event: Event) -> str:
    """When a word was heard."""
    return f"{event.start:8.2f} - {event.end:.2f} s  {event.label:<16} {event.score:.2f}"


def as_json(answers: Iterable[Prediction], threshold: float) -> str:
    """A list of objects."""
    return json.dumps([each.as_values(threshold) for each in answers], indent=2)


def as_csv(answers: Iterable[Prediction], threshold: float) -> str:
    """A row for each recording: path, seconds, label, score, sure, error, and every label's score."""
    answers = list(answers)
    labels = answers[0].labels if answers else ()
    written = io.StringIO()
    rows = csv.writer(written, lineterminator="\n")
    rows.writerow(["path", "seconds", "label", "score", "sure", "error", *labels])
    for each in answers:
        if each.error is not None:
            rows.writerow([each.name, "", "", "", "", each.error, *("" for _ in labels)])
            continue
        scores = [f"{score:.6f}" for score in each.overall]
        sure = each.score >= threshold
        rows.writerow([each.name, f"{each.seconds:.4f}", each.label, f"{each.score:.6f}", sure, "", *scores])
    return written.getvalue().rstrip("\n")


def predict_stream(
    spotter: Spotter, source: BinaryIO, samples: str, rate: int, form: str, threshold: float, hop_seconds: float
) -> Iterable[str]:
    """A line as soon as a window has been heard (JSON), or as soon as a word is over."""
    window, spoken = spotter.window / spotter.sample_rate, list[Event]()
    for start, scores in follow(spotter, source, samples, rate, hop_seconds):
        answer = Prediction("-", spotter.labels, window, start + window, (start,), scores[None])
        if form == "json":
            told = {"start": round(start, 4), "label": answer.label, "score": round(answer.score, 6)}
            yield json.dumps(told | {"sure": answer.score >= threshold})
            continue
        heard = answer.events(threshold)
        if spoken and (not heard or heard[0].label != spoken[-1].label):
            yield event_line(spoken.pop())
        if heard and spoken:
            last = spoken.pop()
            heard = [Event(last.start, heard[0].end, last.label, max(last.score, heard[0].score))]
        spoken += heard
    yield from map(event_line, spoken)


def write_text(path: Path, text: str) -> None:
    """Write a page in one step.

    Raises:
        OSError: it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)
