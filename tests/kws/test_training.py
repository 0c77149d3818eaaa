from dataclasses import replace
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_network import Tones, plain, quick, small_recipe

from kws.config import Augmentation, ModelRecipe, Training
from kws.model import build_model, trained_weights
from kws.training import build_optimizer, evaluate, learning_rate, round_seed, train_round
from shard_descriptors.corpus import SUPERB_KS

CLIPS = Tones.make(48)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> ModelRecipe:
    return small_recipe(tmp_path_factory.mktemp("small"))


def trained(recipe: ModelRecipe, training: Training, shard: int = 1) -> dict[str, np.ndarray]:
    """The weights after all rounds on the same clips."""
    model = build_model(recipe, training.seed, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    for done in range(training.rounds):
        train_round(model, optimizer, CLIPS, training, done, shard)
    return trained_weights(model)


def equal(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in one.keys() | other.keys())


def test_the_same_seed_gives_the_same_weights_to_the_bit(recipe: ModelRecipe) -> None:
    training = plain(augmentation=Augmentation(), local_epochs=2)
    assert equal(trained(recipe, training), trained(recipe, training))


def test_balanced_sampling_is_another_run_and_repeatable(recipe: ModelRecipe) -> None:
    training = plain(sampling="balanced")
    assert equal(trained(recipe, training), trained(recipe, training))
    assert not equal(trained(recipe, training), trained(recipe, plain()))


def test_a_repeated_round_gives_the_same_weights_whatever_else_was_drawn(recipe: ModelRecipe) -> None:
    outcomes = []
    for drawn in (1, 7):
        model = build_model(replace(recipe, dropout=0.3), 0, SUPERB_KS)
        torch.rand(drawn)
        train_round(model, build_optimizer(model, plain()), CLIPS, plain(), 1, 1)
        outcomes.append(trained_weights(model))
    assert equal(*outcomes)


def test_another_shard_or_seed_gives_other_weights(recipe: ModelRecipe) -> None:
    training = plain(rounds=1)
    first = trained(recipe, training)
    assert not equal(first, trained(recipe, training, shard=2))
    assert not equal(first, trained(recipe, replace(training, seed=1)))


def test_no_two_sites_or_rounds_share_a_seed() -> None:
    cases = list(product(range(4), range(13), range(13)))  # 1 and 11 must not be 11 and 1
    assert len({round_seed(*case) for case in cases}) == len(cases)
    assert all(0 <= round_seed(*case) < 2**64 for case in cases)


@quick
@given(st.integers(1, 500), st.floats(0, 0.99), st.floats(1e-6, 0.1))
def test_the_rate_warms_up_and_falls_to_nothing(total: int, warmup: float, peak: float) -> None:
    training = Training(learning_rate=peak, warmup=warmup)
    rates = [learning_rate(training, step, total) for step in range(total)]
    assert all(0 < rate <= peak for rate in rates)
    warm = int(np.ceil(warmup * total))
    assert all(before < after for before, after in pairwise(rates[:warm]))
    assert all(before > after for before, after in pairwise(rates[warm:]))
    assert learning_rate(training, total, total) == pytest.approx(0, abs=1e-12)
    if total - warm >= 20:
        assert rates[-1] < 0.01 * peak


def test_the_schedule_spans_all_rounds(recipe: ModelRecipe) -> None:
    training = plain(rounds=3, local_epochs=2, warmup=0.0)
    model = build_model(recipe, 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    last = []
    for done in range(3):
        train_round(model, optimizer, CLIPS, training, done, 1)
        last.append({group["lr"] for group in optimizer.param_groups})
    # 48 clips in batches of 8, twice: 12 steps a round, 36 in all.
    assert last == [{learning_rate(training, step, 36)} for step in (11, 23, 35)]


def test_tones_are_learned(recipe: ModelRecipe) -> None:
    training = plain(rounds=1, local_epochs=25, learning_rate=1e-2)
    model = build_model(recipe, 0, SUPERB_KS)
    before = evaluate(model, Tones.make(48, seed=1))
    train_round(model, build_optimizer(model, training), CLIPS, training, 0, 1)
    after = evaluate(model, Tones.make(48, seed=1))
    assert after.loss < 0.5 * before.loss
    assert before.accuracy < 0.3
    assert after.accuracy > 0.8


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_what_a_round_reports(recipe: ModelRecipe, smoothing: float) -> None:
    """At a rate of nearly nothing and without dropout, the mean over the round is what an evaluation gives."""
    training = plain(learning_rate=1e-12, batch_size=7, label_smoothing=smoothing)  # the last batch is smaller
    model = build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS)
    measured = train_round(model, build_optimizer(model, training), CLIPS, training, 0, 1)
    scores = evaluate(model, CLIPS)
    assert measured == pytest.approx({"loss": scores.loss, "accuracy": scores.accuracy}, rel=1e-4)


def test_recorded_losses(recipe: ModelRecipe) -> None:
    """Recorded with torch 2.13 on x86-64; a change of anything that decides training shows here."""
    training = plain(rounds=3)
    model = build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    losses = [train_round(model, optimizer, CLIPS, training, done, 1)["loss"] for done in range(3)]
    assert losses == pytest.approx([2.5747, 1.7947, 1.4883], abs=1e-3)


def test_biases_and_norms_do_not_decay(recipe: ModelRecipe) -> None:
    model = build_model(recipe, 0, SUPERB_KS)
    groups = build_optimizer(model, plain(weight_decay=0.3)).param_groups
    assert {group["weight_decay"]: {p.ndim > 1 for p in group["params"]} for group in groups} == {
        0.3: {True},
        0.0: {False},
    }
    assert sum(len(group["params"]) for group in groups) == len(trained_weights(model))


def test_evaluate_answers_every_clip_in_order_and_changes_nothing(recipe: ModelRecipe) -> None:
    model = build_model(replace(recipe, dropout=0.5), 0, SUPERB_KS)
    clips = Tones.make(150)  # more than two batches
    before = trained_weights(model)
    scores = evaluate(model, clips)
    model.eval()
    with torch.inference_mode():
        logits = model(torch.from_numpy(clips.waveforms))
    assert np.array_equal(scores.predictions, logits.argmax(-1).numpy())
    assert np.array_equal(scores.labels, clips.labels)
    labels = torch.from_numpy(clips.labels)
    assert scores.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)
    assert scores.logits.dtype == np.float32
    np.testing.assert_allclose(scores.logits, logits.numpy(), rtol=1e-4, atol=1e-5)
    assert evaluate(model, clips).scalars() == scores.scalars()
    assert equal(trained_weights(model), before)


def test_there_has_to_be_something_to_evaluate(recipe: ModelRecipe) -> None:
    with pytest.raises(ValueError, match="no clips to evaluate"):
        evaluate(build_model(recipe, 0, SUPERB_KS), Tones.make(0))
