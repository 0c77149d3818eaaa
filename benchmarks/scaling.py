"""How the cost of a round of this project's federation grows with bytes and with sites, and what waits on a clock."""

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from addition import Job
from measure import MEASURED, in_namespaces, measure
from processes import Processes
from sizes import shapes

MEGABYTES = (4, 16, 64, 256)
SITES = (2, 4, 8, 16)


@dataclass(frozen=True)
class Line:
    """A straight line through measured points: seconds = fixed + slope * x.

    r_squared: the part of the variance that the line explains. worst: the largest distance of a point from the line, as
    a part of the line's own value.
    """

    x: list[float]
    seconds: list[float]
    fixed: float
    slope: float
    r_squared: float
    worst: float


def fit(x: Sequence[float], seconds: Sequence[float]) -> Line:
    """The line through these points, by least squares of the relative distance, so that small points count as well.

    >>> line = fit([1, 2, 4], [3.0, 5.0, 9.0])
    >>> round(line.fixed, 6), round(line.slope, 6), round(line.r_squared, 6)
    (1.0, 2.0, 1.0)
    """
    across, up = np.asarray(x, float), np.asarray(seconds, float)
    slope, fixed = np.polyfit(across, up, 1, w=1 / up)
    line = fixed + slope * across
    explained = 1 - ((up - line) ** 2).sum() / ((up - up.mean()) ** 2).sum()
    return Line(list(x), list(seconds), float(fixed), float(slope), float(explained), float(abs(up / line - 1).max()))


def with_bytes(system: str, folder: Path, rounds: int, megabytes: Sequence[float] = MEGABYTES) -> Line:
    """Seconds of a round of two sites over the megabytes of the model."""
    runs = [measure(system, Job(shapes(str(size)), 2, rounds, str(folder))) for size in megabytes]
    return fit([run.model_bytes / 1e6 for run in runs], [run.seconds for run in runs])


def with_sites(folder: Path, rounds: int, sites: Sequence[int] = SITES) -> Line:
    """Seconds of a round of a tiny model over the number of sites."""
    runs = [measure("ours", Job(shapes("tiny"), count, rounds, str(folder))) for count in sites]
    return fit([float(run.sites) for run in runs], [run.seconds for run in runs])


def director_memory(folder: Path, sites: Sequence[int] = (2, 4, 8)) -> tuple[int, dict[int, int]]:
    """Bytes of a model of 64 MB, and the director's peak by the number of sites."""
    runs = [measure("ours", Job(shapes("64"), count, 4, str(folder))) for count in sites]
    return runs[0].model_bytes, {run.sites: run.server for run in runs}


def clock(folder: Path, rounds: int) -> dict[str, float]:
    """Medians over three experiments of a tiny model, one after the other on the same idle envoys, in seconds.

    round: from round to round. start: from the return of `submit` until every envoy starts its trainer. first_task:
    until every site has the first model; a trainer process has to load its libraries first. end: from the last site's
    last work until the notebook knows of the end.
    """
    return in_namespaces("clock", Job(shapes("tiny"), 2, rounds, str(folder)))


def inside_clock() -> None:
    """What `clock` runs."""
    from systems.ours import AdditionFederation, submit

    job = Job.from_environment()
    measured: dict[str, list[float]] = {"round": [], "start": [], "first_task": [], "end": []}
    with AdditionFederation(job) as federation:
        for number in range(3):
            name, known = f"experiment{number}", job.sites * job.rounds * number
            experiment = submit(federation, job, name)
            submitted = time.monotonic()
            wait_for_all(federation, job.sites, f"{name}: starts")
            measured["start"].append(time.monotonic() - submitted)
            for _ in experiment.metrics():
                pass
            ended = time.monotonic()
            arrivals = [event["time"] for event in job.events("arrived")[known:]]
            measured["first_task"].append(arrivals[job.sites - 1] - submitted)
            measured["round"].append((arrivals[-1] - arrivals[job.sites - 1]) / (job.rounds - 1))
            measured["end"].append(ended - job.events("validated")[-1]["time"])
            wait_for_all(federation, job.sites, f"{name}: done")  # the envoys are idle again
    medians = {name: median(values) for name, values in measured.items()}
    (Path(job.folder) / MEASURED).write_text(json.dumps(medians))


def wait_for_all(federation: Processes, sites: int, words: str, seconds: float = 60) -> None:
    """Look a hundred times a second until every site's log has these words.

    Raises:
        TimeoutError: one has not.
    """
    deadline = time.monotonic() + seconds
    while missing := [site for site in range(1, sites + 1) if words not in federation.log(f"site{site}")]:
        if time.monotonic() > deadline:
            raise TimeoutError(f"site {missing[0]} has not said {words!r} in {seconds:.0f} s")
        time.sleep(0.01)


def plot(lines: dict[str, Line], sites: Line, path: Path) -> None:
    """Draw seconds of a round over megabytes (for each system) and over sites."""
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.6))
    for name, line in lines.items():
        draw(left, line, name)
    left.set(xlabel="megabytes of the model, two sites", ylabel="seconds a round")
    draw(right, sites, "this project")
    right.set(xlabel="sites, half a megabyte", ylabel="seconds a round", xticks=sites.x)
    for axes in (left, right):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.legend()
        axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def draw(axes: Any, line: Line, name: str) -> None:
    """The points and their line."""
    (points,) = axes.plot(line.x, line.seconds, "o", label=name)
    ends = [0, max(line.x)]
    axes.plot(ends, [line.fixed + line.slope * end for end in ends], color=points.get_color(), alpha=0.5)
