"""How fast and how heavy one site's training is, beside a bare PyTorch loop and the Trainer of Transformers.

All three train the same network from the same weights on the same clips in the same order, and must come to the same
loss first. Times are of one process, in turn; memory is of a process for each. A step is a process of its own, `python
benchmarks/training_loops.py STEP SIZE CORPUS COUNT [LOOP]`, which prints what it has measured as JSON.

"base" is the published configuration of wav2vec2-base with random weights, all of it trained, on clips of one second;
"tiny" is this project's small network, on recordings where a corpus is given.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

from steps import Figures, StepError, in_process, machine, memory_of

LOOPS = ("bare", "ours", "trainer")
BATCH = {"base": 4, "tiny": 16}
REPEATS = 5
TOLERANCE = 2e-3
"""Of the mean loss: the loops add up in other orders, and the Trainer tells its loss in half the digits."""


def measure_training(size: str, corpus: str, steps: int, threads: int) -> Figures:
    """Losses, seconds of so many steps, and peak memory of every loop.

    Raises:
        StepError: a loop failed, or came to another loss.
    """
    figures: Figures = {"machine": machine(threads), "size": size, "batch": BATCH[size], "steps": steps}
    figures["losses"] = in_process(__file__, "losses", size, corpus, steps, threads=threads)
    figures["times"] = in_process(__file__, "times", size, corpus, steps, threads=threads)
    figures["memory"] = {
        loop: in_process(__file__, "memory", size, corpus, steps, loop, threads=threads)["peak"] for loop in LOOPS
    }
    return figures


def losses(size: str, corpus: str, steps: str) -> Figures:
    """The mean loss of the first steps by loop, without dropout, whose masks each would draw in another order."""
    found = {loop: next(_trained(loop, size, corpus, int(steps), dropout=0.0))[1] for loop in LOOPS}
    for loop, loss in found.items():
        if abs(loss - found["bare"]) > TOLERANCE * found["bare"]:
            raise StepError(f"{loop} came to a loss of {loss}, the bare loop to {found['bare']}")
    return found


def times(size: str, corpus: str, steps: str) -> Figures:
    """Seconds of so many steps, `REPEATS` times in turn; of ours also with every clip changed at random."""
    loops = {loop: _trained(loop, size, corpus, int(steps)) for loop in LOOPS}
    loops["augmented"] = _trained("ours", size, corpus, int(steps), augmented=True)
    for loop in loops.values():
        next(loop)  # the first steps also make the optimizer's state
    found: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(REPEATS):
        for name, loop in loops.items():
            found[name].append(next(loop)[0])
    return found


def memory(size: str, corpus: str, steps: str, loop: str) -> Figures:
    """The peak of a process that trains so many steps."""
    next(_trained(loop, size, corpus, int(steps)))
    return {"peak": memory_of("VmHWM")}


Steps = Iterator[tuple[float, float]]
"""Of each so many steps: their seconds, and their mean loss."""


def _trained(
    loop: str, size: str, corpus: str, steps: int, dropout: float | None = None, augmented: bool = False
) -> Steps:
    from kws.config import Augmentation, Training

    model, clips = _model(size, dropout), _clips(size, corpus, steps)
    training = Training(
        rounds=1000,
        local_steps=steps,
        batch_size=BATCH[size],
        learning_rate=1e-4,
        weight_decay=0.0,
        label_smoothing=0.0,
        schedule="constant",
        warmup=0.0,
        beta2=0.999,
        augmentation=Augmentation() if augmented else Augmentation.none(),
    )
    made: dict[str, Callable[[Any, Any, Any], Steps]] = {"bare": _bare, "ours": _ours, "trainer": _trainer}
    return made[loop](model, clips, training)


def _ours(model: Any, clips: Any, training: Any) -> Steps:
    from kws.training import build_optimizer, train_round

    optimizer = build_optimizer(model, training)
    for done in range(training.rounds):
        begun = time.perf_counter()
        loss = train_round(model, optimizer, clips, training, done)["loss"]
        yield time.perf_counter() - begun, loss


def _bare(model: Any, clips: Any, training: Any) -> Steps:
    """As short as it can be: the clips in memory, no checks, no measures but the loss."""
    import torch

    optimizer = torch.optim.AdamW(model.network.parameters(), lr=training.learning_rate, weight_decay=0.0, fused=True)
    model.train()
    for batches in _batches(clips, training):
        begun = time.perf_counter()
        total = 0.0
        for waveforms, labels in batches:
            loss = torch.nn.functional.cross_entropy(model(waveforms), labels)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
            optimizer.step()
            total += loss.item()
        yield time.perf_counter() - begun, total / len(batches)


def _trainer(model: Any, clips: Any, training: Any) -> Steps:
    """The library's loop, from the first step's beginning to the last one's end; it keeps the weights alone."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):
        """Notes when a training begins its first step, and when it ended the last."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 0:
                self.begun = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.ended = time.perf_counter()

    for batches in _batches(clips, training):
        inputs = [row for waveforms, _ in batches for row in model.inputs(waveforms)["input_values"]]
        labels = torch.cat([each for _, each in batches]).tolist()
        clock = Clock()
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
            arguments = TrainingArguments(
                folder,
                max_steps=len(batches),
                per_device_train_batch_size=training.batch_size,
                learning_rate=training.learning_rate,
                lr_scheduler_type="constant",
                logging_steps=len(batches),
                save_strategy="no",
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                train_sampling_strategy="sequential",
            )
            examples = [{"input_values": row, "labels": label} for row, label in zip(inputs, labels, strict=True)]
            trainer = Trainer(model.network, arguments, train_dataset=examples, callbacks=[clock])
            trainer.train()
        yield clock.ended - clock.begun, trainer.state.log_history[0]["loss"]


def _batches(clips: Any, training: Any) -> Iterator[list[tuple[Any, Any]]]:
    """The batches of each so many steps, in this project's order."""
    from kws.batches import Heard, steps

    for done in range(training.rounds):
        first = done * training.local_steps
        made = steps(Heard(clips), training, first, first + training.local_steps)
        yield [(batch.inputs["waveforms"], batch.labels) for (batch,) in made]


def _model(size: str, dropout: float | None) -> Any:
    import torch
    from transformers import Wav2Vec2Config, Wav2Vec2FeatureExtractor, Wav2Vec2ForSequenceClassification

    from kws.config import ModelRecipe
    from kws.model import Classifier, build_model
    from shard_descriptors.corpus import SUPERB_KS

    if size == "tiny":
        return build_model(ModelRecipe(dropout=0.1 if dropout is None else dropout), 0, SUPERB_KS)
    names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout", "final_dropout")
    dropouts = {} if dropout is None else dict.fromkeys(names, dropout)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        num_labels=12, layerdrop=0.0, apply_spec_augment=False, id2label=dict(enumerate(SUPERB_KS.labels)), **dropouts
    )
    extractor = Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    network = Wav2Vec2ForSequenceClassification(config)
    network.wav2vec2.masked_spec_embed.requires_grad_(False)
    return Classifier(network, extractor)


def _clips(size: str, corpus: str, steps: int) -> Any:
    """The train clips of a corpus, or tones, one second each, as many as the steps take."""
    import numpy as np

    from shard_descriptors.clips.clip_set import ClipSet
    from shard_descriptors.corpus import SUPERB_KS
    from shard_descriptors.sources.speech_commands import load

    count = BATCH[size] * steps
    if corpus:
        return ClipSet([row for row in load(corpus).utterances if row.split == "train"][: 16 * count])

    class Tones:
        """Of another pitch for each label."""

        format = SUPERB_KS
        labels = np.arange(count) % len(SUPERB_KS.labels)
        keys = np.arange(count, dtype=np.uint64)
        waveforms = 0.1 * np.sin(0.05 * 1.3 ** labels[:, None] * np.arange(SUPERB_KS.num_samples)).astype(np.float32)

        def __len__(self) -> int:
            return count

        def read(self, numbers: Any, places: Any = None) -> Any:
            return self.waveforms[np.asarray(numbers)]

    return Tones()


STEPS = (losses, times, memory)

if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    print(json.dumps({each.__name__: each for each in STEPS}[step](*arguments)))
