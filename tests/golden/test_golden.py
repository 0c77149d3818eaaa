"""The golden curves: today's code computes what it computed when they were kept. docs/numerics.md."""

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import golden_curve
import pytest
import renew
import torch
from golden_curve import CONFIG, KINDS, curve, largest_difference, load, named, side_by_side, sound, tolerance

from shard_descriptors.utterances import Utterance

HOUSE = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the synthetic corpus is made, once."""
    return tmp_path_factory.mktemp("golden")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def rows(kind: str, made: Path) -> list[Utterance]:
    """The clips that the curve was made with."""
    corpus = golden_curve.corpus_of(kind, made)
    found = corpus and named(corpus, load(kind).clips)
    if not found:
        pytest.skip("no real recordings: set DATA to a folder that holds speech_commands_v0.01")
    return found


@pytest.fixture(scope="module")
def today(rows: list[Utterance], one_thread: None) -> list[float]:
    return curve(rows)


def test_the_losses_are_those_that_are_kept(kind: str, rows: list[Utterance], today: list[float]) -> None:
    kept = load(kind)
    difference = largest_difference(kept.losses, today)
    other_clips = "" if sound(rows) == kept.sound else "The clips have other samples than the curve was made with. "
    assert difference <= tolerance(), (
        f"the losses differ by up to {difference:.1e} of themselves; allowed on this machine: {tolerance():.0e}. "
        f"{other_clips}If you meant no change of numerics, find out what made one; if you did, docs/numerics.md says "
        f"how to renew the curve.\n{side_by_side(kept.losses, today)}"
    )


def test_a_kept_curve_is_whole(kind: str) -> None:
    kept = load(kind)
    assert len(kept.losses) == golden_curve.ROUNDS * golden_curve.SITES
    assert len(kept.clips) == 12 * golden_curve.CLIPS_PER_LABEL
    assert sum(kept.losses[-4:]) < 0.75 * sum(kept.losses[:4])  # it learns, or the curve would guard nothing
    assert len(kept.because) > 20
    assert {"torch", "transformers", "machine"} <= kept.made_with.keys()


def test_real_clips_are_the_same_everywhere(made: Path) -> None:
    """Synthetic ones are computed, and might differ in a last bit; recordings cannot."""
    kept = load("speech_commands")
    corpus = golden_curve.corpus_of("speech_commands", made)
    found = corpus and named(corpus, kept.clips)
    if not found:
        pytest.skip("no real recordings: set DATA to a folder that holds speech_commands_v0.01")
    assert sound(found) == kept.sound


@pytest.mark.parametrize("kind", ["synthetic"], scope="module")
def test_a_change_of_one_percent_is_seen(kind: str, rows: list[Utterance], today: list[float]) -> None:
    training = replace(CONFIG.training, learning_rate=1.01 * CONFIG.training.learning_rate)
    other = curve(rows, replace(CONFIG, training=training))
    assert largest_difference(today, other) > 10 * golden_curve.TOLERANCE


def test_curves_are_compared_loss_by_loss() -> None:
    assert largest_difference([1.0, 2.0], [1.0, 2.5]) == 0.25
    assert largest_difference([1.0, 2.0], [1.0]) == float("inf")
    assert largest_difference([1.0], [float("nan")]) != 0
    shown = side_by_side([4.0, 2.0, 1.0], [4.0, 1.0]).splitlines()
    assert re.fullmatch(r" +1 +1 +4\.000000 +4\.000000 +\+0\.00e\+00 +\*", shown[1])
    assert re.fullmatch(r" +1 +2 +2\.000000 +1\.000000 +-1\.00e\+00  {11}n {9}o", shown[2])
    assert re.fullmatch(r" +2 +1 +1\.000000 +o", shown[3])


def test_renewing_shows_both_curves_and_keeps_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = replace(load("synthetic"), losses=tuple(2 * loss for loss in load("synthetic").losses))
    golden_curve.save(old, "synthetic", tmp_path)
    renew.main(["--kind", "synthetic", "--because", "half of it was a mistake"], tmp_path)
    told = capsys.readouterr().out
    assert re.search(rf"{old.losses[0]:.6f} +{load('synthetic').losses[0]:.4f}", told)
    new = golden_curve.load("synthetic", tmp_path)
    assert (new.before, new.because, new.clips) == (old.losses, "half of it was a mistake", old.clips)
    assert largest_difference(load("synthetic").losses, new.losses) <= tolerance()


def test_the_commands_of_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (HOUSE / "docs" / "numerics.md").read_text(encoding="utf-8")
    look, keep = re.findall(r"^\.venv/bin/python (tests/golden/renew\.py.*)$", page, flags=re.MULTILINE)
    kept = golden_curve.path_of("synthetic").read_bytes()
    command = [sys.executable, look, "--kind", "synthetic"]
    done = subprocess.run(command, cwd=HOUSE, capture_output=True, text=True, check=True)
    assert "nothing was written" in done.stdout
    assert len(re.findall(r"^ +\d+ +[12] +\d", done.stdout, flags=re.MULTILINE)) == 2 * golden_curve.ROUNDS
    assert golden_curve.path_of("synthetic").read_bytes() == kept
    with pytest.raises(SystemExit):
        renew.main(["--help"])
    for option in re.findall(r"--\w+", keep):
        assert option in capsys.readouterr().out
