"""The sites' parts of algorithms: by hand, beside plain training, and over a restart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_network import Tones, classifier, plain

from kws.algorithms import CONTROL, Local
from kws.config import Algorithm, ConfigError, ExperimentConfig, ModelRecipe, Training
from kws.model import ModelError, load_weights, trained, trained_weights
from kws.tasks import TrainedTensors
from kws.training import build_optimizer, train_round

CLIPS = Tones.make(24)
SGD = plain(optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.05, schedule="constant", warmup=0.0)
SCAFFOLD, PERSONAL = Algorithm(rule="scaffold"), Algorithm(personal="head")


def copied(local: Local) -> dict[str, np.ndarray]:
    return {name: array.copy() for name, array in local.tensors().items()}


def after(algorithm: Algorithm, training: Training, rounds: int = 2) -> dict[str, np.ndarray]:
    """What one site alone has after some rounds in which what it sends comes back to it."""
    local = Local(classifier(), algorithm)
    optimizer = build_optimizer(local.model, training)
    for done in range(rounds):
        local.load(copied(local))
        local.train(optimizer, CLIPS, training, done)
    return copied(local)


def ordinary(training: Training, rounds: int = 2) -> dict[str, np.ndarray]:
    model = classifier()
    optimizer = build_optimizer(model, training)
    for done in range(rounds):
        train_round(model, optimizer, CLIPS, training, done)
    return trained_weights(model)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("training", [SGD, plain()], ids=["sgd", "adamw"])
def test_without_a_pull_it_is_plain_training(training: Training) -> None:
    assert equal(after(Algorithm(proximal=0.0), training), ordinary(training))
    assert not equal(after(Algorithm(proximal=1.0), training), ordinary(training))


def test_the_pull_of_fedprox_by_hand() -> None:
    """Of two steps the first is at the round's model, where there is none: w = w1 - rate (g2 + mu (w1 - w0))."""
    two = replace(SGD, rounds=1, local_steps=2, max_grad_norm=None)
    begin = trained_weights(classifier())
    once = after(Algorithm(), replace(two, local_steps=1), rounds=1)
    without, pulled = after(Algorithm(), two, rounds=1), after(Algorithm(proximal=4.0), two, rounds=1)
    for name in begin:
        expected = without[name] - 0.05 * 4.0 * (once[name] - begin[name])
        np.testing.assert_allclose(pulled[name], expected, rtol=1e-4, atol=1e-6)


def test_a_strong_pull_keeps_a_site_near() -> None:
    begin = trained_weights(classifier())

    def way(proximal: float) -> float:
        end = after(Algorithm(proximal=proximal), replace(SGD, rounds=1), rounds=1)
        return sum(float(np.square(end[name] - begin[name]).sum()) for name in begin)

    assert way(0.0) > way(3.0) > way(10.0) > 0


def test_one_site_alone_needs_no_correction() -> None:
    alone = after(SCAFFOLD, SGD, rounds=3)
    plainly = ordinary(SGD, rounds=3)
    for name, weights in plainly.items():
        np.testing.assert_allclose(alone[name], weights, rtol=1e-5, atol=1e-6)
    assert alone.keys() == plainly.keys() | {f"{CONTROL}{name}" for name in plainly}


def test_scaffold_by_hand() -> None:
    """One step at the rate r: c_i becomes the gradient; with c - c_i of d every weight moves by r d less."""
    one = replace(SGD, rounds=2, local_steps=1, max_grad_norm=None)
    local = Local(classifier(), SCAFFOLD)
    optimizer = build_optimizer(local.model, one)
    begin = copied(local)
    assert all(not array.any() for name, array in begin.items() if name.startswith(CONTROL))
    local.load(begin)
    local.train(optimizer, CLIPS, one, 0)
    sent = copied(local)
    gradient = {name: (begin[name] - sent[name]) / np.float32(0.05) for name in trained_weights(local.model)}
    for name, expected in gradient.items():
        np.testing.assert_allclose(sent[f"{CONTROL}{name}"], expected, rtol=1e-4, atol=1e-5)  # c was 0, and c_i
    plainly = Local(classifier(), Algorithm())
    plainly.load({name: sent[name] for name in gradient})
    plainly.train(build_optimizer(plainly.model, one), CLIPS, one, 1)
    without = copied(plainly)
    others = {f"{CONTROL}{name}": sent[f"{CONTROL}{name}"] + np.float32(0.5) for name in gradient}  # what others add
    local.load(sent | others)
    local.train(optimizer, CLIPS, one, 1)
    for name in [name for name, array in gradient.items() if array.any()]:  # one is only for masks
        np.testing.assert_allclose(copied(local)[name], without[name] - 0.05 * 0.5, rtol=1e-4, atol=1e-5)
        moved = (sent[name] - without[name]) / np.float32(0.05) - gradient[name]  # of c_i: from the first g to the next
        back = copied(local)[f"{CONTROL}{name}"] - others[f"{CONTROL}{name}"]
        np.testing.assert_allclose(back, moved, rtol=1e-3, atol=2e-4)


def test_a_head_of_its_own_stays() -> None:
    local = Local(classifier(), PERSONAL)
    names = trained(local.model).keys()
    head = {name for name in names if not name.startswith("wav2vec2.")}
    assert head
    assert local.tensors().keys() == names - head
    begin = copied(local)
    local.train(build_optimizer(local.model, SGD), CLIPS, SGD, 0)
    own = local.own_tensors()
    assert own.keys() == head
    local.load(begin)
    now = trained_weights(local.model)
    assert all(np.array_equal(now[name], own[name]) for name in head)
    assert all(np.array_equal(now[name], begin[name]) for name in begin)
    with pytest.raises(ModelError, match=r"differ in: classifier\.bias"):
        local.load(begin | {"classifier.bias": now["classifier.bias"]})


def test_sites_that_share_a_model_have_heads_of_their_own() -> None:
    model = classifier()
    one, other = Local(model, PERSONAL), Local(model, PERSONAL)
    begin = copied(one)
    one.load(begin)
    one.train(build_optimizer(model, SGD), CLIPS, SGD, 0)
    other.load(begin)
    assert equal(trained_weights(model), trained_weights(classifier()))
    one.load(begin)
    assert not equal(trained_weights(model), trained_weights(classifier()))


@pytest.mark.parametrize("algorithm", [SCAFFOLD, PERSONAL], ids=["scaffold", "personal"])
@pytest.mark.parametrize("keep_optimizer", [True, False])
def test_a_restarted_site_goes_on_with_what_it_kept(algorithm: Algorithm, keep_optimizer: bool, tmp_path: Path) -> None:
    training = replace(SGD if algorithm is SCAFFOLD else plain(), keep_optimizer=keep_optimizer)
    local = Local(classifier(), algorithm)
    optimizer = build_optimizer(local.model, training)
    local.train(optimizer, CLIPS, training, 0)
    TrainedTensors.save_local_state(local, optimizer, tmp_path / "0.state")
    come = {name: array * np.float32(0.9) for name, array in copied(local).items()}

    def second_round(site: Local, moments: torch.optim.Optimizer) -> tuple[dict, dict]:
        site.load(come)
        site.train(moments, CLIPS, training, 1)
        return copied(site), site.own_tensors()

    undisturbed = second_round(local, optimizer)
    fresh = Local(classifier(), algorithm)
    moments = build_optimizer(fresh.model, training)
    forgotten = second_round(fresh, moments)
    TrainedTensors.load_local_state(fresh, moments, tmp_path / "0.state")
    restored = second_round(fresh, moments)
    assert all(equal(one, other) for one, other in zip(restored, undisturbed, strict=True))
    assert not equal(forgotten[0], undisturbed[0])
    fresh.restore(None)
    again = second_round(fresh, build_optimizer(fresh.model, training))
    assert all(equal(one, other) for one, other in zip(again, forgotten, strict=True))


def test_control_variates_travel_under_the_names_of_what_travels() -> None:
    model = classifier()
    for name, weights in trained(model).items():  # the vectors of an encoder without matrices travel as one
        if name.startswith("wav2vec2.") and weights.ndim > 1:
            weights.requires_grad_(False)
    local = Local(model, SCAFFOLD)
    names = {name for name in local.tensors() if not name.startswith(CONTROL)}
    assert "biases_and_norms" in names
    assert local.tensors().keys() == names | {f"{CONTROL}{name}" for name in names}
    local.load(copied(local))
    load_weights(local.model, copied(local))  # who wants the model alone does not look at what else has come


@pytest.mark.parametrize(
    ("values", "texts"),
    [
        ({"rule": ""}, ["algorithm.rule is empty"]),
        ({"proximal": -1, "personal": "tail"}, ["algorithm.proximal is -1", "algorithm.personal is 'tail'"]),
        ({"sites_per_round": 0}, ["algorithm.sites_per_round is 0; allowed: a number, above 0, null"]),
        ({"sites_per_round": 1.5}, ["algorithm.sites_per_round is 1.5; allowed: a whole number from 1, or a share"]),
        ({"weight_cap": 1.5, "beta1": "x"}, ["algorithm.weight_cap is 1.5", "algorithm.beta1 is 'x'"]),
    ],
)
def test_algorithms_that_cannot_be(values: dict, texts: list[str]) -> None:
    with pytest.raises(ConfigError) as raised:
        ExperimentConfig.from_dict({"algorithm": values})
    lines = str(raised.value).splitlines()
    assert len(lines) == len(texts)
    assert all(line.startswith(text) for line, text in zip(lines, texts, strict=True)), lines


def test_algorithms_that_do_not_go_with_the_training() -> None:
    with pytest.raises(
        ConfigError, match=r"=scaffold corrects plain .* to sgd and .*momentum to 0 \(they are adamw and 0.9"
    ):
        ExperimentConfig(algorithm=SCAFFOLD)
    ExperimentConfig(training=SGD, algorithm=SCAFFOLD)
    with pytest.raises(ConfigError, match=r"algorithm.personal=head leaves nothing to travel"):
        ExperimentConfig(ModelRecipe("folder", trained="head"), SGD, algorithm=PERSONAL)
    for sites in (None, 1, 3, 0.5):
        assert Algorithm(sites_per_round=sites).sites_per_round == sites
