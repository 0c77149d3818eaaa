"""Steps of a measurement, each in a process of its own, so that no one's memory or caches are another's."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HOUSE = Path(__file__).resolve().parents[1]

Figures = dict[str, Any]


class StepError(ValueError):
    """A step that cannot be measured, or that has computed something else than it should."""


def in_process(script: str, step: str, *arguments: object, threads: int = 1) -> Figures:
    """What `python SCRIPT STEP ARGUMENTS` prints as JSON, with the `seconds` from the process's start to its end.

    Raises:
        StepError: it failed; with the end of its output.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    paths = [str(HOUSE), str(HOUSE / "workspace"), os.environ.get("PYTHONPATH", "")]
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, script, step, *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=os.environ | dict.fromkeys(names, str(threads)) | {"PYTHONPATH": os.pathsep.join(filter(None, paths))},
        check=False,
    )
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise StepError(f"{step} failed:\n{(done.stdout + done.stderr)[-3000:]}")
    return {"seconds": seconds} | json.loads(done.stdout.splitlines()[-1])


def machine(threads: int = 1) -> str:
    """The machine in words."""
    found = Path("/proc/cpuinfo").read_text()
    model = next((line.partition(":")[2].strip() for line in found.splitlines() if line.startswith("model name")), "")
    gigabytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    told = "one thread" if threads == 1 else f"{threads} threads"
    return f"{told} on {os.cpu_count()} cores ({model or 'unknown'}), {gigabytes:.0f} GB"


def memory_of(name: str) -> int:
    """Bytes of this process by a name in /proc/self/status."""
    status = Path("/proc/self/status").read_text()
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(f"{name}:"))
