"""Between OpenFL's dictionaries and the model."""

from pathlib import Path
from typing import Any

import torch
from openfl.plugins.frameworks_adapters.pytorch_adapter import FrameworkAdapterPlugin
from small_network import Tones, classifier, plain, small_recipe
from stock import fault

from kws.model import Classifier, build_model, trained_weights
from kws.tasks import TrainedTensors
from kws.training import build_optimizer, train_round
from shard_descriptors.corpus import SUPERB_KS


def stock_tensors(model: Classifier, optimizer: Any) -> Any:
    return FrameworkAdapterPlugin.get_tensor_dict(model.network, optimizer)


@fault("federated/task/task_runner.py:52", stock=stock_tensors, ours=TrainedTensors.get_tensor_dict)
def test_the_optimizer_stays_at_its_site(subject: Any, tmp_path: Path) -> None:
    model = build_model(small_recipe(tmp_path), 0, SUPERB_KS)
    optimizer = build_optimizer(model, plain())
    train_round(model, optimizer, Tones.make(12), plain(), 0)
    trained = {name for name, weights in model.network.named_parameters() if weights.requires_grad}
    assert subject(model, optimizer).keys() - trained == set()


def test_a_restarted_site_goes_on_with_the_moments_that_it_had(tmp_path: Path) -> None:
    clips, settings = Tones.make(24), plain()
    model = classifier()
    optimizer = build_optimizer(model, settings)
    train_round(model, optimizer, clips, settings, 0)
    TrainedTensors.save_local_state(model, optimizer, tmp_path / "0.state")
    weights = trained_weights(model)
    train_round(model, optimizer, clips, settings, 1)
    undisturbed = TrainedTensors.get_tensor_dict(model)

    def second_round(restore: bool) -> dict:
        fresh = classifier()
        TrainedTensors.set_tensor_dict(fresh, weights)
        moments = build_optimizer(fresh, settings)
        if restore:
            TrainedTensors.load_local_state(fresh, moments, tmp_path / "0.state")
        train_round(fresh, moments, clips, settings, 1)
        return TrainedTensors.get_tensor_dict(fresh)

    restored, forgotten = second_round(True), second_round(False)
    same = [torch.equal(torch.from_numpy(restored[n]), torch.from_numpy(undisturbed[n])) for n in undisturbed]
    assert all(same)
    assert any((forgotten[name] != undisturbed[name]).any() for name in undisturbed)
