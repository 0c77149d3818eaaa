"""Between OpenFL's dictionaries and the model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from openfl.plugins.frameworks_adapters.pytorch_adapter import FrameworkAdapterPlugin
from small_network import Tones, classifier, plain, small_recipe
from stock import fault

from kws.algorithms import Local
from kws.config import Algorithm, ConfigError, ExperimentConfig, Training
from kws.model import Classifier, ModelError, build_model, frozen_digest, trained_weights
from kws.tasks import TrainedTensors, experiment, settings_of
from kws.training import build_optimizer, train_round
from shard_descriptors.corpus import SUPERB_KS, ClipFormat


def stock_tensors(model: Classifier, optimizer: Any) -> Any:
    return FrameworkAdapterPlugin.get_tensor_dict(model.network, optimizer)


def our_tensors(model: Classifier, optimizer: Any) -> Any:
    return TrainedTensors.get_tensor_dict(Local(model, Algorithm()), optimizer)


@fault("federated/task/task_runner.py:52", stock=stock_tensors, ours=our_tensors)
def test_the_optimizer_stays_at_its_site(subject: Any, tmp_path: Path) -> None:
    model = build_model(small_recipe(tmp_path), 0, SUPERB_KS)
    optimizer = build_optimizer(model, plain())
    train_round(model, optimizer, Tones.make(12), plain(), 0)
    trained = {name for name, weights in model.network.named_parameters() if weights.requires_grad}
    assert subject(model, optimizer).keys() - trained == set()


def test_a_restarted_site_goes_on_with_the_moments_that_it_had(tmp_path: Path) -> None:
    clips, settings = Tones.make(24), plain()
    local = Local(classifier(), Algorithm())
    optimizer = build_optimizer(local.model, settings)
    local.train(optimizer, clips, settings, 0)
    TrainedTensors.save_local_state(local, optimizer, tmp_path / "0.state")
    weights = trained_weights(local.model)
    local.train(optimizer, clips, settings, 1)
    undisturbed = TrainedTensors.get_tensor_dict(local)

    def second_round(restore: bool) -> dict:
        fresh = Local(classifier(), Algorithm())
        TrainedTensors.set_tensor_dict(fresh, weights)
        moments = build_optimizer(fresh.model, settings)
        if restore:
            TrainedTensors.load_local_state(fresh, moments, tmp_path / "0.state")
        fresh.train(moments, clips, settings, 1)
        return TrainedTensors.get_tensor_dict(fresh)

    restored, forgotten = second_round(True), second_round(False)
    same = [torch.equal(torch.from_numpy(restored[n]), torch.from_numpy(undisturbed[n])) for n in undisturbed]
    assert all(same)
    assert any((forgotten[name] != undisturbed[name]).any() for name in undisturbed)


def through_json(config: ExperimentConfig, form: ClipFormat = SUPERB_KS, **changes: Any) -> dict[str, Any]:
    """Settings as a site finds them."""
    return json.loads(json.dumps(settings_of(config, form) | changes))


def test_what_the_notebook_has_configured_is_what_a_site_builds(tmp_path: Path) -> None:
    config = ExperimentConfig(model=small_recipe(tmp_path), training=Training(rounds=7, learning_rate=0.25, seed=3))
    form = ClipFormat(labels=("no", "yes", "grün"), sample_rate=8000, num_samples=4000)
    model, tasks, data = experiment(through_json(config, form))
    assert model.config == data.config == config
    assert model.format == form
    assert set(tasks.task_registry) == {"train", "validate"}


def test_settings_that_are_not_allowed_are_named(tmp_path: Path) -> None:
    wrong = through_json(ExperimentConfig())
    wrong["config"]["training"]["rounds"] = 0
    with pytest.raises(ConfigError, match=r"training\.rounds is 0"):
        experiment(wrong)
    unknown = through_json(ExperimentConfig())
    unknown["config"]["training"]["epochs"] = 3
    with pytest.raises(ConfigError, match=r"there is no training\.epochs; allowed here: .*rounds"):
        experiment(unknown)


def test_a_model_whose_frozen_part_is_another_is_refused_where_it_is_built(tmp_path: Path) -> None:
    config = ExperimentConfig(small_recipe(tmp_path), plain())
    right = frozen_digest(build_model(config.model, config.training.seed, SUPERB_KS))
    model, _, _ = experiment(through_json(config, frozen=right))
    assert model.provide_model() is model.provide_model()
    other, _, _ = experiment(through_json(config, frozen="0" * 64))
    with pytest.raises(ModelError, match=f"here {right}, there {'0' * 64}"):
        other.provide_model()
