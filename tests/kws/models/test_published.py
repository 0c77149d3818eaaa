"""The published networks, built on the meta device, which has shapes and no memory: no download, and no 6 GB."""

import pytest
import torch
import transformers
from published_models import PUBLISHED, Published

from kws.config import HEADS, TRAINED, ModelRecipe
from kws.model import build_model
from kws.models.loading import head_settings, network_class
from kws.models.registry import FAMILIES
from kws.models.trained import train_only
from shard_descriptors.corpus import SUPERB_KS


def test_every_family_has_a_base_and_a_large_one() -> None:
    counts = {kind: sum(each.kind == kind for each in PUBLISHED) for kind in FAMILIES}
    one_size = {"wav2vec2-bert", "unispeech", "sew"}  # more were not published, or their size is not known here
    assert all(count >= 2 or kind in one_size for kind, count in counts.items())
    assert all(counts.values())


@pytest.mark.parametrize("published", PUBLISHED, ids=lambda each: each.name)
def test_a_published_network_is_ours_tensor_by_tensor(published: Published) -> None:
    """As many parameters as were published; the encoder's names and shapes are those of the class it was saved from."""
    family = FAMILIES[published.kind]
    saved_from = getattr(transformers, published.saved_from)
    with torch.device("meta"):
        theirs = saved_from(saved_from.config_class(**published.config))
    parameters = sum(weights.numel() for weights in theirs.parameters())
    assert parameters == pytest.approx(published.parameters, rel=5e-3)
    stored = {name: tuple(tensor.shape) for name, tensor in theirs.state_dict().items()}
    for head in HEADS:
        recipe = ModelRecipe(published.name, head=head)
        made = network_class(family, recipe)
        config = made.config_class(**published.config)
        config.update(head_settings(recipe))
        with torch.device("meta"):
            network = made(config)
        encoder = network.get_submodule(family.encoder).state_dict()
        assert len(encoder) == published.tensors
        for name, tensor in encoder.items():
            whole = f"{family.encoder}.{name}"
            places = [place for place in (whole, f"model.{whole}", name) if place in stored]
            assert [stored[place] for place in places] == [tuple(tensor.shape)], name
        for trained in TRAINED:
            if trained != "lora":  # it draws numbers, which the meta device has not
                train_only(network, family, ModelRecipe(published.name, head=head, trained=trained), 0)


def test_the_base_sizes_that_papers_name() -> None:
    """Wav2Vec2 base with the library's head of twelve labels: 94.57 M parameters, 215 tensors."""
    with torch.device("meta"):
        network = transformers.Wav2Vec2ForSequenceClassification(transformers.Wav2Vec2Config(num_labels=12))
    assert sum(weights.numel() for weights in network.parameters()) == 94_571_660
    assert len(network.state_dict()) == 211 + 4


def test_tiny_has_a_third_of_a_million() -> None:
    network = build_model(ModelRecipe("tiny"), 0, SUPERB_KS).network
    assert sum(weights.numel() for weights in network.parameters()) == 339_615
