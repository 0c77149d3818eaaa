import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.utils.class_weight import compute_sample_weight
from small_network import Tones, plain, quick, small_recipe
from transformers import get_scheduler

from kws.config import Augmentation, ModelRecipe, Training
from kws.model import Classifier, build_model, trained_weights
from kws.training import (
    TrainingError,
    arithmetic,
    build_optimizer,
    evaluate,
    label_weights,
    round_seed,
    share_of_rate,
    steps_in_round,
    train_round,
    uses_bfloat16,
)
from shard_descriptors.corpus import SUPERB_KS

CLIPS = Tones.make(48)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> ModelRecipe:
    return small_recipe(tmp_path_factory.mktemp("small"))


def trained(recipe: ModelRecipe, training: Training, clips: Tones = CLIPS) -> dict[str, np.ndarray]:
    """The weights after all rounds on the same clips."""
    model = build_model(recipe, training.seed, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    for done in range(training.rounds):
        train_round(model, optimizer, clips, training, done)
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
        train_round(model, build_optimizer(model, plain()), CLIPS, plain(), 1)
        outcomes.append(trained_weights(model))
    assert equal(*outcomes)


def test_other_clips_or_another_seed_give_other_weights(recipe: ModelRecipe) -> None:
    training = plain(rounds=1)
    first = trained(recipe, training)
    assert not equal(first, trained(recipe, training, Tones.make(48, seed=1)))
    assert not equal(first, trained(recipe, replace(training, seed=1)))


def test_no_two_sites_or_rounds_share_a_seed() -> None:
    sites = [Tones.make(count, seed=seed).keys for count, seed in product((1, 11), range(6))]
    cases = list(product(range(4), sites, range(13)))  # 1 and 11 must not be 11 and 1
    seeds = {round_seed(*case) for case in cases}
    assert len(seeds) == len(cases)
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert round_seed(0, sites[0], 0) == round_seed(0, sites[0][::-1], 0)


SCHEDULES = st.sampled_from(["cosine", "linear", "constant"])


@quick
@given(SCHEDULES, st.integers(1, 500), st.floats(0, 0.99))
def test_the_rate_is_the_librarys_without_its_first_idle_step(schedule: str, total: int, warmup: float) -> None:
    training = plain(schedule=schedule, warmup=warmup)
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    name = {"constant": "constant_with_warmup"}.get(schedule, schedule)
    warm = int(np.ceil(warmup * total))
    theirs = get_scheduler(name, optimizer, num_warmup_steps=warm + 1, num_training_steps=total + 1)
    for step in range(total):
        optimizer.step()
        theirs.step()
        assert share_of_rate(training, step, total) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)


@quick
@given(SCHEDULES, st.integers(1, 500), st.floats(0, 0.99))
def test_the_rate_warms_up_and_falls_to_nothing(schedule: str, total: int, warmup: float) -> None:
    training = plain(schedule=schedule, warmup=warmup)
    shares = [share_of_rate(training, step, total) for step in range(total)]
    assert all(0 < share <= 1 for share in shares)
    warm = int(np.ceil(warmup * total))
    assert all(before < after for before, after in pairwise(shares[:warm]))
    if schedule == "constant":
        assert set(shares[warm:]) <= {1.0}
    else:
        assert all(before > after for before, after in pairwise(shares[warm:]))
        assert warm == total or share_of_rate(training, total, total) == pytest.approx(0, abs=1e-12)


def test_the_schedule_spans_all_rounds(recipe: ModelRecipe) -> None:
    training = plain(rounds=3, local_epochs=2, warmup=0.0, learning_rate=0.01, head_learning_rate=0.1)
    model = build_model(recipe, 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    last = []
    for done in range(3):
        train_round(model, optimizer, CLIPS, training, done)
        last.append({group["lr"] for group in optimizer.param_groups})
    # 48 clips in batches of 8, twice: 12 steps a round, 36 in all.
    shares = [share_of_rate(training, step, 36) for step in (11, 23, 35)]
    assert last == [{0.01 * share, 0.1 * share} for share in shares]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({}, 6),
        ({"local_epochs": 2}, 12),
        ({"local_epochs": 0.5}, 3),
        ({"local_epochs": 0.6}, 4),  # rounded up
        ({"local_epochs": 1e-9}, 1),
        ({"local_steps": 4}, 4),
        ({"local_steps": 40, "local_epochs": 2}, 40),
        ({"accumulation": 4}, 2),
        ({"batch_size": 100}, 1),
    ],
)
def test_how_long_a_round_is(recipe: ModelRecipe, changes: dict, steps: int) -> None:
    training = plain(**changes)
    assert steps_in_round(training, 48) == steps
    model = build_model(recipe, 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    train_round(model, optimizer, CLIPS, training, 0)
    assert {int(state["step"]) for state in optimizer.state.values()} == {steps}


def test_rounds_of_single_steps_are_the_same_training_as_one_of_all(recipe: ModelRecipe) -> None:
    """Without dropout, whose masks belong to the round."""
    still = replace(recipe, dropout=0.0)
    long = trained(still, plain(rounds=1, local_epochs=2, augmentation=Augmentation()))
    short = trained(still, plain(rounds=12, local_steps=1, augmentation=Augmentation()))
    assert equal(long, short)


@pytest.mark.parametrize("class_weights", [False, True])
def test_accumulated_batches_are_one_large_one(recipe: ModelRecipe, class_weights: bool) -> None:
    """Also where the last step has fewer clips (47 are 3 steps of 16, 16 and 15) and the last batch has only three."""
    still, clips = replace(recipe, dropout=0.0), Tones.make(47)
    common = {"rounds": 1, "class_weights": class_weights, "optimizer": "sgd", "learning_rate": 0.1}
    large = trained(still, plain(batch_size=16, **common), clips)
    for size in (8, 4, 1):
        small = trained(still, plain(batch_size=size, accumulation=16 // size, **common), clips)
        for name, tensor in large.items():
            np.testing.assert_allclose(small[name], tensor, rtol=1e-4, atol=1e-6, err_msg=name)


def gradients(model: Classifier, clips: Tones, **changes: object) -> dict[str, np.ndarray]:
    """Of one step over all clips, from what plain gradient descent at a rate of 1 changes."""
    before = trained_weights(model)
    training = plain(
        rounds=1, batch_size=len(clips), optimizer="sgd", momentum=0.0, weight_decay=0.0, learning_rate=0.5,
        schedule="constant", warmup=0.0, max_grad_norm=None, **changes,
    )  # fmt: skip
    train_round(model, build_optimizer(model, training), clips, training, 0)
    return {name: (before[name] - after) / 0.5 for name, after in trained_weights(model).items()}


def test_class_weights_make_rare_labels_count_as_much(recipe: ModelRecipe) -> None:
    """The gradient is that of the mean loss with scikit-learn's weights, from the site's own counts."""
    clips = Tones.make(30)
    rare = Tones(clips.waveforms, np.where(clips.labels == 3, 3, 0))  # 3 of 30, and ten labels that nobody has
    assert label_weights(rare.labels, plain(class_weights=True), 12).tolist() == pytest.approx(
        [30 / (2 * 27), 0, 0, 30 / (2 * 3)] + [0] * 8
    )
    assert label_weights(rare.labels, plain(), 12).tolist() == [1] * 12
    ours = gradients(build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS), rare, class_weights=True)
    model = build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS)
    losses = torch.nn.functional.cross_entropy(
        model(torch.from_numpy(rare.waveforms)), torch.from_numpy(rare.labels), reduction="none"
    )
    (losses * torch.from_numpy(compute_sample_weight("balanced", rare.labels))).mean().backward()
    for name, parameter in model.network.named_parameters():
        if parameter.grad is not None:
            np.testing.assert_allclose(ours[name], parameter.grad, rtol=1e-3, atol=1e-5, err_msg=name)


def test_gradients_are_cut_to_their_greatest_length(recipe: ModelRecipe) -> None:
    def length(limit: float | None) -> float:
        model = build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS)
        before = trained_weights(model)
        training = plain(
            rounds=1, local_steps=1, optimizer="sgd", weight_decay=0.0, learning_rate=0.1, schedule="constant",
            warmup=0.0, max_grad_norm=limit,
        )  # fmt: skip
        train_round(model, build_optimizer(model, training), CLIPS, training, 0)
        moved = [np.square(before[name] - after).sum() for name, after in trained_weights(model).items()]
        return float(np.sqrt(np.sum(moved))) / 0.1

    assert length(None) > 1
    assert length(0.5) == pytest.approx(0.5, rel=1e-3)
    assert length(1e6) == pytest.approx(length(None), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "kind"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_every_optimizer_trains_with_its_settings(recipe: ModelRecipe, name: str, kind: type) -> None:
    training = plain(optimizer=name, momentum=0.7, beta2=0.95, learning_rate=0.01)
    model = build_model(recipe, 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    assert type(optimizer) is kind
    assert optimizer.defaults.get("betas", (0.9, 0.95)) == (0.9, 0.95)
    assert optimizer.defaults.get("momentum", 0.7) == 0.7
    first, second = (train_round(model, optimizer, CLIPS, training, done)["loss"] for done in range(2))
    assert second < first


def test_the_head_has_its_own_rate(recipe: ModelRecipe) -> None:
    training = plain(learning_rate=1e-3, head_learning_rate=0.02, weight_decay=0.3)
    model = build_model(recipe, 0, SUPERB_KS)
    rates = {
        id(p): (g["lr"], g["weight_decay"]) for g in build_optimizer(model, training).param_groups for p in g["params"]
    }
    head = {"projector.weight", "projector.bias", "classifier.weight", "classifier.bias"}
    for name, parameter in model.network.named_parameters():
        expected = (0.02 if name in head else 1e-3, 0.3 if parameter.ndim > 1 else 0.0)
        assert rates.get(id(parameter)) == (expected if parameter.requires_grad else None), name
    assert {group["lr"] for group in build_optimizer(model, plain(learning_rate=1e-3)).param_groups} == {1e-3}


def test_a_training_that_breaks_down_says_where_and_what_to_do(recipe: ModelRecipe) -> None:
    training = plain(rounds=3, learning_rate=0.25, schedule="constant", warmup=0.0)
    model = build_model(recipe, 0, SUPERB_KS)
    waveforms = CLIPS.waveforms.copy()
    waveforms[0, 7] = np.nan  # no site's clips are read so; they bring a loss that is none, as a high rate does
    with pytest.raises(TrainingError) as caught:
        train_round(model, build_optimizer(model, training), Tones(waveforms, CLIPS.labels), training, 1)
    assert re.search(r"in round 2, at step (7|8|9|10|11|12) of 18: the loss is nan", str(caught.value))
    for text in (
        "at a rate of 0.25",
        "training.learning_rate",
        "training.warmup",
        "training.max_grad_norm",
        "autocast",
    ):
        assert text in str(caught.value)


def test_a_rate_at_which_nothing_is_learned_any_more_is_found_out_in_the_round(recipe: ModelRecipe) -> None:
    """Not by a model of NaN, which is what the director would get."""
    training = plain(rounds=60, learning_rate=0.99, optimizer="sgd", max_grad_norm=None, schedule="constant")
    model = build_model(recipe, 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)

    def all_rounds() -> None:
        for done in range(60):
            train_round(model, optimizer, CLIPS, training, done)
            assert all(np.isfinite(tensor).all() for tensor in trained_weights(model).values())

    with pytest.raises(TrainingError, match=r"in round \d+, at step \d+ of 360: the loss is .* at a rate of 0\.\d+"):
        all_rounds()


def test_tones_are_learned(recipe: ModelRecipe) -> None:
    training = plain(rounds=1, local_epochs=25, learning_rate=1e-2)
    model = build_model(recipe, 0, SUPERB_KS)
    before = evaluate(model, Tones.make(48, seed=1))
    train_round(model, build_optimizer(model, training), CLIPS, training, 0)
    after = evaluate(model, Tones.make(48, seed=1))
    assert after.loss < 0.5 * before.loss
    assert before.accuracy < 0.3
    assert after.accuracy > 0.8


@pytest.mark.parametrize("changes", [{}, {"label_smoothing": 0.2}, {"class_weights": True}, {"accumulation": 2}])
def test_what_a_round_reports(recipe: ModelRecipe, changes: dict) -> None:
    """At a rate of nearly nothing and without dropout, the mean over the round is the model's own loss.

    It is the loss of an evaluation, whatever else is made small: with smoothing, that could never be nothing.
    """
    training = plain(learning_rate=1e-12, batch_size=7, **changes)  # the last batch is smaller, and counts by its clips
    model = build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS)
    measured = train_round(model, build_optimizer(model, training), CLIPS, training, 0)
    scores = evaluate(model, CLIPS)
    objective = torch.nn.functional.cross_entropy(
        model(torch.from_numpy(CLIPS.waveforms)),
        torch.from_numpy(CLIPS.labels),
        weight=label_weights(CLIPS.labels, training, 12),
        label_smoothing=training.label_smoothing,
    ).item()
    expected = {"loss": scores.loss, "objective": objective, "accuracy": scores.accuracy}
    assert measured.pop("samples") == len(CLIPS)
    assert measured.pop("steps") == steps_in_round(training, len(CLIPS))
    assert measured == pytest.approx(expected, rel=1e-4)


def test_recorded_losses(recipe: ModelRecipe) -> None:
    """Recorded with torch 2.13 on x86-64; a change of anything that decides training shows here."""
    training = plain(rounds=3)
    model = build_model(replace(recipe, dropout=0.0), 0, SUPERB_KS)
    optimizer = build_optimizer(model, training)
    losses = [train_round(model, optimizer, CLIPS, training, done)["loss"] for done in range(3)]
    assert losses == pytest.approx([2.6287, 1.8529, 1.5203], abs=1e-3)


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


def test_where_bfloat16_is_used() -> None:
    """On a CPU only on request, and only where the hardware has it."""
    found = torch.cpu.get_capabilities()
    has = bool(found.get("avx512_bf16") or found.get("amx_bf16"))
    assert [uses_bfloat16(name, CPU) for name in ("off", "auto", "bfloat16")] == [False, False, has]


def test_the_arithmetic_is_put_back() -> None:
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    with arithmetic(plain(), CPU):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.allow_tf32
    with pytest.raises(KeyError), arithmetic(plain(), CPU):
        raise KeyError
    assert (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32) == before
    with arithmetic(plain(deterministic=False), CPU):
        assert not torch.are_deterministic_algorithms_enabled()


REPEATED = {"rounds": 3, "local_epochs": 0.7, "accumulation": 2, "label_smoothing": 0.1, "sampling": "balanced"}

KILLED = """
import os, signal, sys
import torch
from small_network import Tones
from kws.config import ModelRecipe, Training
from kws.model import build_model, load_weights, trained_weights
from kws.training import build_optimizer, train_round
from shard_descriptors.corpus import SUPERB_KS

folder, state, changes, killed = sys.argv[1], sys.argv[2], eval(sys.argv[3]), sys.argv[4] == "killed"
model, training = build_model(ModelRecipe(folder, trained="all", dropout=0.2), 0, SUPERB_KS), Training(**changes)
optimizer, clips, done = build_optimizer(model, training), Tones.make(48), 0
if os.path.exists(state):
    saved = torch.load(state, weights_only=False)
    load_weights(model, saved["weights"])
    optimizer.load_state_dict(saved["optimizer"])
    done = saved["done"]
for done in range(done, training.rounds):
    train_round(model, optimizer, clips, training, done)
    if killed and done == 1:
        os.kill(os.getpid(), signal.SIGKILL)  # trained, and not yet kept
    torch.save({"weights": trained_weights(model), "optimizer": optimizer.state_dict(), "done": done + 1}, state)
"""


def test_other_processes_repeat_to_the_bit_also_when_one_is_killed(recipe: ModelRecipe, tmp_path: Path) -> None:
    state = tmp_path / "state"

    def run(how: str) -> tuple[int, str]:
        command = [sys.executable, "-c", KILLED, recipe.name, str(state), repr(REPEATED), how]
        paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
        threads = {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": paths}
        done = subprocess.run(command, capture_output=True, text=True, env=os.environ | threads, check=False)
        return done.returncode, done.stderr

    assert run("killed")[0] == -signal.SIGKILL
    assert torch.load(state, weights_only=False)["done"] == 1
    status, error = run("to its end")
    assert status == 0, error
    assert equal(
        torch.load(state, weights_only=False)["weights"], trained(replace(recipe, dropout=0.2), Training(**REPEATED))
    )


def test_there_has_to_be_something_to_evaluate(recipe: ModelRecipe) -> None:
    with pytest.raises(ValueError, match="no clips to evaluate"):
        evaluate(build_model(recipe, 0, SUPERB_KS), Tones.make(0))
