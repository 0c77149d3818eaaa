from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_network import quick

from kws.config import ConfigError, ExperimentConfig
from lab.changes import changed


@pytest.mark.parametrize(
    ("change", "name", "expected"),
    [
        ("training.rounds=5", "training.rounds", 5),
        ("training.rounds = 5", "training.rounds", 5),
        ("training.learning_rate=0.002", "training.learning_rate", 0.002),
        ("training.learning_rate=1e-3", "training.learning_rate", 1e-3),  # YAML 1.1 reads this as text
        ("training.learning_rate=1E-3", "training.learning_rate", 1e-3),
        ("training.head_learning_rate=1e-4", "training.head_learning_rate", 1e-4),  # the default is None
        ("training.local_steps=5", "training.local_steps", 5),
        ("training.max_grad_norm=null", "training.max_grad_norm", None),
        ("training.local_epochs=0.5", "training.local_epochs", 0.5),
        ("training.weight_decay=0", "training.weight_decay", 0),
        ("training.augmentation.max_shift=0", "training.augmentation.max_shift", 0),
        ("training.keep_optimizer=false", "training.keep_optimizer", False),
        ("training.sampling=balanced", "training.sampling", "balanced"),
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
        ("training.round=5", ("training.round", "rounds", "learning_rate")),
        ("rounds=5", ("rounds", "model", "training", "best_metric")),
        ("training.rounds.x=5", ("training.rounds is {'x': 5}", "whole number")),
        ("training.rounds", ("name=value",)),
        ("training.rounds=many", ("many", "whole number")),
        ("training.rounds=2.5", ("2.5", "whole number")),
        ("training.rounds=true", ("True", "whole number")),
        ("training.weight_decay=true", ("True", "a number")),
        ("training.max_snr_db=.nan", ("max_snr_db",)),
        ("training.augmentation.max_snr_db=.inf", ("max_snr_db is inf", "at most 100")),
        ("training.seed=20261125123456", ("training.seed is 20261125123456", "4294967295")),
        ("training.keep_optimizer=1", ("1", "true or false")),
        ("training.keep_optimizer=", ("None", "true or false")),
        ("training.max_grad_norm=none", ("'none'", "above 0", "null")),
        ("training=5", ("5", "rounds")),
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


def test_changes_that_only_go_together_may_come_in_any_order() -> None:
    plain = [f"training.augmentation.{name}=0" for name in ("max_shift", "max_speed", "noise_probability")]
    changes = ["training.cache=conv", *plain, "model.trained=head", "model.name=folder"]
    config = changed(ExperimentConfig(), changes)
    assert config == changed(ExperimentConfig(), changes[::-1])
    assert (config.training.cache, config.model.name) == ("conv", "folder")


def test_all_wrong_changes_are_reported_together() -> None:
    with pytest.raises(ConfigError) as caught:
        changed(ExperimentConfig(), ["training.rounds=0", "model.head=neck", "best_metric=f1", "training.colour=red"])
    assert len(str(caught.value).splitlines()) == 4
    with pytest.raises(ConfigError, match=r"training has no values of its own; it was given as 5"):
        changed(ExperimentConfig(), ["training=5", "training.rounds=5"])


@quick
@given(st.text(max_size=20), st.text(max_size=20))
def test_no_text_brings_another_error_than_a_config_error(name: str, value: str) -> None:
    for change in (f"{name}={value}", f"training.{name}={value}", f"training.rounds={value}", f"model.dropout={value}"):
        with suppress(ConfigError):
            assert isinstance(changed(ExperimentConfig(), [change]), ExperimentConfig)
