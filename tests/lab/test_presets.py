from pathlib import Path

import pytest

from kws.config import Augmentation, ConfigError, ExperimentConfig, Training
from lab.presets import MODELS, PRESETS, asked_for, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_an_experiment_with_a_source(name: str) -> None:
    config = preset(name)
    assert ExperimentConfig.from_dict(config.to_dict()) == config
    assert config.model.name == MODELS[name]
    source = PRESETS[name].__globals__["__doc__"]
    assert len(source.splitlines()) > 3 or "DECISIONS.md" in source


def test_a_model_without_a_preset_gets_what_suits_it() -> None:
    assert preset() == preset("tiny") == preset(model="tiny")
    chosen = preset(model="facebook/hubert-base-ls960")
    assert chosen == preset("superb_ks", "facebook/hubert-base-ls960")
    assert chosen.training.rounds < preset("tiny").training.rounds
    assert chosen.model.trained == "head", "at its rate, pretrained weights would be ruined"
    assert preset("hf_finetune").training.learning_rate < Training().learning_rate


@pytest.mark.parametrize(
    ("name", "model", "texts"),
    [
        ("superb", None, ("superb", "tiny, superb_ks, hf_finetune, adapter_hubert")),
        ("superb_ks", "tiny", ("superb_ks", "'tiny'", "for this one: tiny")),
        ("tiny", "facebook/wav2vec2-base", ("wav2vec2-base", "superb_ks, hf_finetune, adapter_hubert")),
    ],
)
def test_what_does_not_go_together_is_refused(name: str, model: str | None, texts: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        preset(name, model)
    for text in texts:
        assert text in str(caught.value)


def test_what_was_published() -> None:
    """The figures of the sources, by hand."""
    superb, finetune, adapter = (preset(name) for name in ("superb_ks", "hf_finetune", "adapter_hubert"))
    assert (superb.model.head, superb.model.head_size, superb.model.trained) == ("weighted_sum", 256, "head")
    assert (superb.training.optimizer, superb.training.batch_size, superb.training.sampling) == ("adam", 32, "balanced")
    assert (finetune.training.learning_rate, finetune.training.rounds, finetune.training.warmup) == (3e-5, 5, 0.1)
    assert finetune.training.batch_size * finetune.training.accumulation == 128
    assert (finetune.training.schedule, finetune.model.spec_augment) == ("linear", True)
    assert (adapter.training.learning_rate, adapter.training.patience, adapter.best_metric) == (1e-5, 5, "macro_f1")
    assert (adapter.training.optimizer, adapter.model.adapter_hidden_size) == ("adam", 128)
    assert {each.training.augmentation for each in (superb, finetune, adapter)} == {Augmentation.none()}


def test_what_is_asked_for_on_the_command_line() -> None:
    assert asked_for(None, None) == preset("tiny")
    assert asked_for(None, None, ["training.rounds=5"]).training.rounds == 5
    by_change = asked_for(None, None, ["model.name=folder", "training.seed=3"])
    assert (by_change.model.head, by_change.training.cache, by_change.training.seed) == ("weighted_sum", "probe", 3)
    assert asked_for(None, "folder", ["training.seed=3"]) == by_change
    assert asked_for("hf_finetune", "folder").training.learning_rate == 3e-5
    with pytest.raises(ConfigError, match=r"training\.round"):
        asked_for("hf_finetune", "folder", ["training.round=3"])


@pytest.mark.parametrize(
    ("content", "name", "cut"),
    [
        ('{"model_type": "whisper"}', "model", True),
        ('{"model_type": "hubert"}', "whisper", False),
        ("[]", "model", False),
        (None, "openai/whisper-tiny", True),
        (None, "facebook/hubert-base-ls960", False),
    ],
)
def test_whisper_hears_the_clip_alone(content: str | None, name: str, cut: bool, tmp_path: Path) -> None:
    if content is not None:
        name = str(tmp_path / name)
        Path(name).mkdir()
        (Path(name) / "config.json").write_text(content)
    assert preset("superb_ks", name).model.cut_positions is cut
    assert not preset("hf_finetune", name).model.cut_positions


def test_a_rules_problems_are_told_with_the_others() -> None:
    wrong = ["rule=krum", "byzantine=-1", "select=0.5", "proximal=-1", "max_update_norm=0"]
    with pytest.raises(ConfigError) as refused:
        asked_for(None, None, [*(f"algorithm.{each}" for each in wrong), "training.patience=0"])
    told = [line.partition(";")[0] for line in str(refused.value).split("\n")]
    assert sorted(told) == [
        "algorithm.byzantine is -1", "algorithm.max_update_norm is 0", "algorithm.proximal is -1",
        "algorithm.select is 0.5", "training.patience is 0",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"^algorithm\.rule is 'nobodys'; allowed: mean, "):
        asked_for(None, None, ["algorithm.rule=nobodys", "algorithm.beta1=7"])
