"""Between OpenFL's dictionaries and the model."""

from pathlib import Path
from typing import Any

from openfl.plugins.frameworks_adapters.pytorch_adapter import FrameworkAdapterPlugin
from small_network import Tones, plain, small_recipe
from stock import fault

from kws.federated import TrainedTensors
from kws.model import Classifier, build_model
from kws.training import build_optimizer, train_round
from shard_descriptors.labels import LABELS


def stock_tensors(model: Classifier, optimizer: Any) -> Any:
    return FrameworkAdapterPlugin.get_tensor_dict(model.network, optimizer)


@fault("federated/task/task_runner.py:52", stock=stock_tensors, ours=TrainedTensors.get_tensor_dict)
def test_the_optimizer_stays_at_its_site(subject: Any, tmp_path: Path) -> None:
    model = build_model(small_recipe(tmp_path), 0, LABELS)
    optimizer = build_optimizer(model, plain())
    train_round(model, optimizer, Tones.make(12), plain(), 0, 1)
    trained = {name for name, weights in model.network.named_parameters() if weights.requires_grad}
    assert subject(model, optimizer).keys() - trained == set()
