"""What a model costs at work, in a process of its own: nothing that another model has left there is counted.

Imports no PyTorch, which would be the larger part of an exported model's memory.
"""

import resource
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

BATCHES = (1, 16)
WARM_UP, LEAST = 3, 10
"""Calls that are not counted, and the fewest that are."""
Logits = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Job:
    """A model and what it is to do.

    model: an exported file, or else what `load` takes, for PyTorch. sound: file of waveforms float32 (n, window), a
    `.npy`. samples: of a second. seconds: to spend on each size of batch. trust_code: as in `load`.
    """

    model: str
    sound: Path
    samples: int
    threads: int
    seconds: float
    trust_code: bool = False


@dataclass(frozen=True)
class Cost:
    """What was seen.

    latency: by batch size, the median and the 95th percentile of the seconds that one call takes. peak: the most memory
    that the process has had at a time, bytes. logits: float32 (n, num_labels), of the sound.
    """

    latency: dict[int, tuple[float, float]]
    peak: int
    logits: npt.NDArray[np.float32]


def in_own_process(job: Job) -> Cost:
    """Do a job in a new process.

    Raises:
        RuntimeError: the process died, of too little memory say. Else whatever was raised in it.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, job).result()
        except BrokenProcessPool as error:
            raise RuntimeError("its process died; the machine may have too little memory for it") from error


def measure(job: Job) -> Cost:
    """Do a job in this process."""
    logits = _in_onnx(job) if job.model.endswith(".onnx") else _in_torch(job)
    sound = np.load(job.sound, mmap_mode="r")
    second = np.resize(sound[: max(BATCHES)], (max(BATCHES), job.samples))
    latency = {batch: _latency(logits, np.ascontiguousarray(second[:batch]), job.seconds) for batch in BATCHES}
    peak = peak_memory()  # before the corpus is read
    batches = range(0, len(sound), max(BATCHES))
    answers = [logits(np.array(sound[first : first + max(BATCHES)])) for first in batches]
    return Cost(latency, peak, np.concatenate(answers))


def peak_memory() -> int:
    """The most that this process has held in memory so far, bytes.

    The kernel's own figure of this program; `getrusage` counts what was there before it was started, too.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _latency(logits: Logits, batch: npt.NDArray[np.float32], seconds: float) -> tuple[float, float]:
    for _ in range(WARM_UP):
        logits(batch)
    taken: list[float] = []
    while len(taken) < LEAST or sum(taken) < seconds:
        begin = time.perf_counter()
        logits(batch)
        taken.append(time.perf_counter() - begin)
    return float(np.median(taken)), float(np.percentile(taken, 95))


def _in_onnx(job: Job) -> Logits:
    import onnxruntime

    options: Any = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = job.threads
    session: Any = onnxruntime.InferenceSession(job.model, options, providers=["CPUExecutionProvider"])
    return lambda waveforms: session.run(None, {session.get_inputs()[0].name: waveforms})[0]


def _in_torch(job: Job) -> Logits:
    import torch

    from lab.product.spotter import load

    torch.set_num_threads(job.threads)
    return load(job.model, job.trust_code).logits
