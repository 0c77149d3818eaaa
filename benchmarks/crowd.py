"""How a director bears up to a thousand sites: light ones that speak the real protocol and train nothing."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from addition import JobError
from many import Cost, cost

SITES = (10, 50, 200, 500, 1000)
LENGTH = 125_000
"""Parameters of the model: half a megabyte."""
AT_ONCE = ("register", "status", "results")
"""The calls that wait for nothing: the others wait for a place among those that are under way."""


def with_crowds(folder: Path, rounds: int, sites: Sequence[int] = SITES) -> list[Cost]:
    """What some rounds cost the director, by the number of sites.

    Raises:
        JobError: the sites' average is not what it has to be.
    """
    costs = []
    for count in sites:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        found = cost(folder, count, rounds, LENGTH)
        if abs(found.weights[0] - rounds) > 1e-4:  # it begins at 0, and every site adds one a round
            raise JobError(f"{count} sites: the last model begins with {found.weights[0]}, and not with {rounds}")
        costs.append(found)
    return costs


def seconds(found: Cost) -> float:
    """Of a round."""
    return median(found.rounds)


def longest(found: Cost, kinds: Sequence[str]) -> float:
    """Seconds of the longest call of some kinds."""
    return max(found.longest.get(kind, 0.0) for kind in kinds)


def plot(costs: Sequence[Cost], path: Path) -> None:
    """Draw seconds of a round, CPU of a site and round, and memory over the number of sites."""
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 3, figsize=(11, 3.4))
    over = [found.sites for found in costs]
    for each, label, values in (
        (axes[0], "seconds a round", [seconds(found) for found in costs]),
        (axes[1], "director's CPU, ms a site and round", [found.milliseconds for found in costs]),
        (axes[2], "director's peak, MB", [found.memory / 1e6 for found in costs]),
    ):
        each.plot(over, values, "o-")
        each.set(xlabel="sites, half a megabyte", ylabel=label)
        each.set_xlim(left=0)
        each.set_ylim(bottom=0)
        each.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
