"""One site's work in ordinary PyTorch: local epochs and an evaluation. The federation and the simulation call this."""

import hashlib
import math

import numpy as np
import torch
from transformers import set_seed

from kws.batches import Clips, in_order, prefetched, shuffled
from kws.config import Training
from kws.metrics import Evaluation
from kws.model import Classifier
from shard_descriptors.labels import SILENCE

EVALUATION_BATCH = 64


def build_optimizer(model: Classifier, training: Training) -> torch.optim.AdamW:
    """AdamW over what is trained; no weight decay on biases and norms."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=training.learning_rate, betas=(0.9, 0.98))


def train_round(
    model: Classifier, optimizer: torch.optim.Optimizer, clips: Clips, training: Training, rounds_done: int, shard: int
) -> dict[str, float]:
    """One site's local epochs of one round, in place.

    All randomness (clips, order, augmentation, dropout) comes from the seed, the shard's number and the round, so that
    a repeated round gives the same weights.

    Returns:
        Mean cross-entropy (nats) and accuracy of the round, measured while training, on the clips as they were
        changed. Without label smoothing, so that it compares with the validation's.
    """
    seed = round_seed(training.seed, shard, rounds_done)
    set_seed(seed % 2**32)
    generator = np.random.default_rng(seed)
    device = next(model.parameters()).device
    noise = np.flatnonzero(clips.labels == clips.format.label_ids.get(SILENCE, -1))
    steps = training.local_epochs * math.ceil(len(clips) / training.batch_size)
    step = rounds_done * steps
    loss_sum, right, seen = 0.0, 0, 0
    model.train()
    for _ in range(training.local_epochs):
        batches = shuffled(clips, training.batch_size, training.augmentation, noise, generator, training.sampling)
        for batch in prefetched(batches) if device.type == "cuda" else batches:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(training, step, steps * training.rounds)
            labels = batch.labels.to(device)
            logits = model(batch.waveforms.to(device))
            loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=training.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            seen += len(labels)
            plain = torch.nn.functional.cross_entropy(logits.detach(), labels) if training.label_smoothing else loss
            loss_sum += plain.item() * len(labels)
            right += int((logits.argmax(-1) == labels).sum())
    return {"loss": loss_sum / seen, "accuracy": right / seen}


@torch.inference_mode()
def evaluate(model: Classifier, clips: Clips) -> Evaluation:
    """The model's answers to all clips, with dropout off.

    Raises:
        ValueError: there are no clips.
    """
    if not len(clips):
        raise ValueError("there are no clips to evaluate the model on; give each site, and the test, one at least")
    device = next(model.parameters()).device
    model.eval()
    logits = [model(batch.waveforms.to(device)).float().cpu().numpy() for batch in in_order(clips, EVALUATION_BATCH)]
    return Evaluation(clips.labels, np.concatenate(logits))


def learning_rate(training: Training, step: int, total: int) -> float:
    """Rate at one of `total` steps: linear warm-up, then a cosine that ends at zero."""
    warm = training.warmup * total
    if step < warm:
        return training.learning_rate * (step + 1) / (warm + 1)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warm) / (total - warm)))


def round_seed(seed: int, shard: int, rounds_done: int) -> int:
    """A seed of its own for every site and round."""
    return int.from_bytes(hashlib.sha256(f"{seed} {shard} {rounds_done}".encode()).digest()[:8])
