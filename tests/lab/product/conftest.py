from pathlib import Path

import pytest

from kws.config import ModelRecipe
from kws.model import build_model, save_pretrained
from lab.product.spotter import TorchSpotter, torch_spotter
from shard_descriptors.corpus import SUPERB_KS


@pytest.fixture(scope="session")
def saved_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a small model, as a run leaves it; its weights are random."""
    run = tmp_path_factory.mktemp("run")
    (run / "config.json").write_text("{}")
    save_pretrained(build_model(ModelRecipe(), 3, SUPERB_KS), run / "model")
    return run / "model"


@pytest.fixture(scope="session")
def spotter(saved_model: Path) -> TorchSpotter:
    return torch_spotter(str(saved_model))
