"""Federated averaging without training: each site adds a known number to every parameter, in every round.

The number depends on the site and the round, and the sites have different weights, so the last average is known in
closed form and a system that mixes up sites, rounds or weights, or loses an update, is found out.
"""

import json
import os
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

JOB_FILE = "KWS_BENCH_JOB"
"""The environment variable that names the job's file in every process of a run."""

EVENTS, CHECKPOINT = "events.jsonl", "checkpoint"

TOLERANCE = 1e-4
"""Largest allowed difference from the closed form; weights mixed up make at least 0.05, a lost update more."""

Tensors = Mapping[str, np.ndarray]


class JobError(Exception):
    """A system has computed something else than the job."""


@dataclass(frozen=True)
class Job:
    """What to compute.

    shapes: the model's float32 tensors by name. sites: how many take part, numbered from 1. rounds: rounds of
    averaging, numbered from 1. folder: where events and checkpoints are written.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sites: int
    rounds: int
    folder: str

    @classmethod
    def from_environment(cls) -> "Job":
        """The job of this run."""
        read = json.loads(Path(os.environ[JOB_FILE]).read_text(encoding="utf-8"))
        read["shapes"] = {name: tuple(shape) for name, shape in read["shapes"].items()}
        return cls(**read)

    def write(self, path: Path) -> None:
        """Write the job for other processes to read."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @cached_property
    def parameters(self) -> int:
        """Number of parameters."""
        return sum(int(np.prod(shape)) for shape in self.shapes.values())

    @property
    def bytes(self) -> int:
        """Bytes of one model."""
        return 4 * self.parameters

    def initial(self) -> np.ndarray:
        """All parameters before the first round, flat: the same random numbers everywhere."""
        return np.random.default_rng(0).standard_normal(self.parameters, np.float32)

    def initial_model(self) -> dict[str, np.ndarray]:
        """The tensors before the first round, by name."""
        return self.split(self.initial())

    def split(self, flat: np.ndarray) -> dict[str, np.ndarray]:
        """Views of a flat array of all parameters, by name."""
        ends = np.cumsum([int(np.prod(shape)) for shape in self.shapes.values()])[:-1]
        parts = np.split(flat, ends)
        return {name: part.reshape(shape) for (name, shape), part in zip(self.shapes.items(), parts, strict=True)}

    def weight(self, site: int) -> int:
        """How many examples a site has."""
        return 10 * site

    def step(self, site: int, round_number: int) -> np.float32:
        """What a site adds to every parameter in a round."""
        return np.float32(0.5 * site + 0.125 * round_number)

    def total(self) -> float:
        """What has been added to every parameter of the average after the last round."""
        sites = range(1, self.sites + 1)
        weights = sum(self.weight(site) for site in sites)
        return sum(
            float(self.step(site, round_number)) * self.weight(site) / weights
            for site in sites
            for round_number in range(1, self.rounds + 1)
        )

    def note(self, what: str, site: int, round_number: int) -> None:
        """Note that something happens at a site now, and what the loopback device has carried so far."""
        event = {"what": what, "site": site, "round": round_number, "time": time.monotonic(), "wire": loopback_bytes()}
        with (Path(self.folder) / EVENTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(event) + "\n")  # one write to a file opened to append: sites do not mix

    def events(self, what: str) -> list[dict[str, Any]]:
        """What was noted, in order; times are of the machine's monotonic clock."""
        lines = (Path(self.folder) / EVENTS).read_text(encoding="utf-8").splitlines()
        return [event for event in map(json.loads, lines) if event["what"] == what]

    def checkpoint(self, model: Tensors) -> None:
        """Write the average of a round to disk in the plainest way.

        Raises:
            JobError: these are not the job's tensors.
        """
        found = {name: (array.shape, str(array.dtype)) for name, array in model.items()}
        wanted = {name: (shape, "float32") for name, shape in self.shapes.items()}
        if found != wanted:
            differ = sorted(name for name in found.keys() | wanted if found.get(name) != wanted.get(name))
            raise JobError(f"other tensors than the job's: {', '.join(differ[:5])}, ... ({len(differ)} in all)")
        unfinished = Path(self.folder) / f".{CHECKPOINT}"
        with unfinished.open("wb") as file:
            for name in self.shapes:
                file.write(np.ascontiguousarray(model[name]).data)
        unfinished.replace(Path(self.folder) / CHECKPOINT)

    def difference(self) -> float:
        """The largest difference of the last checkpoint from the closed form.

        Raises:
            JobError: it is larger than TOLERANCE.
        """
        last = np.fromfile(Path(self.folder) / CHECKPOINT, np.float32)
        worst = float(np.abs(last - (self.initial() + np.float32(self.total()))).max())
        if not worst <= TOLERANCE:  # also where it is not a number
            raise JobError(f"the last average is off by {worst:g}; allowed: {TOLERANCE:g}")
        return worst


class SiteModel:
    """The model that a site holds, as a trainer would: tensors of its own, into which it copies what it receives."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.tensors = job.split(np.empty(job.parameters, np.float32))
        self.loaded = False

    def load(self, received: Tensors) -> None:
        """Copy a received model in."""
        self.loaded = True
        for name, own in self.tensors.items():
            np.copyto(own, received[name])

    def train(self, site: int, round_number: int) -> dict[str, np.ndarray]:
        """Do a site's work of one round; the tensors to send."""
        self.job.note("arrived", site, round_number)
        for own in self.tensors.values():
            own += self.job.step(site, round_number)
        return self.tensors


def loopback_bytes() -> int:
    """Bytes that the loopback device of this network namespace has carried."""
    found = re.search(r"lo: *(\d+)", Path("/proc/net/dev").read_text(encoding="ascii"))
    return int(found[1]) if found else 0
