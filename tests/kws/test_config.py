import json
from dataclasses import fields, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import UNCHANGED, plain, quick

from federation.wire.updates import FORMATS
from kws.config import UPDATE_FORMATS, Augmentation, ConfigError, ExperimentConfig, ModelRecipe, Training
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
    assert str(caught.value).splitlines() == [
        "augmentation.max_shift is -0.1; allowed: a number, at least 0, below 1",
        "augmentation.noise_probability is 1.5; allowed: a number, at least 0, at most 1",
    ]


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
        (Training, {"seed": 2**32}),
        (Training, {"seed": 20261125123456}),
        (Training, {"rounds": True}),
        (Training, {"learning_rate": "1e-3"}),
        (Training, {"weight_decay": 10**400}),
        (Training, {"keep_optimizer": 1}),
        (Training, {"class_weights": "yes"}),
        (Training, {"local_steps": 0}),
        (Training, {"local_epochs": float("inf")}),
        (Training, {"patience": 0}),
        (Training, {"max_grad_norm": 0.0}),
        (Training, {"head_learning_rate": float("nan")}),
        (Training, {"optimizer": "lion"}),
        (Training, {"schedule": "step"}),
        (Training, {"autocast": "float16"}),
        (Training, {"cache": True}),
        (Training, {"augmentation": None}),
        (Augmentation, {"max_snr_db": float("inf")}),
        (Augmentation, {"min_snr_db": float("nan")}),
        (Augmentation, {"max_snr_db": 5.0, "min_snr_db": 10.0}),
        (ExperimentConfig, {"best_metric": "f1"}),
        (ExperimentConfig, {"training": None}),
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


FROZEN = ModelRecipe("folder", trained="head", head="weighted_sum")


@pytest.mark.parametrize(
    ("contradiction", "names"),
    [
        (lambda: Training(class_weights=True, sampling="balanced"), ("class_weights", "sampling")),
        (lambda: Training(cache="probe"), ("training.cache=probe", "max_shift", "cached_copies")),
        (lambda: Training(cache="conv"), ("training.cache=conv", "noise_probability")),
        (lambda: Training(cached_copies=4), ("cached_copies", "cache=probe")),
        (lambda: Training(cached_copies=4, cache="conv"), ("cached_copies", "cache=probe")),
        (lambda: Training(cached_copies=4, cache="probe", augmentation=UNCHANGED), ("cached_copies", "augmentation")),
        (lambda: ExperimentConfig(ModelRecipe("folder"), plain(cache="probe")), ("cache=probe", "trained=head")),
        (lambda: ExperimentConfig(replace(FROZEN, head="adapter"), plain(cache="probe")), ("cache=probe", "head")),
        (lambda: ExperimentConfig(ModelRecipe("folder", trained="all"), plain(cache="conv")), ("cache=conv", "all")),
        (lambda: ExperimentConfig(ModelRecipe(), plain(cache="conv")), ("cache=conv", "all")),
        (lambda: ExperimentConfig(FROZEN, plain(head_learning_rate=0.1)), ("head_learning_rate", "head")),
        (lambda: ExperimentConfig(ModelRecipe("facebook/wav2vec2-base")), ("wav2vec2-base", "0.0015", "preset")),
    ],
)
def test_settings_that_contradict_each_other_are_named(contradiction, names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        contradiction()
    for name in names:
        assert name in str(caught.value)


def test_what_goes_together_is_allowed() -> None:
    ExperimentConfig(FROZEN, plain(cache="probe"))
    ExperimentConfig(FROZEN, plain(cache="probe", cached_copies=3, augmentation=Augmentation()))
    ExperimentConfig(ModelRecipe("folder", spec_augment=True), plain(cache="conv", head_learning_rate=1e-3))
    Training(seed=2**32 - 1, weight_decay=0, local_epochs=0.1, max_grad_norm=None)
    Augmentation(max_shift=0, noise_probability=1)


SOME = st.sampled_from([None, True, 0, 1, -1, 2.5, 2**40, 10**400, float("nan"), float("inf"), "", "all", "1", [], {}])


@quick
@given(st.dictionaries(st.sampled_from([each.name for each in fields(Training)]), SOME, max_size=5))
def test_whatever_is_given_either_holds_or_is_refused_by_name(values: dict[str, object]) -> None:
    refused = ""
    try:
        config = ExperimentConfig(training=Training(**values))
    except ConfigError as error:
        refused = str(error)
    if refused:
        assert any(f"training.{name}" in refused for name in values)
    else:
        assert ExperimentConfig.from_dict(json.loads(json.dumps(config.to_dict(), allow_nan=False))) == config


def test_a_configuration_goes_through_json_and_back() -> None:
    config = ExperimentConfig(FROZEN, plain(cache="probe", local_steps=5, max_grad_norm=None), "macro_f1", "int8")
    assert ExperimentConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert ExperimentConfig.from_dict({}) == ExperimentConfig()
    assert ExperimentConfig.from_dict({"training": {"rounds": 3}}) == ExperimentConfig(training=Training(rounds=3))


def test_what_cannot_be_read_back_is_reported_together() -> None:
    values = {"model": {"nome": "tiny"}, "training": {"rounds": 0, "augmentation": {"max_shift": 2}}, "loss": 1}
    with pytest.raises(ConfigError) as caught:
        ExperimentConfig.from_dict(values | {"best_metric": "f1"})
    problems = str(caught.value).splitlines()
    assert len(problems) == 5
    for text in ("model.nome", "training.rounds is 0", "max_shift is 2", "there is no loss", "best_metric is 'f1'"):
        assert any(text in problem for problem in problems), text
    with pytest.raises(ConfigError, match=r"training is 5; it has values of its own: rounds, "):
        ExperimentConfig.from_dict({"training": 5})


def test_the_update_formats_are_the_federations() -> None:
    assert tuple(FORMATS) == UPDATE_FORMATS
