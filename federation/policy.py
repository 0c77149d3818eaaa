"""When a round may close, and an experiment go on, without some of its sites."""

from dataclasses import dataclass, replace
from typing import Any

MOST_RETRIES = 10
MOST_SITES = 1_000_000
MOST_SECONDS = 10**8
"""Three years; a timer of the standard library takes it."""


@dataclass(frozen=True)
class RoundPolicy:
    """How many sites a round needs and how long it waits for them.

    minimum_sites: a round closes with at least so many; None: with all that the experiment started with.
    round_seconds: how long a round waits for all; then it closes with those that are done, or the experiment fails
        when they are too few. None: as long as the sites are online.
    gone_seconds: a site that the director has not heard of for so long is left out until it is back, or the experiment
        fails when too few remain.
    retries: how often each site starts a trainer process again that died (killed for memory, a crash in a library).
        It rejoins its round. A task that raised is not tried again.

    A site whose task fails is left out for good: with the default, all sites, one failure ends the experiment.
    """

    minimum_sites: int | None = None
    round_seconds: float | None = None
    gone_seconds: float = 120.0
    retries: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.minimum_sites is not None and not _is_number(self.minimum_sites, int, 1, MOST_SITES):
            problems.append(f"minimum_sites is {self.minimum_sites!r:.60}; 1 to {MOST_SITES}, or None for all")
        if self.round_seconds is not None and not _is_number(self.round_seconds, float, 0, MOST_SECONDS):
            problems.append(
                f"round_seconds is {self.round_seconds!r:.60}; above 0, up to {MOST_SECONDS}, or None to wait"
            )
        if not _is_number(self.gone_seconds, float, 0, MOST_SECONDS):
            problems.append(f"gone_seconds is {self.gone_seconds!r:.60}; above 0, up to {MOST_SECONDS}")
        if not _is_number(self.retries, int, 0, MOST_RETRIES):
            problems.append(f"retries is {self.retries!r:.60}; allowed: 0 to {MOST_RETRIES}")
        if problems:
            raise ValueError("\n".join(problems))

    def among(self, sites: int) -> "RoundPolicy":
        """The policy for an experiment whose rounds ask so many sites, with the number of those that it needs.

        Raises:
            ValueError: it needs more sites than are asked.
        """
        minimum = self.minimum_sites or sites
        if minimum > sites:
            raise ValueError(
                f"minimum_sites is {minimum}, and a round asks only {sites} sites; start more, ask more or need fewer"
            )
        return replace(self, minimum_sites=minimum)


def _is_number(value: Any, kind: type, least: float, most: float) -> bool:
    """Whether a value, which may come from anybody, is such a number; seconds have to be above the least."""
    if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
        return False
    return least <= value <= most if kind is int else least < value <= most
