"""Who is asked in a round, who has answered what, and when it closes: the book of an experiment's rounds.

Nothing else is here: no file, no message, no thread and no clock of its own. Whoever keeps the book tells it what has
happened, and does what it says: hands out tasks, makes the next model of a round that has closed, keeps it on disk, and
says so (`kept`). All times are of a clock that only goes forward, and that whoever asks brings along.

A round is open until the last site that it waits for has answered all of its tasks, or has left, or the round's time
is up. Then it closes on those sites that have taken part in it, or, where they are fewer than `minimum`, the experiment
fails and says who is missing. A site has *taken part* in a round when it has sent what the round is about (`crux`):
what it has trained, or in the last round, which only measures, its measurement. Every set here is of the sites that
the round has asked, which does not change while it is open. Whom the next round asks is drawn as one closes
(`choose`), so that whoever keeps the book can put that on disk with what the round has come to.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from enum import Enum


class Phase(Enum):
    """How the experiment stands."""

    OPEN = "open"
    CLOSING = "closing"  # until its outcome is on disk
    FINISHED = "finished"
    FAILED = "failed"


class Reply(Enum):
    """What becomes of an answer."""

    TAKEN = "taken"
    REPEATED = "repeated"  # it was taken before: the first one stands
    LATE = "late"  # it is not this round's turn, or the round goes on without this site


class NotAsked(ValueError):
    """An answer to what nobody has asked of this site."""


def asked(round_number: int, present: Collection[str]) -> Collection[str]:
    """Whom a round asks: all who are there. Asked again, after a restart, the same round asks the same."""
    return present


@dataclass(frozen=True)
class Terms:
    """What an experiment's rounds are held to.

    sites: all of the experiment's. last: the number of the last round; the first one is number 0. minimum: how many
    sites a round needs. tasks: of a round, by its number and that of the last one, in their order. crux: likewise, the
    one of a round's tasks by which a site has taken part. seconds: how long a round waits for its sites, from the
    moment that the first of them has its tasks; None: as long as they are there. asked: whom a round of training asks,
    of those that are there.
    """

    sites: tuple[str, ...]
    last: int
    minimum: int
    tasks: Callable[[int, int], tuple[str, ...]]
    crux: Callable[[int, int], str]
    seconds: float | None = None
    asked: Callable[[int, Collection[str]], Collection[str]] = asked


@dataclass(frozen=True)
class Timer:
    """When the time of a round is up; of another round it says nothing."""

    round: int
    at: float


class RoundBook:
    """The rounds of one experiment, from the one that comes next; for one thread.

    `phase` and `failure` say how it stands; `number`, `asked` and `waiting` which round is on, whom it asks, and of
    whom it still expects something; `last` which one will be the last.

    Args:
        terms: what the rounds are held to.
        next_round: the one that comes next.
        asked: whom it asks, where that has been chosen before.
    """

    phase: Phase
    number: int
    timer: Timer | None
    asked: frozenset[str]
    waiting: set[str]
    _answers: dict[str, set[str]]
    _partakers: set[str]

    def __init__(self, terms: Terms, next_round: int = 0, asked: Collection[str] | None = None) -> None:
        self.terms, self.last = terms, terms.last
        self.failure: str | None = None
        self.away: dict[str, str] = {}  # sites that may come back, and why they are not there
        self.out: dict[str, str] = {}  # sites that may not
        self._chosen: Collection[str] | None = asked
        self._open(next_round)

    @property
    def over(self) -> bool:
        """Whether there will be no more rounds."""
        return self.phase in (Phase.FINISHED, Phase.FAILED)

    @property
    def present(self) -> tuple[str, ...]:
        """The sites that are there."""
        return tuple(site for site in self.terms.sites if site not in self.away and site not in self.out)

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of this round."""
        return self.terms.tasks(self.number, self.last)

    @property
    def took_part(self) -> tuple[str, ...]:
        """The sites that have taken part in this round."""
        return tuple(site for site in self.terms.sites if site in self._partakers)

    @property
    def missing(self) -> tuple[str, ...]:
        """The sites that were asked in this round and have not taken part in it."""
        return tuple(site for site in self.terms.sites if site in self.asked and site not in self._partakers)

    def answered(self, task: str) -> tuple[str, ...]:
        """The sites whose answer to a task of this round was taken."""
        return tuple(site for site in self.terms.sites if task in self._answers.get(site, ()))

    def tasks_for(self, site: str, now: float) -> tuple[str, ...]:
        """What a site has to do now; handing out a round's first tasks starts its time."""
        if self.phase is not Phase.OPEN or site not in self.waiting:
            return ()
        if self.timer is None and self.terms.seconds is not None:
            self.timer = Timer(self.number, now + self.terms.seconds)
        return tuple(task for task in self.tasks if task not in self._answers[site])

    def dismissed(self, site: str) -> bool:
        """Whether there will be nothing to do for a site any more."""
        return self.over or site in self.out

    def rests(self, site: str) -> bool:
        """Whether there is nothing to do for a site in this round, of which it is not asked."""
        return self.phase is Phase.OPEN and site not in self.asked

    def expects(self, site: str, task: str, round_number: int) -> Reply:
        """What would become of a site's answer to a task of a round.

        Raises:
            NotAsked: nobody has asked that of this site.
        """
        if site not in self.terms.sites:
            raise NotAsked(f"site {site:.100} has no part in this experiment")
        if not 0 <= round_number <= self.last:
            raise NotAsked(f"there is no round {round_number + 1}")
        assigned = self.terms.tasks(round_number, self.last)
        if task not in assigned:
            raise NotAsked(f"task {task[:100]!r} is none of this round's; assigned: {', '.join(assigned)}")
        if round_number != self.number or self.over or site in self.out or site not in self.asked:
            return Reply.LATE
        if task in self._answers[site]:
            return Reply.REPEATED
        return Reply.TAKEN if self.phase is Phase.OPEN else Reply.LATE

    def answer(self, site: str, task: str, round_number: int) -> Reply:
        """Take a site's answer to a task, once.

        Raises:
            NotAsked: nobody has asked that of this site.
        """
        reply = self.expects(site, task, round_number)
        if reply is Reply.TAKEN:
            self._answers[site].add(task)
            if task == self.terms.crux(self.number, self.last):
                self._partakers.add(site)
            if len(self._answers[site]) == len(self.tasks):
                self.waiting.discard(site)
            self._settle()
        return reply

    def leave(self, site: str, reason: str, for_good: bool) -> bool:
        """Go on without a site, until it is back or for good, or fail when too few remain; False: nothing changes."""
        if self.over or site in self.out or (site in self.away and not for_good) or site not in self.terms.sites:
            return False
        self.away.pop(site, None)
        (self.out if for_good else self.away)[site] = reason
        if self.phase is Phase.OPEN:
            self.waiting.discard(site)
            hopeless = self.number < self.last and len(self.terms.sites) - len(self.out) < self.terms.minimum
            if hopeless or len(self._partakers | self.waiting) < self.terms.minimum:
                self._fail(reason)
            else:
                self._settle()
        return True

    def back(self, site: str) -> bool:
        """Count on a site again that was away; whether it was."""
        if self.over or self.away.pop(site, None) is None:
            return False
        if self.phase is Phase.OPEN and site in self.asked and len(self._answers[site]) < len(self.tasks):
            self.waiting.add(site)
        return True

    def time_up(self, timer: Timer) -> None:
        """The time of a round is up; nothing if that round has closed by itself."""
        if self.phase is not Phase.OPEN or timer != self.timer:
            return
        if len(self._partakers) >= self.terms.minimum:
            self.phase = Phase.CLOSING
            return
        self._fail(
            f"round {self.number + 1}: after {self.terms.seconds or 0:.0f} s only {len(self._partakers)} of at least "
            f"{self.terms.minimum} sites were done; missing: {', '.join(self.missing)}"
        )

    def choose(self) -> tuple[str, ...]:
        """Whom the next round asks, of those that are there now; it asks them even if they leave before it begins."""
        self._chosen = tuple(self._drawn(self.number + 1))
        return self._chosen

    def ends_with(self, number: int) -> None:
        """Make this round, or a later one, the last."""
        self.last = max(self.number, min(number, self.last))

    def kept(self) -> None:
        """The outcome of the round that has closed is on disk: the next one begins."""
        if self.phase is Phase.CLOSING:
            self._open(self.number + 1)

    def end(self, reason: str) -> None:
        """End the experiment early; the first reason stands."""
        if not self.over:
            self._fail(reason)

    def _open(self, number: int) -> None:
        self.number, self.timer = number, None
        self.phase = Phase.OPEN if number <= self.last else Phase.FINISHED
        chosen = self._drawn(number) if self._chosen is None else self._chosen
        self.asked, self._chosen = frozenset(() if self.over else chosen), None
        self.waiting = set(self.asked.intersection(self.present))
        self._answers = {site: set() for site in self.asked}
        self._partakers = set()
        if not self.over and len(self.waiting) < self.terms.minimum:
            self._fail(_too_few(self.number, self.waiting, self.terms.minimum, self.out | self.away))

    def _drawn(self, number: int) -> Collection[str]:
        """Whom a round asks; the last one, which only measures, asks everybody."""
        return self.terms.asked(number, self.present) if number < self.last else self.present

    def _settle(self) -> None:
        """Close the round if nothing more is to come."""
        if not self.waiting:
            self.phase = Phase.CLOSING  # with enough sites: where they are too few, the one that left has said why

    def _fail(self, reason: str) -> None:
        self.phase, self.failure = Phase.FAILED, reason
        self.waiting = set()


def _too_few(number: int, asked: Collection[str], minimum: int, absent: Mapping[str, str]) -> str:
    names = ", ".join(sorted(absent))
    reasons = "".join(f"\n{site}: {reason}" for site, reason in sorted(absent.items()))
    return f"round {number + 1}: {len(asked)} of at least {minimum} sites are there; missing: {names}{reasons}"
