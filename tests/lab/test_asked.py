"""What a notebook's cell asks for holds; what it leaves out is what the environment says."""

import json
from pathlib import Path

import pytest

from kws.config import ConfigError, ExperimentConfig, Training
from lab.asked import Asked, ask, from_environment
from lab.changes import changed
from lab.presets import preset

PEOPLE, MADE = ({"envoy": {"corpus": corpus}} for corpus in ("Speech Commands", "synthetic"))


@pytest.fixture(autouse=True)
def _nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Asked.__dataclass_fields__:
        monkeypatch.delenv(f"KWS_{name.upper()}", raising=False)


def test_without_a_word_it_is_tiny_with_all_baselines() -> None:
    asked = ask()
    assert asked == Asked()
    assert asked.experiment(PEOPLE) == preset("tiny")
    assert asked.experiment(MADE).training.rounds == 10, "synthetic speech is easy"
    assert ask(changes=["training.rounds=7"]).experiment(MADE).training.rounds == 7
    assert asked.baselines == ("pooled", "alone")


def test_the_environment_speaks_where_the_cell_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    said = Asked("superb_ks", "folder", ["training.seed=3", "model.head_size=8"], ["pooled"], "steps", [4, 5], 2)
    for name, value in said.to_environment().items():
        monkeypatch.setenv(name, value)
    assert from_environment() == ask() == said
    config = ask().experiment(MADE)
    assert config == changed(preset("superb_ks", "folder"), ["training.seed=4", "model.head_size=8"])


def test_what_a_person_writes_is_not_overruled(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in Asked("superb_ks", "folder", ["training.rounds=3"], [], "steps", [7]).to_environment().items():
        monkeypatch.setenv(name, value)
    asked = ask(preset="tiny", model="tiny", changes=[], baselines=["alone"], budget="epochs", seeds=[1])
    assert asked == Asked("tiny", "tiny", (), ("alone",), "epochs", (1,))
    assert ask(model="other").experiment(PEOPLE).model.name == "other"
    assert ask(model="other").budget == "steps", "and the rest is as it was said"


@pytest.mark.parametrize(
    ("text", "names"), [("", ()), ("0", ()), ("1", ("pooled", "alone")), ("alone", ("alone",)), ("no", ())]
)
def test_baselines_in_a_word(text: str, names: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_BASELINES", text)
    assert ask().baselines == names


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        Asked(baselines=["poled"], budget="hours", seeds=[1, 1, -2], simulate=-1)
    for words in (
        "'poled'; allowed: pooled, alone",
        "'hours'; allowed: epochs, steps",
        "-2",
        "twice",
        "simulate is -1",
    ):
        assert words in str(caught.value)
    with pytest.raises(ConfigError, match=r"changes is 'training\.rounds=5'; give a list"):
        Asked(changes="training.rounds=5")


def test_seeds_that_are_no_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KWS_SEEDS", "0,one")
    with pytest.raises(ConfigError, match="no list of whole numbers"):
        ask()


def test_a_notebook_has_an_experiment_of_its_own_to_begin_with() -> None:
    usual = ExperimentConfig(training=Training(rounds=7), best_metric="macro_f1")
    assert ask(changes=["training.batch_size=8"]).experiment(MADE, usual) == changed(usual, ["training.batch_size=8"])
    assert ask(preset="tiny").experiment(PEOPLE, usual) == preset("tiny")


def test_a_recorded_experiment_is_taken_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExperimentConfig(training=Training(rounds=7, seed=5))
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": config.to_dict()}))
    monkeypatch.setenv("KWS_RECORDED", str(path))
    assert ask().experiment(MADE) == config
    with pytest.raises(ConfigError, match=r"is to repeat .*config\.json, and the notebook's cell asks for changes"):
        ask(changes=["training.rounds=5"])
    assert config.to_dict() == json.loads(path.read_text())["config"]
