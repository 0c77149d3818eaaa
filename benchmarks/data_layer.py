"""How fast and how heavy the data layer is at the size of Speech Commands, from the listing to an epoch of training.

Every step is a process of its own with one thread, `python benchmarks/data_layer.py STEP FOLDER CACHE`, which prints
what it has measured as JSON. Times are from warm disk; what is compared is first shown to be equal.
"""

import json
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from steps import Figures, StepError, in_process, machine, memory_of

FULL_BYTES = 8 * 10**9
"""What the corpus and the packed clips need on disk, with room to spare."""

SHARDS = 10
DECODED = 4000
REPEATS = 5
BATCH = 16
EPOCHS = 4
FEW = 2000


def full_corpus() -> Path:
    """Synthetic speech with as many recordings as Speech Commands v0.01 has; made once, in a minute.

    Raises:
        StepError: too little room for it and for its packed clips.
    """
    from shard_descriptors.clips.cache import cache_folder
    from shard_descriptors.sources.synthetic import SyntheticSettings, default_corpus

    cache_folder().mkdir(parents=True, exist_ok=True)
    if (free := shutil.disk_usage(cache_folder()).free) < FULL_BYTES:
        raise StepError(
            f"{cache_folder()} has {free / 1e9:.1f} GB free; the corpus and its packed clips need "
            f"{FULL_BYTES / 1e9:.0f} GB. Make room, or set KWS_CACHE to another folder"
        )
    settings = SyntheticSettings(
        train_speakers=1503,
        validation_speakers=189,
        test_speakers=189,
        train_clips=51_088,
        validation_clips=6_798,
        test_clips_per_label=621,
        unknown_share=0.64,
    )
    return default_corpus(settings=settings)


def measure_data(corpus: Path, cache: Path) -> Figures:
    """Figures of every step, by its name. `cache` is emptied before and after.

    Raises:
        StepError: a step failed; with the end of its output.
    """
    shutil.rmtree(cache, ignore_errors=True)
    try:
        figures: Figures = {"machine": machine()}
        figures["listing"] = [in_process(__file__, "listing", corpus, cache) for _ in range(REPEATS)]
        for step in ("decoding", "packing", "reading", "epochs"):
            figures[step] = in_process(__file__, step, corpus, cache)
        figures["memory"] = {
            count: in_process(__file__, "memory", corpus, cache, count) for count in ("0", str(FEW), "all")
        }
        return figures
    finally:
        shutil.rmtree(cache, ignore_errors=True)


def listing(corpus: str, _: str) -> Figures:
    """List the corpus, split it and share it out by speakers; nothing is decoded."""
    from shard_descriptors.partition.contract import assign
    from shard_descriptors.partition.schemes import scheme_of

    rows = _rows(corpus)
    assigned = assign(rows, scheme_of("speakers"), SHARDS, 0)
    if len(assigned) != len(rows):
        raise StepError("not every utterance has a shard")
    return {"utterances": len(rows), "peak": memory_of("VmHWM")}


def decoding(corpus: str, _: str) -> Figures:
    """Clips a second, in turn by the library alone and by this project."""
    import numpy as np
    import soundfile

    from shard_descriptors.clips.audio import read_clip

    rows = [row for row in _rows(corpus, "train") if row.speaker is not None]
    chosen = np.random.default_rng(0).permutation(len(rows))[:DECODED]
    paths = [rows[number].path for number in chosen]
    for path in paths:  # which also warms the disk
        ours, bare = read_clip(path), soundfile.read(path, dtype="float32", always_2d=True)[0].mean(axis=1)
        if not np.array_equal(ours[: len(bare)], bare[: len(ours)]) or ours[len(bare) :].any():
            raise StepError(f"{path} is decoded to something else than what the library reads")
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    for _ in range(REPEATS):
        rates["bare"].append(_rate(paths, lambda path: soundfile.read(path, dtype="float32")))
        rates["ours"].append(_rate(paths, read_clip))
    return rates


def packing(corpus: str, cache: str) -> Figures:
    """Decode all train clips into one file, and open it again."""
    import numpy as np

    from shard_descriptors.clips.clip_set import ClipSet

    rows = _rows(corpus, "train")
    clips = ClipSet(rows, cache=Path(cache))
    pack = _seconds(clips.prepare)
    again = [_seconds(ClipSet(rows, cache=Path(cache)).prepare) for _ in range(REPEATS)]
    some = np.random.default_rng(0).permutation(len(rows))[:FEW]
    if not np.array_equal(clips.read(some), _decoding(rows).read(some)):
        raise StepError("clips from the packed file differ from those decoded anew")
    (file,) = Path(cache).glob("*.int16")
    return {"clips": len(rows), "bytes": file.stat().st_size, "pack": pack, "open": again}


def reading(corpus: str, cache: str) -> Figures:
    """Clips a second in batches of 16 in random order, from the packed file."""
    import numpy as np

    from shard_descriptors.clips.clip_set import ClipSet

    clips = ClipSet(_rows(corpus, "train"), cache=Path(cache))
    clips.prepare()
    generator = np.random.default_rng(0)
    rates = []
    for _ in range(REPEATS):
        order = generator.permutation(len(clips))
        batches = [order[first : first + BATCH] for first in range(0, len(order), BATCH)]
        rates.append(BATCH * _rate(batches, clips.read))
    return {"rates": rates}


def epochs(corpus: str, cache: str) -> Figures:
    """Epochs of the tiny model on one shard: clips packed (the first packs them), decoded each time, and in memory.

    Of each epoch, the seconds; of the packed ones, also those spent in reading; and the seconds of shuffling, reading
    and changing an epoch's clips without a model. All three must train to the same loss.
    """
    import torch

    from kws.batches import Heard, steps, steps_in_epoch
    from kws.config import ModelRecipe, Training
    from kws.model import build_model
    from kws.training import build_optimizer, train_round
    from shard_descriptors.clips.clip_set import ClipSet
    from shard_descriptors.corpus import SUPERB_KS
    from shard_descriptors.partition.contract import assign, shard_of
    from shard_descriptors.partition.schemes import scheme_of

    class Timed(ClipSet):
        """Counts the seconds of reading; what is asked for first, the keys, also packs."""

        seconds = 0.0

        @cached_property
        def keys(self) -> Any:
            begun = time.perf_counter()
            keys = ClipSet.keys.func(self)  # type: ignore[attr-defined]
            self.seconds += time.perf_counter() - begun
            return keys

        def read(self, *arguments: Any) -> Any:
            begun = time.perf_counter()
            clips = super().read(*arguments)
            self.seconds += time.perf_counter() - begun
            return clips

    class InMemory(ClipSet):
        """All waveforms in memory."""

        def read(self, numbers: Any, *_: Any) -> Any:
            return self.waveforms[numbers]

    torch.set_num_threads(1)
    everything = _rows(corpus)
    site = shard_of(everything, assign(everything, scheme_of("speakers"), SHARDS, 0), 1)
    rows = [row for row in site if row.split == "train"]
    in_memory = InMemory(rows, cache=Path(cache))
    in_memory.waveforms = _decoding(rows).read(range(len(rows)))  # type: ignore[attr-defined]
    packed, decoded = Timed(rows, cache=Path(cache)), _decoding(rows)
    training = Training(rounds=EPOCHS, batch_size=BATCH)
    kinds: dict[str, ClipSet] = {"packed": packed, "memory": in_memory, "decoded": decoded}
    models = {kind: build_model(ModelRecipe("tiny"), 0, SUPERB_KS) for kind in kinds}
    optimizers = {kind: build_optimizer(model, training) for kind, model in models.items()}
    seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
    losses: dict[str, list[float]] = {kind: [] for kind in kinds}
    read = []
    for done in range(EPOCHS):
        for kind, clips in kinds.items():
            packed.seconds = 0.0
            begun = time.perf_counter()
            metrics = train_round(models[kind], optimizers[kind], clips, training, done)
            seconds[kind].append(time.perf_counter() - begun)
            losses[kind].append(metrics["loss"])
            if kind == "packed":
                read.append(packed.seconds)
    if not losses["packed"] == losses["memory"] == losses["decoded"]:
        raise StepError(f"the same clips have trained to other losses: {losses}")
    batches = steps(Heard(packed, training.augmentation), training, 0, steps_in_epoch(training, len(packed)))
    return {"clips": len(rows), "epochs": seconds, "read": read, "prepare": _seconds(lambda: deque(batches, maxlen=0))}


def memory(corpus: str, cache: str, count: str) -> Figures:
    """Anonymous memory while an epoch of so many clips is read in batches; the whole corpus is listed in any case."""
    import numpy as np

    from shard_descriptors.clips.clip_set import ClipSet

    rows = _rows(corpus)
    train = [row for row in rows if row.split == "train"]
    train = train if count == "all" else train[: int(count)]
    clips = ClipSet(train, cache=Path(cache))
    most = memory_of("RssAnon")
    order = np.random.default_rng(0).permutation(len(clips))
    for first in range(0, len(order), BATCH):
        clips.read(order[first : first + BATCH])
        if first % (50 * BATCH) == 0:
            most = max(most, memory_of("RssAnon"))
    return {"clips": len(clips), "anonymous": most}


def _rows(corpus: str, split: str | None = None) -> Any:
    from shard_descriptors.sources.speech_commands import load

    return [row for row in load(corpus).utterances if split in (None, row.split)]


def _decoding(rows: Sequence[Any]) -> Any:
    """Clips that are decoded each time: their cache cannot be, since it lies in a file."""
    from shard_descriptors.clips.clip_set import ClipSet

    return ClipSet(rows, cache=Path(__file__) / "none")


def _rate(things: Sequence[Any], do: Callable[[Any], object]) -> float:
    begun = time.perf_counter()
    for thing in things:
        do(thing)
    return len(things) / (time.perf_counter() - begun)


def _seconds(do: Callable[[], object]) -> float:
    begun = time.perf_counter()
    do()
    return time.perf_counter() - begun


STEPS = (listing, decoding, packing, reading, epochs, memory)

if __name__ == "__main__":
    step, *arguments = sys.argv[1:]
    print(json.dumps({each.__name__: each for each in STEPS}[step](*arguments)))
