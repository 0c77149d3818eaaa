"""One site's work in ordinary PyTorch: one round, and an evaluation. The federation and the simulation call this."""

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn.functional import cross_entropy
from transformers import set_seed

from kws.batches import Batch, Heard, digest, in_order, prefetched, steps, steps_in_epoch
from kws.caching import heard_by
from kws.clips import Clips, Keys, Numbers
from kws.config import Training
from kws.metrics import Evaluation
from kws.model import Classifier
from kws.models.heads import encoder_of

EVALUATION_BATCH = 64
WATCHED_STEPS = 100
"""How often a GPU is asked whether all is well; each time it has to finish its work first."""


class TrainingError(ArithmeticError):
    """A training that has broken down; says where, and what to change."""


def build_optimizer(model: Classifier, training: Training) -> torch.optim.Optimizer:
    """The optimizer of what is trained: no weight decay on biases and norms, and the head's own rate, if it has one."""
    encoder = {id(parameter) for parameter in encoder_of(model.network).parameters()}
    rates = {False: training.learning_rate, True: training.head_learning_rate or training.learning_rate}
    groups: dict[tuple[float, float], list[torch.nn.Parameter]] = {}
    for parameter in model.network.parameters():
        if parameter.requires_grad:
            decay = training.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((rates[id(parameter) not in encoder], decay), []).append(parameter)
    given = [{"params": own, "lr": rate, "initial_lr": rate, "weight_decay": decay}
             for (rate, decay), own in groups.items()]  # fmt: skip
    if training.optimizer == "sgd":
        return torch.optim.SGD(given, momentum=training.momentum, fused=True)
    kind = torch.optim.AdamW if training.optimizer == "adamw" else torch.optim.Adam
    return kind(given, betas=(0.9, training.beta2), fused=True)


def train_round(
    model: Classifier,
    optimizer: torch.optim.Optimizer,
    clips: Clips | Heard,
    training: Training,
    rounds_done: int,
    correct: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """One site's steps of one round, in place.

    `correct` is called before each step of the optimizer, when gradients were shortened, and may change them.

    All randomness (clips, order, augmentation, dropout) comes from the seed, the site's clips and the round, so that a
    repeated round gives the same weights.

    Returns:
        Means over the round, measured while training: `loss`, the cross-entropy (nats) that validation measures too;
        `objective`, what was made small: the same with label smoothing and class weights; and `accuracy`. How much
        it was: `steps`, and `samples`, the clips that were heard.

    Raises:
        TrainingError: the loss or a gradient is not a finite number.
    """
    heard = clips if isinstance(clips, Heard) else heard_by(model, clips, training, changed=True)
    device = next(model.parameters()).device
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = label_weights(heard.labels, training, len(model.labels)).to(device)
    in_round = steps_in_round(training, len(heard.labels))
    first, last, total = rounds_done * in_round, (rounds_done + 1) * in_round, training.rounds * in_round
    sums = torch.zeros(5, dtype=torch.float64, device=device)
    watched: list[torch.Tensor] = []
    set_seed(round_seed(training.seed, heard.clips.keys, rounds_done))
    model.train()
    with arithmetic(training, device) as autocast:
        for step, batches in enumerate(on_device(steps(heard, training, first, last), device), first):
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * share_of_rate(training, step, total)
            optimizer.zero_grad()
            measured = add_gradients(model, heard, batches, weights, training.label_smoothing, autocast)
            norm = torch.nn.utils.clip_grad_norm_(trained, training.max_grad_norm or math.inf)
            sums += measured
            watched.append(torch.stack([measured[1] / measured[2], norm]))
            if device.type == "cpu" or len(watched) == WATCHED_STEPS or step + 1 == last:
                refuse_broken(watched, step, total, training)
                watched.clear()
            correct()
            optimizer.step()
    if not math.isfinite(torch.nn.utils.get_total_norm(trained).item()):
        refuse_broken([torch.full((2,), math.nan)], last - 1, total, training)
    loss, objective, weight, right, count = sums.tolist()
    means = {"loss": loss / count, "objective": objective / weight, "accuracy": right / count}
    return means | {"steps": float(in_round), "samples": count}


def add_gradients(
    model: Classifier,
    heard: Heard,
    batches: Sequence[Batch],
    weights: torch.Tensor,
    label_smoothing: float,
    autocast: torch.autocast,
) -> torch.Tensor:
    """Adds the gradients of one step's objective, averaged over all clips of its batches, smaller ones included.

    Returns:
        Sums over these clips, float64 (5,): cross-entropy, objective, weight, right answers, clips.
    """
    weight = sum(weights[batch.labels].sum() for batch in batches)
    sums = []
    for batch in batches:
        with autocast:
            logits = heard.logits(model, batch.inputs)
        logits = logits.float()
        objective = cross_entropy(logits, batch.labels, weights, reduction="sum", label_smoothing=label_smoothing)
        (objective / weight).backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            loss = cross_entropy(logits, batch.labels, reduction="sum")
            right = logits.argmax(-1) == batch.labels
            sums.append(torch.stack([loss, objective, weights[batch.labels].sum(), right.sum(), (right >= 0).sum()]))
    return torch.stack(sums).double().sum(0)


@torch.inference_mode()
def evaluate(model: Classifier, clips: Clips | Heard, training: Training | None = None) -> Evaluation:
    """The model's answers to all clips, with dropout off and with the arithmetic of its training.

    Raises:
        ValueError: there are no clips.
    """
    training = training or Training()
    heard = clips if isinstance(clips, Heard) else heard_by(model, clips, training)
    if not len(heard.labels):
        raise ValueError("there are no clips to evaluate the model on; give each site, and the test, one at least")
    device = next(model.parameters()).device
    model.eval()
    answers = []
    with arithmetic(training, device) as autocast:
        for (batch,) in on_device(([batch] for batch in in_order(heard, EVALUATION_BATCH)), device):
            with autocast:
                answers.append(heard.logits(model, batch.inputs))
    return Evaluation(heard.labels, torch.cat(answers).float().cpu().numpy())


@contextmanager
def arithmetic(training: Training, device: torch.device) -> Iterator[torch.autocast]:
    """How a site computes, for as long as the context lasts; what it gives is to be entered around a forward pass.

    bfloat16 has float32's range, so nothing is scaled; weights, optimizer, softmax and loss stay float32. Where it is
    not used, float32 means float32: without TensorFloat-32, in convolutions neither, which is PyTorch's default.
    """
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.allow_tf32
    if training.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it before it is first used
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Filling memory that is about to be written costs time; nothing here reads it before.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield torch.autocast(device.type, torch.bfloat16, enabled=uses_bfloat16(training.autocast, device))
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def uses_bfloat16(autocast: str, device: torch.device) -> bool:
    """Whether to compute in bfloat16 there: where the hardware does, and emulation would only be slower."""
    if autocast == "off":
        return False
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    found = torch.cpu.get_capabilities()
    return autocast == "bfloat16" and bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def on_device(steps: Iterator[list[Batch]], device: torch.device) -> Iterator[list[Batch]]:
    """The batches of each step, on the device; for a GPU the next ones are made ready while it works."""
    if device.type != "cuda":
        yield from steps
        return
    for batches in prefetched([batch.pinned() for batch in each] for each in steps):
        yield [batch.to(device) for batch in batches]


def steps_in_round(training: Training, count: int) -> int:
    """Steps of one round at a site with so many clips; never none."""
    share = training.local_epochs * steps_in_epoch(training, count)
    return training.local_steps or math.ceil(share - 1e-9)  # 0.1 * 30 is above 3


def share_of_rate(training: Training, step: int, total: int) -> float:
    """The rate at one of `total` steps, as a share of the highest.

    As `get_linear_schedule_with_warmup` and its like in Transformers, without their first step, whose rate is nothing.
    """
    warm = math.ceil(training.warmup * total)
    if step < warm:
        return (step + 1) / (warm + 1)
    done = (step - warm) / (total - warm)
    if training.schedule == "constant":
        return 1.0
    return 1 - done if training.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))


def label_weights(labels: Numbers, training: Training, count: int) -> torch.Tensor:
    """The weight of each of `count` labels in the objective: float32 (count,), 1 without class weights.

    Then n / (labels here * clips of this label), scikit-learn's "balanced": 1 in the mean over the site's clips. Labels
    that the site does not have weigh nothing.
    """
    weights = torch.ones(count)
    if training.class_weights:
        here = np.unique(labels)
        weights.zero_()[here] = torch.from_numpy(compute_class_weight("balanced", classes=here, y=labels)).float()
    return weights


def refuse_broken(watched: Sequence[torch.Tensor], step: int, total: int, training: Training) -> None:
    """Look at the objective and the gradient's length of some steps, of which this one is the last.

    Raises:
        TrainingError: one is not a finite number.
    """
    for place, (objective, norm) in enumerate(torch.stack(list(watched)).tolist(), step + 1 - len(watched)):
        if not math.isfinite(objective + norm):
            rate = training.learning_rate * share_of_rate(training, place, total)
            raise TrainingError(
                f"training has broken down in round {place * training.rounds // total + 1}, at step {place + 1} of "
                f"{total}: the loss is {objective}, the length of the gradient {norm}, at a rate of {rate:.2g}. Lower "
                f"training.learning_rate ({training.learning_rate}), lengthen training.warmup ({training.warmup}) or "
                f"lower training.max_grad_norm ({training.max_grad_norm}); where bfloat16 is used, try "
                f"training.autocast=off"
            )


def round_seed(seed: int, keys: Keys, rounds_done: int) -> int:
    """A seed of its own for every site and round, from the keys of the site's clips: below 2**32."""
    return int.from_bytes(hashlib.sha256(f"{seed} {digest(keys)} {rounds_done}".encode()).digest()[:4])
