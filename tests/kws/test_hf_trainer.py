"""The yardstick: one site trains as the Trainer of Transformers does, step by step."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_network import Tones, classifier, plain
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments, get_linear_schedule_with_warmup

from kws.batches import Heard, epoch, steps_in_epoch
from kws.config import Training
from kws.model import Classifier
from kws.training import build_optimizer, train_round

CLIPS = Tones.make(44)
EPOCHS = 2


def losses_of_ours(model: Classifier, training: Training) -> list[float]:
    optimizer = build_optimizer(model, training)
    return [train_round(model, optimizer, CLIPS, training, done)["objective"] for done in range(training.rounds)]


class InOurOrder(Trainer):
    """The library's training loop, with the clips in the order in which our steps have them."""

    def __init__(self, training: Training, **settings: Any) -> None:
        super().__init__(**settings)
        self.training = training
        # As the library asks for models whose loss is a mean: this one takes the number of clips of a step and does not
        # use it, so that the losses of accumulated batches would be added up.
        self.model_accepts_loss_kwargs = False

    def get_train_dataloader(self) -> DataLoader:
        orders = [epoch(Heard(CLIPS), self.training, number)[0] for number in range(EPOCHS)]
        made = iter(orders)

        class Sampler(torch.utils.data.Sampler):
            def __len__(self) -> int:
                return len(CLIPS)

            def __iter__(self):
                return iter(next(made).tolist())

        return DataLoader(self.train_dataset, batch_size=self.training.batch_size, sampler=Sampler())

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """The library's; with warm-up, from its second step on, since the rate of the first is nothing."""
        if self.training.warmup == 0:
            return super().create_scheduler(num_training_steps, optimizer)
        warm = int(np.ceil(self.training.warmup * num_training_steps))
        self.lr_scheduler = get_linear_schedule_with_warmup(self.optimizer, warm + 1, num_training_steps + 1)
        self.lr_scheduler.step()
        return self.lr_scheduler


def losses_of_theirs(model: Classifier, training: Training, folder: Path) -> list[float]:
    inputs = model.inputs(torch.from_numpy(CLIPS.waveforms))["input_values"]
    examples = [
        {"input_values": values, "labels": int(label)} for values, label in zip(inputs, CLIPS.labels, strict=True)
    ]
    arguments = TrainingArguments(
        str(folder),
        num_train_epochs=EPOCHS,
        per_device_train_batch_size=training.batch_size,
        gradient_accumulation_steps=training.accumulation,
        learning_rate=training.learning_rate,
        weight_decay=training.weight_decay,
        adam_beta2=training.beta2,
        max_grad_norm=training.max_grad_norm,
        label_smoothing_factor=training.label_smoothing,
        lr_scheduler_type="linear",
        warmup_steps=0,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = InOurOrder(training, model=model.network, args=arguments, train_dataset=examples)
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"accumulation": 2, "max_grad_norm": 0.5},  # 11 batches: the last step of an epoch has one
        {"warmup": 0.3, "weight_decay": 0.1, "label_smoothing": 0.1},
    ],
)
def test_the_losses_are_those_of_the_trainer(changes: dict, tmp_path: Path) -> None:
    common = {
        "batch_size": 4,
        "schedule": "linear",
        "warmup": 0.0,
        "beta2": 0.999,
        "learning_rate": 3e-3,
        "local_steps": 1,
    }
    training = plain(**(common | changes))
    training = plain(**(common | changes), rounds=EPOCHS * steps_in_epoch(training, len(CLIPS)))
    ours, theirs = (classifier().train() for _ in range(2))
    for module in (*ours.modules(), *theirs.modules()):
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0  # the masks are drawn in another order
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    expected = losses_of_theirs(theirs, training, tmp_path)
    measured = losses_of_ours(ours, training)
    assert len(measured) == len(expected) == training.rounds
    assert measured[-1] < 0.8 * measured[0]
    assert measured == pytest.approx(expected, rel=2e-4, abs=1e-4)  # the Trainer rounds to four digits
    for (name, one), other in zip(ours.network.named_parameters(), theirs.network.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4, msg=name)
