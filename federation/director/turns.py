"""Whose turn it is: which of the experiments that wait may start, and who has to give way to them.

A site works on as many experiments at a time as it has slots, one unless it says otherwise. An experiment starts when
each of its sites has a slot for it: who was submitted first is asked first, and those that share no site with it do not
wait for it. So that one with many sites is not passed by others for ever, it is passed `PATIENCE` times at most; then
its sites are kept free for it. An experiment that waits for an owner holds no slot that another one needs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PATIENCE = 3
"""How many later experiments may start at a site of one that waits."""


@dataclass(frozen=True)
class Entry:
    """An experiment that is not over: its sites (of one that runs, those that it still works at).

    gives_way: it runs, but does nothing until an owner has approved it. waits_for_owner: it does not run, and would do
    nothing if it did. passed: how many later ones have started at one of its sites.
    """

    name: str
    sites: frozenset[str]
    runs: bool = False
    gives_way: bool = False
    waits_for_owner: bool = False
    passed: int = 0


@dataclass(frozen=True)
class Turns:
    """Who starts now, who has to stop for that, and how often each of the others was passed by it."""

    start: tuple[str, ...]
    stop: tuple[str, ...]
    passed: Mapping[str, int]


def turns(entries: Sequence[Entry], slots: Mapping[str, int]) -> Turns:
    """Decide on experiments in the order of their submission.

    slots: how many experiments a site works on at a time; 1 where it is not named.

    >>> pair, one, other = frozenset({"a", "b"}), frozenset({"a"}), frozenset({"c"})
    >>> turns([Entry("first", one, runs=True), Entry("second", pair), Entry("third", other)], {}).start
    ('third',)
    """
    taken = Counter(site for each in entries if each.runs and not each.gives_way for site in each.sites)
    passed: Counter[str] = Counter()
    start: list[Entry] = []
    waiting: list[Entry] = []
    for each in entries:
        if each.runs or each.waits_for_owner:
            continue
        reserved = any(
            earlier.passed + passed[earlier.name] >= PATIENCE and earlier.sites & each.sites for earlier in waiting
        )
        if reserved or any(taken[site] >= slots.get(site, 1) for site in each.sites):
            waiting.append(each)
            continue
        start.append(each)
        taken.update(each.sites)
        passed.update(earlier.name for earlier in waiting if earlier.sites & each.sites)
    needed = {site for each in start for site in each.sites}
    stop = []
    for each in entries:
        if each.runs and each.gives_way:
            if any(taken[site] >= slots.get(site, 1) for site in each.sites & needed):
                stop.append(each.name)
            else:
                taken.update(each.sites)
    return Turns(tuple(each.name for each in start), tuple(stop), dict(passed))
