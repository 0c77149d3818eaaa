"""A director and many light sites (`light_sites.py`): what a round costs it, and how long anybody waits for it."""

import json
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
from processes import PYTHON, TOYS, ToyFederation

from federation.notebook.handle import FederationHandle

PER_PROCESS = 250


@dataclass(frozen=True)
class Cost:
    """What some rounds have cost a director.

    rounds: seconds of each round but the first, from one close to the next. cpu: the director's seconds of CPU a round.
    memory: its resident bytes at most. files: what it has open at most, connections included. longest: by kind of call,
    the seconds of the longest that any site has made. weights: of the last model.
    """

    sites: int
    rounds: list[float]
    cpu: float
    memory: int
    files: int
    longest: Mapping[str, float]
    weights: list[float]

    @property
    def milliseconds(self) -> float:
        """The director's CPU for a site and a round."""
        return 1000 * self.cpu / self.sites


class ManySites(ToyFederation):
    """A director, and so many light sites in a few processes."""

    health_check_period = 10

    def __init__(self, folder: Path, count: int) -> None:
        super().__init__(folder, sites=0)
        self.count = count
        self.light: list[subprocess.Popen[bytes]] = []
        for first in range(0, count, PER_PROCESS):
            name, number = f"light{first}", min(PER_PROCESS, count - first)
            command = [PYTHON, TOYS / "light_sites.py", str(self.port), str(first), str(number)]
            with self.log_path(name).open("wb") as log:
                self.running[name] = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True,
                )  # fmt: skip
            self.light.append(self.running[name])
        for name in self.running:
            if name != "director":
                self.wait_for(name, "registered", 120)

    def longest(self) -> dict[str, float]:
        """The longest call of each kind; the sites have left."""
        found: dict[str, float] = {}
        for process in self.light:
            assert process.stdin is not None
            process.stdin.close()
        for name, process in self.running.items():
            if process in self.light:
                assert process.wait(30) == 0, self.log(name)
                told = json.loads(self.log(name).splitlines()[-1])
                for kind, calls in told.items():
                    found[kind] = max(found.get(kind, 0.0), calls["longest"])
        return found


def cost(folder: Path, sites: int, rounds: int = 4, length: int = 4) -> Cost:
    """Run so many rounds of a model of `length` float32 on so many sites."""
    many = ManySites(folder, sites)
    try:
        director = psutil.Process(many.running["director"].pid)
        federation = FederationHandle("localhost", many.port)
        federation.wait_for_sites(sites, 60)
        experiment = federation.submit(
            "many", package=TOYS / "toy", entry_point="toy.experiment:experiment", settings={"length": length},
            rounds=rounds, best_metric="accuracy", keep_optimizer=False,
        )  # fmt: skip
        closed: dict[int, tuple[float, float]] = {}
        files = 0
        for metric in experiment.metrics():
            if metric.task == "round" and metric.round not in closed:
                closed[metric.round] = time.monotonic(), sum(director.cpu_times()[:2])
                files = max(files, director.num_fds())
            if metric.task == "round":
                assert metric.value == 1.0, f"{metric.site} was missing in round {metric.round}"
        peak = int(next(line for line in _status(director) if line.startswith("VmHWM")).split()[1]) * 1024
        weights = [float(value) for value in experiment.last_weights()["vector"][:4]]
        moments = [closed[number] for number in sorted(closed)]
        return Cost(
            sites=sites,
            rounds=[later[0] - earlier[0] for earlier, later in pairwise(moments)],
            cpu=(moments[-1][1] - moments[0][1]) / (len(moments) - 1),
            memory=peak,
            files=files,
            longest=many.longest(),
            weights=weights,
        )
    finally:
        many.stop()


def _status(process: psutil.Process) -> list[str]:
    return Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
