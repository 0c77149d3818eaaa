"""A saved model measured: figures equal to the run's own, groups, and the page of mistakes."""

import base64
import io
import json
import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from kws.training import evaluate as in_training
from lab.cli import app
from lab.predictions import FEDERATED
from lab.product.evaluate import evaluate, mistakes_page
from lab.product.spotter import SpotterError, TorchSpotter
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import Corpus
from shard_descriptors.sources.speech_commands import load


@pytest.fixture(scope="module")
def corpus(tiny_corpus: Path) -> Corpus:
    return load(tiny_corpus)


def test_the_figures_are_those_of_the_run(spotter: TorchSpotter, corpus: Corpus) -> None:
    seen: list[int] = []
    measured = evaluate(spotter, corpus, "test", 16, seen.append)
    test = [each for each in corpus.utterances if each.split == "test"]
    expected = in_training(spotter.classifier, ClipSet(test))
    assert measured.evaluation.scalars() == pytest.approx(expected.scalars(), rel=1e-5)
    np.testing.assert_array_equal(measured.evaluation.predictions, expected.predictions)
    assert sum(seen) == len(test)
    told = measured.as_values(["speaker"], resamples=200)
    assert told["metrics"] == measured.evaluation.scalars()
    assert np.trace(told["confusion"]["counts"]) == expected.right.sum()
    speakers = told["by"]["speaker"]
    assert sum(each["utterances"] for each in speakers.values()) == len(test)
    right = sum(each["utterances"] * each["accuracy"] for each in speakers.values())
    assert right / len(test) == pytest.approx(expected.accuracy)


def test_what_cannot_be_measured_says_why(spotter: TorchSpotter, corpus: Corpus) -> None:
    measured = evaluate(spotter, corpus)
    with pytest.raises(ValueError, match=r"has no column 'accent'; it has label, speaker, word"):
        measured.by("accent")
    with pytest.raises(ValueError, match="has no exam utterances; it has test, train, validation"):
        evaluate(spotter, corpus, "exam")
    small = TorchSpotter(spotter.classifier, spotter.window)
    narrow = type("Narrow", (), {"labels": small.labels[:3], "sample_rate": 16_000, "window": 16_000})()
    with pytest.raises(SpotterError, match=r"has the labels .*, which the model has not; it has yes, no, up"):
        evaluate(narrow, corpus)


def test_the_page_of_mistakes_plays_the_most_confident_first(spotter: TorchSpotter, corpus: Corpus) -> None:
    measured = evaluate(spotter, corpus)
    page = mistakes_page(measured, most=7)
    scores = [float(score) for score in re.findall(r'class="score">([\d.]+)<', page)]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == 7
    assert "http" not in page
    sounds = re.findall(r'src="data:audio/wav;base64,([^"]+)"', page)
    names = [unescape(name) for name in re.findall(r'class="name">([^<]+)<', page)]
    place = [each.name for each in measured.clips.utterances].index(names[0])
    samples, rate = soundfile.read(io.BytesIO(base64.b64decode(unescape(sounds[0]))), dtype="float32")
    assert rate == 16_000
    np.testing.assert_allclose(samples, measured.clips.read(np.array([place]))[0], atol=1e-4)
    wrong = ~measured.predictions.evaluations[FEDERATED].right
    assert f"{wrong.sum()} of {len(wrong)} test utterances" in page


def test_the_command(saved_model: Path, tiny_corpus: Path, tmp_path: Path) -> None:
    given = ["evaluate", str(saved_model), "--data", str(tiny_corpus)]
    asked = [*given, "--json", "--by", "word", "--plots", str(tmp_path / "p"), "--mistakes", str(tmp_path / "m.html")]
    told = CliRunner().invoke(app, asked)
    assert told.exit_code == 0, told.output
    values = json.loads(told.stdout)
    assert set(values["by"]) == {"word"}
    assert {path.name for path in (tmp_path / "p").iterdir()} == {"confusion.png", "calibration.png", "speakers.png"}
    assert (tmp_path / "m.html").read_text().startswith("<!doctype html>")
    text = CliRunner().invoke(app, given).stdout
    assert re.search(r"accuracy +0\.\d+ \[0\.\d+, 0\.\d+\]", text)
    for wrong, reason in (("--by", "has no column 'accent'"), ("--split", "has no accent utterances")):
        told = CliRunner().invoke(app, [*given, wrong, "accent"])
        assert (told.exit_code, reason in told.stderr) == (2, True), told.stderr
