"""Runs one system in namespaces of its own and measures it from outside: time, memory, CPU and bytes.

In a network namespace of its own nothing else uses the loopback device, so its byte counter is the system's; in a
process namespace of its own nothing is left behind. Where the machine forbids namespaces, bytes are not measured.
"""

import fcntl
import json
import os
import re
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
import psutil
from addition.job import JOB_FILE, Job, JobError
from peers import PEERS, environment
from processes import Processes

BENCHMARKS = Path(__file__).resolve().parent
SAMPLE_SECONDS = 0.1
MEASURED = "measured.json"
TAG = "KWS_BENCH_PROCESS"
"""The environment variable that says whose process one is; whatever a process starts inherits it."""


@dataclass
class Figures:
    """What one run of one system cost.

    rounds: seconds of each timed round, from the moment that the last site has one model to the moment that it has the
    next. wire: bytes a round over the loopback device; None where that cannot be told apart. cpu: seconds of CPU a
    round, all processes together. memory: peak bytes by process: server, site1, site2, ...; and the notebook's or
    command line's. difference: of the last average from the closed form.
    """

    system: str
    model_bytes: int
    tensors: int
    sites: int
    rounds: list[float]
    wire: float | None
    cpu: float
    memory: dict[str, int]
    difference: float

    @property
    def seconds(self) -> float:
        """The median round."""
        return statistics.median(self.rounds)

    @property
    def server(self) -> int:
        """Peak bytes of the server."""
        return self.memory["server"]

    @property
    def site(self) -> int:
        """Peak bytes of the largest site."""
        return max(peak for name, peak in self.memory.items() if name.startswith("site"))

    @property
    def copies(self) -> float | None:
        """Bytes a round over the loopback device, in models."""
        return self.wire / self.model_bytes if self.wire is not None else None


class Tagged(Processes):
    """Processes that say in their environment whose they are; stopped at the end of a `with` block."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(
        self, name: str, *command: str | Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a process under a name; see `Processes.start`."""
        started: subprocess.Popen[bytes] = super().start(name, *command, env={**(env or {}), TAG: name}, cwd=cwd)
        return started

    def finish(self, name: str, seconds: float = 3600) -> None:
        """Wait for a process that ends by itself.

        Raises:
            JobError: it failed; with its log.
        """
        status = self.wait(name, seconds)
        if status:
            raise JobError(f"{name} ended with status {status}:\n{self.log(name)[-4000:]}")


class Sampler(threading.Thread):
    """Watches all tagged processes, ten times a second; `peaks` are the largest resident bytes by owner."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peaks: dict[str, int] = defaultdict(int)
        self._samples: list[tuple[float, float]] = []  # when, and CPU seconds so far
        self._over = threading.Event()
        self._owner: dict[tuple[int, float], str] = {(os.getpid(), psutil.Process().create_time()): "notebook"}
        self._cpu: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        """Sample until told to stop."""
        while not self._over.wait(SAMPLE_SECONDS):
            self.sample()

    def stop(self) -> None:
        """Take the last sample."""
        self._over.set()
        self.join()

    def sample(self) -> None:
        """One look at every process: resident memory, its high-water mark, and CPU."""
        now: dict[str, int] = defaultdict(int)
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                key = process.pid, process.create_time()
                if not self._owner.get(key):  # between fork and exec a process still has its parent's environment
                    self._owner[key] = process.environ().get(TAG, "")
                owner = role(self._owner[key])
                times = process.cpu_times()
                self._cpu[key] = times.user + times.system if owner else 0.0
                if owner:
                    status = Path(f"/proc/{process.pid}/status").read_text()
                    now[owner] += _kilobytes(status, "VmRSS")
                    self.peaks[owner] = max(self.peaks[owner], _kilobytes(status, "VmHWM"))
        for owner, total in now.items():
            self.peaks[owner] = max(self.peaks[owner], total)
        self._samples.append((time.monotonic(), sum(self._cpu.values())))

    def cpu(self, first: float, last: float) -> float:
        """CPU seconds between two moments, as near as the samples tell."""
        start, end = (min(self._samples, key=lambda sample: abs(sample[0] - moment))[1] for moment in (first, last))
        return end - start


def role(name: str) -> str:
    """Whose memory a process's is: "server", "site1", ..., or "notebook" for what only submits.

    >>> role("superlink"), role("site2"), role("submit")
    ('server', 'site2', 'notebook')
    """
    if not name or name.startswith("site"):
        return name
    return "server" if name in ("server", "director", "superlink") else "notebook"


def measure(system: str, job: Job) -> Figures:
    """Run a system to the end of the job, in namespaces of its own, and measure it.

    Raises:
        JobError: it failed, or computed something else; with the end of its output.
    """
    if system in PEERS:
        environment(system)  # the namespaces have no way to the package index
    figures = in_namespaces("system", job, system)
    figures["difference"] = job.difference()
    keep_logs(Path(job.folder))
    return Figures(**figures)


def keep_logs(folder: Path) -> None:
    """Forget what a run that went well has left, but for logs and figures: models are large."""
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.suffix not in (".log", ".json", ".jsonl"):
            path.unlink()


def in_namespaces(what: str, job: Job, *arguments: str) -> dict[str, Any]:
    """Run `python benchmarks inside-WHAT` in a new folder and in new namespaces; what it has measured.

    Raises:
        JobError: it failed; with the end of its output.
    """
    folder = Path(job.folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    job.write(folder / "job.json")
    wrapper = private_namespaces()
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    variables = threads | {
        JOB_FILE: str(folder / "job.json"),
        "PYTHONPATH": os.pathsep.join([str(BENCHMARKS), os.environ.get("PYTHONPATH", "")]),
        "PYTHONUNBUFFERED": "1",
    }
    done = subprocess.run(
        [*wrapper, sys.executable, str(BENCHMARKS), f"inside-{what}", *arguments, *["--private"] * bool(wrapper)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | variables,
        cwd=BENCHMARKS.parent,
        check=False,
    )
    if done.returncode:
        raise JobError(f"{what} {' '.join(arguments)} failed; logs: {folder}\n{(done.stdout + done.stderr)[-3000:]}")
    measured: dict[str, Any] = json.loads((folder / MEASURED).read_text())
    return measured


def inside_system(system: str, private: bool) -> None:
    """What `measure` runs: has the system do the job, and writes down what it has cost."""
    job = Job.from_environment()
    sampler = Sampler()
    sampler.start()
    try:
        import_module(f"systems.{system}").run(job)
    finally:
        sampler.stop()
    figures = cost(system, job, sampler) | ({} if private else {"wire": None})
    (Path(job.folder) / MEASURED).write_text(json.dumps(figures))


def cost(system: str, job: Job, sampler: Sampler) -> dict[str, Any]:
    """What a finished run has cost: all of `Figures` but the difference.

    Raises:
        JobError: a site has missed a round, or there are too few to time one.
    """
    arrivals: dict[int, list[tuple[float, int]]] = defaultdict(list)
    for event in job.events("arrived"):
        arrivals[event["round"]].append((event["time"], event["wire"]))
    counts = {number: len(arrivals[number]) for number in range(1, job.rounds + 1)}
    if job.rounds < 3 or set(counts.values()) != {job.sites}:
        raise JobError(f"{system}: needs 3 rounds or more, and {job.sites} sites in each; sites by round: {counts}")
    timed = range(2, job.rounds + 1)
    moments = [max(arrivals[number])[0] for number in timed]
    # The line through every site's view: one site may have sent its model before the other has received its own.
    views = np.array([(number, wire) for number in timed for _, wire in arrivals[number]], float)
    rounds = [later - earlier for earlier, later in pairwise(moments)]
    return {
        "system": system,
        "model_bytes": job.bytes,
        "tensors": len(job.shapes),
        "sites": job.sites,
        "rounds": rounds,
        "wire": float(np.polyfit(views[:, 0], views[:, 1], deg=1)[0]),
        "cpu": sampler.cpu(moments[0], moments[-1]) / len(rounds),
        "memory": sampler.peaks,
    }


@cache
def private_namespaces() -> tuple[str, ...]:
    """The command that gives a process its own network and process namespaces; empty where that is forbidden."""
    for users in ((), ("--map-root-user",)):
        command = ("unshare", *users, "--net", "--pid", "--fork", "--mount-proc", "--kill-child")
        with suppress(OSError):
            if subprocess.run([*command, "true"], capture_output=True, check=False).returncode == 0:
                return command
    return ()


def loopback_up() -> None:
    """Switch the loopback device of a new network namespace on."""
    get, put, up = 0x8913, 0x8914, 0x1  # SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name, flags = struct.unpack("16sh", fcntl.ioctl(any_socket, get, struct.pack("16sh", b"lo", 0)))
        fcntl.ioctl(any_socket, put, struct.pack("16sh", name, flags | up))


def _kilobytes(status: str, name: str) -> int:
    found = re.search(rf"{name}:\s*(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0
