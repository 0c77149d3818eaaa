"""Whom a round asks, where not all: some of the sites, drawn anew for each round."""

import hashlib
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

MOST_SITES = 1_000_000
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Sampling:
    """How many of its sites each round of training asks, drawn anew for each round (McMahan et al. 2017, fraction C).

    sites: a number of sites, from 1; or a share of all, above 0 and below 1, rounded up. seed: of the draw; the same
    seed, round and sites give the same draw wherever it is made.
    """

    sites: float
    seed: int = 0

    def __post_init__(self) -> None:
        share = isinstance(self.sites, float) and 0 < self.sites < 1
        problems = []
        if not share and not _is_count(self.sites, 1, MOST_SITES):
            problems.append(f"sites is {self.sites!r:.60}; a number from 1 to {MOST_SITES}, or a share between 0 and 1")
        if not _is_count(self.seed, 0, MOST_SEED):
            problems.append(f"seed is {self.seed!r:.60}; 0 to {MOST_SEED}")
        if problems:
            raise ValueError("\n".join(problems))

    def number(self, sites: int) -> int:
        """How many sites a round asks of so many.

        >>> Sampling(0.1).number(25), Sampling(4).number(3)
        (3, 3)
        """
        if isinstance(self.sites, int):
            return min(sites, self.sites)
        return min(sites, max(1, math.ceil(self.sites * sites - 1e-9)))  # 0.07 * 100 is above 7

    def draw(self, round_number: int, sites: Collection[str], present: Collection[str]) -> tuple[str, ...]:
        """Whom a round asks, of those that are there, in the order of their names.

        Each site's place in the draw depends on no other site: who is away is replaced, and the rest stays as it is.
        """
        chosen = sorted(present, key=lambda site: _rank(self.seed, round_number, site))[: self.number(len(sites))]
        return tuple(sorted(chosen))


def _rank(seed: int, round_number: int, site: str) -> bytes:
    return hashlib.sha256(f"{seed} {round_number} {site}".encode()).digest()


def _is_count(value: Any, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
