from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import quick

from federation.wire.updates import FORMATS
from kws.config import UPDATE_FORMATS, Augmentation, ConfigError, ExperimentConfig, ModelRecipe, Training, changed
from kws.metrics import METRICS


def test_every_wrong_value_is_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        Training(rounds=0, local_epochs=-1, batch_size=0, learning_rate=2.0, warmup=1.0, label_smoothing=-0.1, seed=-1)
    problems = str(caught.value).splitlines()
    names = ("rounds", "local_epochs", "batch_size", "learning_rate", "warmup", "label_smoothing", "seed")
    assert len(problems) == len(names)
    for name, given_value in zip(names, ("0", "-1", "0", "2.0", "1.0", "-0.1", "-1"), strict=True):
        assert any(f"training.{name} is {given_value};" in line for line in problems), name
    with pytest.raises(ConfigError) as caught:
        Augmentation(max_shift=-0.1, noise_probability=1.5)
    assert "max_shift" in str(caught.value)
    assert "noise_probability" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (ModelRecipe, {"name": ""}),
        (ModelRecipe, {"dropout": 1.0}),
        (ModelRecipe, {"dropout": float("nan")}),
        (ModelRecipe, {"name": "tiny", "trained": "head"}),
        (ModelRecipe, {"name": "folder", "trained": "some"}),
        (ModelRecipe, {"name": "tiny", "revision": "main"}),
        (ModelRecipe, {"head": "neck"}),
        (ModelRecipe, {"name": "folder", "trained": "head", "spec_augment": True}),
        (ModelRecipe, {"lora_rank": 0}),
        (ModelRecipe, {"top_layers": 1.5}),
        (ModelRecipe, {"mask_time_prob": 1.0}),
        (ModelRecipe, {"cut_positions": "yes"}),
        (Training, {"learning_rate": 0.0}),
        (Training, {"learning_rate": float("nan")}),
        (Training, {"weight_decay": -1.0}),
        (Training, {"weight_decay": float("inf")}),
        (Training, {"rounds": 2.5}),
        (Training, {"batch_size": "8"}),
        (Training, {"seed": 0.5}),
        (Training, {"sampling": "some"}),
        (Training, {"sampling": None}),
        (ExperimentConfig, {"best_metric": "f1"}),
        (ExperimentConfig, {"update_format": "int4"}),
    ],
)
def test_a_wrong_value_is_refused_when_it_is_given(kind: type, values: dict[str, object]) -> None:
    with pytest.raises(ConfigError) as caught:
        kind(**values)
    assert list(values)[-1] in str(caught.value)


@pytest.mark.parametrize("metric", METRICS)
def test_any_metric_may_choose_the_best_model(metric: str) -> None:
    assert ExperimentConfig(best_metric=metric).best_metric == metric


def test_an_unknown_metric_is_told_what_there_is() -> None:
    with pytest.raises(ConfigError, match="best_metric is 'f1'; allowed: loss, accuracy, macro_f1, "):
        ExperimentConfig(best_metric="f1")


def test_pretrained_front_ends_are_frozen_and_tiny_is_not() -> None:
    assert ModelRecipe("tiny").trains == "all"
    assert ModelRecipe("facebook/wav2vec2-base").trains == "all_but_feature_encoder"
    assert ModelRecipe("facebook/wav2vec2-base", trained="head").trains == "head"


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ("training.rounds=5", "training.rounds", 5),
        ("training.rounds = 5", "training.rounds", 5),
        ("training.learning_rate=0.002", "training.learning_rate", 0.002),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),  # YAML 1.1 reads this as text
        ("training.weight_decay=0", "training.weight_decay", 0.0),
        ("training.augmentation.max_shift=0", "training.augmentation.max_shift", 0.0),
        ("training.keep_optimizer=false", "training.keep_optimizer", False),
        ("training.sampling=balanced", "training.sampling", "balanced"),
        ("model.name=facebook/wav2vec2-base", "model.name", "facebook/wav2vec2-base"),
        ("model.name=/data/a=b", "model.name", "/data/a=b"),
        ("model.trained=all", "model.trained", "all"),  # the default is None
        ("best_metric=macro_f1", "best_metric", "macro_f1"),
    ],
)
def test_a_change_by_name(change: str, name: str, expected: object) -> None:
    before = ExperimentConfig()
    value = after = changed(before, [change])
    for part in name.split("."):
        value = getattr(value, part)
    assert value == expected
    assert type(value) is type(expected)
    assert before == ExperimentConfig()
    assert changed(after, []) == after


def test_changes_add_up_and_the_last_wins() -> None:
    after = changed(ExperimentConfig(), ["training.rounds=5", "training.seed=3", "training.rounds=7"])
    assert (after.training.rounds, after.training.seed) == (7, 3)
    assert after.to_dict()["training"]["rounds"] == 7


@pytest.mark.parametrize(
    ("change", "texts"),
    [
        ("training.round=5", ("'round'", "rounds", "learning_rate")),
        ("rounds=5", ("'rounds'", "model", "training", "best_metric")),
        ("training.rounds.x=5", ("'x'", "nothing")),
        ("training.rounds", ("name=value",)),
        ("training.rounds=many", ("many", "20")),
        ("training.rounds=2.5", ("2.5",)),
        ("training.rounds=true", ("True",)),
        ("training.weight_decay=true", ("True",)),
        ("training.keep_optimizer=1", ("1", "True")),
        ("training.keep_optimizer=", ("None",)),
        ("training=5", ("5",)),
        ("training.rounds=[", ("training.rounds=[",)),
        ("training.rounds=0", ("training.rounds is 0", "at least 1")),
        ("training.sampling=half", ("training.sampling is 'half'", "all, balanced")),
        ("model.trained=head", ("tiny",)),
    ],
)
def test_a_wrong_change_says_what_is_allowed(change: str, texts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        changed(ExperimentConfig(), ["training.seed=1", change])
    for text in texts:
        assert text in str(caught.value)


@quick
@given(st.text(max_size=20), st.text(max_size=20))
def test_no_text_brings_another_error_than_a_config_error(name: str, value: str) -> None:
    for change in (f"{name}={value}", f"training.{name}={value}", f"training.rounds={value}", f"model.dropout={value}"):
        with suppress(ConfigError):
            assert isinstance(changed(ExperimentConfig(), [change]), ExperimentConfig)


def test_the_update_formats_are_the_federations() -> None:
    assert tuple(FORMATS) == UPDATE_FORMATS
