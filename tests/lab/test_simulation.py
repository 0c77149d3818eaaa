from dataclasses import replace

import numpy as np
import pytest
from small_network import Tones, plain, small_recipe

from kws.config import Algorithm, Augmentation, ExperimentConfig
from kws.model import build_model, load_weights, trained_weights
from kws.training import build_optimizer, train_round
from lab.simulation import federated_averaging
from rules.in_memory import begin, next_state
from rules.mean import Mean
from rules.median import Median
from rules.sampling import Sampling
from shard_descriptors.corpus import SUPERB_KS

Models = dict[str, np.ndarray]
NORTH, SOUTH = Tones.make(36, seed=1), Tones.make(16, seed=2)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    recipe = small_recipe(tmp_path_factory.mktemp("small"))
    return ExperimentConfig(recipe, plain(augmentation=Augmentation()))


def ignore(*_: object) -> None:
    pass


def equal(one: Models, other: Models) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_one_site_is_ordinary_training(config: ExperimentConfig) -> None:
    model = build_model(config.model, config.training.seed, SUPERB_KS)
    optimizer = build_optimizer(model, config.training)
    for done in range(config.training.rounds):
        train_round(model, optimizer, NORTH, config.training, done)
    assert equal(federated_averaging(config, {"north": NORTH}, ignore), trained_weights(model))


def test_two_sites_are_the_mean_of_what_each_trains(config: ExperimentConfig) -> None:
    models = [build_model(config.model, config.training.seed, SUPERB_KS) for _ in range(2)]
    optimizers = [build_optimizer(model, config.training) for model in models]
    for done in range(config.training.rounds):
        for model, optimizer, clips in zip(models, optimizers, (NORTH, SOUTH), strict=True):
            train_round(model, optimizer, clips, config.training, done)
        trained = [trained_weights(model) for model in models]
        mean = next_state(Mean(), begin(trained[0]), trained, [36, 16]).model
        for model in models:
            load_weights(model, mean)
    assert equal(federated_averaging(config, {"north": NORTH, "south": SOUTH}, ignore), mean)


def test_the_order_of_the_sites_does_not_matter(config: ExperimentConfig) -> None:
    one = federated_averaging(config, {"north": NORTH, "south": SOUTH}, ignore)
    other = federated_averaging(config, {"south": SOUTH, "north": NORTH}, ignore)
    assert equal(one, other)


def test_another_rule_makes_another_model(config: ExperimentConfig) -> None:
    sites = {"north": NORTH, "south": SOUTH}
    assert not equal(
        federated_averaging(config, sites, ignore, rule=Median()), federated_averaging(config, sites, ignore)
    )


def test_what_is_reported(config: ExperimentConfig) -> None:
    lines: list[tuple[int, str, str, dict[str, float]]] = []
    federated_averaging(config, {"north": NORTH, "south": SOUTH}, lambda *line: lines.append(line))
    assert [line[:3] for line in lines] == [(r, site, "train") for r in (1, 2) for site in ("north", "south")]
    for *_, metrics in lines:
        assert metrics.keys() == {"loss", "objective", "accuracy", "steps", "samples"}
        assert metrics["loss"] > 0
        assert 0 <= metrics["accuracy"] <= 1


def test_a_fresh_optimizer_every_round_is_another_run_and_repeatable(config: ExperimentConfig) -> None:
    fresh = replace(config, training=replace(config.training, keep_optimizer=False))
    sites = {"north": NORTH}
    once = federated_averaging(fresh, sites, ignore)
    assert equal(once, federated_averaging(fresh, sites, ignore))
    assert not equal(once, federated_averaging(config, sites, ignore))
    single = replace(config.training, rounds=1)  # in one round there is nothing to keep
    assert equal(
        federated_averaging(replace(config, training=single), sites, ignore),
        federated_averaging(replace(config, training=replace(single, keep_optimizer=False)), sites, ignore),
    )


def test_a_round_asks_those_that_are_drawn(config: ExperimentConfig) -> None:
    sampled = replace(
        config, algorithm=Algorithm(sites_per_round=1), training=replace(config.training, rounds=6, seed=4)
    )
    sites = {"north": NORTH, "south": SOUTH}
    lines: list[tuple[int, str, str, dict[str, float]]] = []
    federated_averaging(sampled, sites, lambda *line: lines.append(line))
    draws = [Sampling(1, seed=4).draw(done, sites, sites) for done in range(6)]
    assert [(done, site) for done, site, *_ in lines] == [(done + 1, site) for done, (site,) in enumerate(draws)]
    assert len(set(draws)) == 2
    everybody = replace(config, algorithm=Algorithm(sites_per_round=5))
    assert equal(federated_averaging(everybody, sites, ignore), federated_averaging(config, sites, ignore))


@pytest.mark.parametrize(("scores", "rounds"), [([1, 5, 4, 3, 9, 9, 9], 4), ([1, 2, 3, 4, 5, 5, 5], 6), ([5] * 7, 6)])
def test_it_ends_a_round_after_the_patience_does(config: ExperimentConfig, scores: list[int], rounds: int) -> None:
    long = replace(config, training=replace(config.training, rounds=6))
    done: list[int] = []

    def measured(number: int, weights: Models) -> bool:
        done.append(number)
        best = max(range(number + 1), key=lambda each: (scores[each], each))
        return number - best >= 2

    federated_averaging(long, {"north": NORTH}, ignore, after_round=measured)
    assert done == list(range(rounds + 1))
