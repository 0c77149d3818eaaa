from pathlib import Path

import torch
from small_network import Tones, classifier, plain

from kws.federated import TrainedTensors
from kws.training import build_optimizer, train_round


def test_a_restarted_site_goes_on_with_the_moments_that_it_had(tmp_path: Path) -> None:
    clips, settings = Tones.make(24), plain()
    model = classifier()
    optimizer = build_optimizer(model, settings)
    train_round(model, optimizer, clips, settings, 0, 1)
    TrainedTensors.save_local_state(model, optimizer, tmp_path / "0.state")
    weights = TrainedTensors.get_tensor_dict(model)
    train_round(model, optimizer, clips, settings, 1, 1)
    undisturbed = TrainedTensors.get_tensor_dict(model)

    def second_round(restore: bool) -> dict:
        fresh = classifier()
        TrainedTensors.set_tensor_dict(fresh, weights)
        moments = build_optimizer(fresh, settings)
        if restore:
            TrainedTensors.load_local_state(fresh, moments, tmp_path / "0.state")
        train_round(fresh, moments, clips, settings, 1, 1)
        return TrainedTensors.get_tensor_dict(fresh)

    restored, forgotten = second_round(True), second_round(False)
    same = [torch.equal(torch.from_numpy(restored[n]), torch.from_numpy(undisturbed[n])) for n in undisturbed]
    assert all(same)
    assert any((forgotten[name] != undisturbed[name]).any() for name in undisturbed)
