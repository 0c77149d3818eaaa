"""The book of an experiment's rounds: what a round closes on, by hand and against a plain reference."""

import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from federation.director.round import NotAsked, Phase, Reply, RoundBook, Terms, Timer

MEASURE, TRAIN, CHECK = "measure", "train", "check"
SITES = ("a", "b", "c", "d")


def tasks(number: int, last: int) -> tuple[str, ...]:
    return (MEASURE, TRAIN, CHECK) if number < last else (MEASURE,)


def crux(number: int, last: int) -> str:
    return TRAIN if number < last else MEASURE


def book(sites: tuple[str, ...] = SITES, last: int = 2, minimum: int = 1, **more: object) -> RoundBook:
    return RoundBook(Terms(sites=sites, last=last, minimum=minimum, tasks=tasks, crux=crux, **more))


def do_all(rounds: RoundBook, *sites: str) -> None:
    for site in sites:
        for task in rounds.tasks:
            rounds.answer(site, task, rounds.number)


def test_a_round_closes_on_all_who_are_asked() -> None:
    rounds = book(("a", "b"), minimum=2)
    assert rounds.tasks_for("a", 0.0) == (MEASURE, TRAIN, CHECK)
    do_all(rounds, "a")
    assert rounds.tasks_for("a", 0.0) == ()
    assert rounds.phase is Phase.OPEN
    assert (rounds.took_part, rounds.missing) == (("a",), ("b",))
    do_all(rounds, "b")
    assert rounds.phase is Phase.CLOSING
    assert rounds.number == 0
    assert rounds.tasks_for("a", 0.0) == ()  # not before the outcome is on disk
    rounds.kept()
    assert (rounds.phase, rounds.number) == (Phase.OPEN, 1)
    do_all(rounds, "a", "b")
    rounds.kept()
    assert rounds.tasks == (MEASURE,)
    do_all(rounds, "b", "a")
    rounds.kept()
    assert rounds.phase is Phase.FINISHED
    assert rounds.dismissed("a")


@pytest.mark.parametrize("task", ["nobody's task", "", "round", "notice", "x" * 10_000])
def test_what_nobody_has_asked_counts_for_nothing(task: str) -> None:
    rounds = book(minimum=4)
    do_all(rounds, "a")
    for site in SITES:
        with pytest.raises(NotAsked, match="is none of this round's; assigned: measure, train, check"):
            rounds.answer(site, task, 0)
    for site, round_number in (("a", 3), ("a", -1), ("stranger", 0)):
        with pytest.raises(NotAsked, match=r"there is no round|has no part in this experiment"):
            rounds.answer(site, TRAIN, round_number)
    assert rounds.answer("b", TRAIN, 1) is Reply.LATE  # of a round that a director has lost with its disk
    assert (rounds.phase, rounds.took_part) == (Phase.OPEN, ("a",))


def test_the_same_answer_twice_counts_once() -> None:
    rounds = book(("a", "b"), minimum=2)
    for _ in range(3):
        assert rounds.answer("a", MEASURE, 0) in (Reply.TAKEN, Reply.REPEATED)
    do_all(rounds, "a")
    assert rounds.answer("a", CHECK, 0) is Reply.REPEATED
    assert rounds.waiting == {"b"}


def test_a_site_that_is_done_gone_and_back_has_done_its_part() -> None:
    rounds = book(("a", "b", "c"), minimum=2)
    do_all(rounds, "a")
    assert rounds.leave("a", "gone", for_good=False)
    assert rounds.back("a")
    assert rounds.tasks_for("a", 0.0) == ()
    do_all(rounds, "b", "c")
    assert rounds.phase is Phase.CLOSING
    assert rounds.took_part == ("a", "b", "c")


def test_what_a_site_has_sent_before_it_left_is_taken() -> None:
    rounds = book(("a", "b"), minimum=1)
    rounds.answer("a", MEASURE, 0)
    rounds.answer("a", TRAIN, 0)
    rounds.leave("a", "gone", for_good=False)
    do_all(rounds, "b")
    assert rounds.took_part == ("a", "b")
    assert rounds.answered(CHECK) == ("b",)


def test_who_is_back_in_its_round_is_waited_for_and_in_another_one_is_not() -> None:
    rounds = book(("a", "b"), minimum=1)
    rounds.leave("a", "gone", for_good=False)
    rounds.back("a")
    do_all(rounds, "b")
    assert rounds.waiting == {"a"}
    rounds.leave("a", "gone", for_good=False)
    rounds.kept()
    assert rounds.asked == {"b"}
    rounds.back("a")
    assert rounds.tasks_for("a", 0.0) == ()
    assert rounds.answer("a", TRAIN, 1) is Reply.LATE
    assert rounds.answer("a", TRAIN, 0) is Reply.LATE
    do_all(rounds, "b")
    rounds.kept()
    assert rounds.asked == {"a", "b"}


def test_too_few_fail_at_once_and_say_why() -> None:
    rounds = book(("a", "b"), minimum=2)
    rounds.leave("b", "site b is gone", for_good=False)
    assert (rounds.phase, rounds.failure) == (Phase.FAILED, "site b is gone")
    assert rounds.dismissed("a")
    # Done with its round it is missed in the next one.
    rounds = book(("a", "b"), minimum=2)
    do_all(rounds, "b")
    rounds.leave("b", "site b is gone", for_good=False)
    do_all(rounds, "a")
    rounds.kept()
    assert rounds.failure == "round 2: 1 of at least 2 sites are there; missing: b\nb: site b is gone"
    # One that will not be back is not waited for first.
    rounds = book(("a", "b"), minimum=2)
    do_all(rounds, "b")
    rounds.leave("b", "site b failed", for_good=True)
    assert rounds.failure == "site b failed"


def test_time_runs_from_the_first_task_and_belongs_to_its_round() -> None:
    rounds = book(("a", "b"), minimum=1, seconds=5.0)
    assert rounds.timer is None
    rounds.tasks_for("a", 100.0)
    rounds.tasks_for("b", 103.0)
    first = rounds.timer
    assert first == Timer(0, 105.0)
    do_all(rounds, "a", "b")
    rounds.kept()
    rounds.tasks_for("a", 104.0)
    rounds.time_up(first)
    assert rounds.phase is Phase.OPEN
    rounds.time_up(rounds.timer)
    assert rounds.failure == "round 2: after 5 s only 0 of at least 1 sites were done; missing: a, b"


def test_when_time_is_up_it_closes_with_those_that_took_part() -> None:
    rounds = book(minimum=2, seconds=5.0)
    rounds.tasks_for("a", 0.0)
    do_all(rounds, "a")
    rounds.answer("b", TRAIN, 0)
    rounds.answer("c", MEASURE, 0)
    rounds.time_up(rounds.timer)
    assert rounds.phase is Phase.CLOSING
    assert (rounds.took_part, rounds.missing) == (("a", "b"), ("c", "d"))
    assert rounds.answer("d", MEASURE, 0) is Reply.LATE


def test_a_round_may_ask_some_of_the_sites() -> None:
    rounds = book(minimum=2, asked=lambda number, present: [site for site in present if ord(site) % 2 == number % 2])
    assert rounds.asked == {"b", "d"}
    assert rounds.tasks_for("a", 0.0) == ()
    assert not rounds.dismissed("a")
    do_all(rounds, "b", "d")
    assert rounds.phase is Phase.CLOSING
    assert rounds.missing == ()
    rounds.kept()
    assert rounds.asked == {"a", "c"}
    assert (rounds.rests("b"), rounds.rests("a")) == (True, False)
    do_all(rounds, "a", "c")
    rounds.kept()
    assert rounds.asked == set(SITES)  # the last round measures


def test_whom_a_round_asks_is_chosen_as_the_one_before_closes() -> None:
    rounds = book(minimum=1, asked=lambda number, present: sorted(present)[:2])
    assert rounds.asked == {"a", "b"}
    do_all(rounds, "a", "b")
    assert rounds.choose() == ("a", "b")
    rounds.leave("a", "gone", for_good=False)
    rounds.kept()
    assert (rounds.asked, rounds.waiting) == ({"a", "b"}, {"b"})
    assert rounds.missing == ("a", "b")
    rounds.back("a")
    assert rounds.waiting == {"a", "b"}
    again = RoundBook(rounds.terms, 1, ("b", "d"))
    assert again.asked == {"b", "d"}
    do_all(again, "b", "d")
    again.kept()
    assert again.asked == set(SITES)


def test_the_rounds_may_end_early() -> None:
    rounds = book(("a", "b"), last=9, minimum=2)
    do_all(rounds, "a", "b")
    rounds.ends_with(1)
    rounds.choose()
    rounds.kept()
    assert rounds.tasks == (MEASURE,)
    with pytest.raises(NotAsked, match="there is no round 3"):
        rounds.answer("a", MEASURE, 2)
    do_all(rounds, "a", "b")
    rounds.kept()
    assert rounds.phase is Phase.FINISHED
    rounds = book(("a",), last=2)
    rounds.ends_with(7)
    assert rounds.last == 2


def test_the_first_reason_stands() -> None:
    rounds = book()
    rounds.end("cancelled")
    rounds.end("another")
    do_all(rounds, *SITES)
    rounds.kept()
    assert (rounds.phase, rounds.failure, rounds.number) == (Phase.FAILED, "cancelled", 0)


class Reference:
    """What has happened in the running round, as a plain list, and what follows from it."""

    def __init__(self) -> None:
        self.answers: list[tuple[str, str]] = []
        self.away: set[str] = set()
        self.out: set[str] = set()
        self.asked: set[str] = set()

    def partakers(self, crux: str) -> set[str]:
        return {site for site, task in self.answers if task == crux}

    def owed(self, wanted: tuple[str, ...]) -> set[str]:
        """Sites that are there and have not answered everything."""
        there = self.asked - self.away - self.out
        return {site for site in there if any((site, task) not in self.answers for task in wanted)}


class Story(RuleBasedStateMachine):
    """Anything may happen at any time, to any site, in any round."""

    @initialize(minimum=st.integers(1, 4), last=st.integers(0, 3), sampled=st.booleans(), timed=st.booleans())
    def begin(self, minimum: int, last: int, sampled: bool, timed: bool) -> None:
        self.minimum, self.last, self.now = minimum, last, 0.0
        self.planned, self.chosen = last, None
        self.asked = (lambda number, present: sorted(present)[number % 2 :]) if sampled else None
        self.seconds = 10.0 if timed else None
        self.timers: list[Timer] = [Timer(0, math.inf)]
        self.kept_rounds = 0
        self.restart()

    @rule()
    def restart(self) -> None:
        """The director is killed and starts anew: it knows what is on disk, and counts on everyone."""
        more = {"asked": self.asked} if self.asked else {}
        self.book = RoundBook(
            Terms(
                sites=SITES, last=self.planned, minimum=self.minimum, seconds=self.seconds, tasks=tasks, crux=crux,
                **more,
            ),
            self.kept_rounds,
            self.chosen,
        )  # fmt: skip
        self.book.ends_with(self.last)
        self.story = Reference()
        self.story.asked = set(self.book.asked)
        self.closing = self.ended = False

    @property
    def wanted(self) -> tuple[str, ...]:
        return tasks(self.kept_rounds, self.last)

    @property
    def crux(self) -> str:
        return crux(self.kept_rounds, self.last)

    @rule(
        site=st.sampled_from([*SITES * 3, "x"]),
        task=st.sampled_from([MEASURE, TRAIN, CHECK] * 3 + ["made up"]),
        away=st.sampled_from([0, 0, 0, 0, -1, 1, -5]),
    )
    def answers(self, site: str, task: str, away: int) -> None:
        """A site sends a result, mostly of the round that is on."""
        round_ = self.kept_rounds + away
        before = len(self.story.answers)
        was_open = self.book.phase is Phase.OPEN
        asked = site in SITES and 0 <= round_ <= self.last and task in tasks(round_, self.last)
        current = round_ == self.kept_rounds
        try:
            reply = self.book.answer(site, task, round_)
        except NotAsked:
            assert not asked
            return
        assert asked
        if reply is Reply.TAKEN:
            assert was_open
            assert current
            assert site in self.story.asked - self.story.out
            assert (site, task) not in self.story.answers, "counted twice"
            self.story.answers.append((site, task))
        elif was_open and current and site in self.story.asked - self.story.out:
            assert reply is Reply.REPEATED
            assert (site, task) in self.story.answers
        assert len(self.story.answers) - before == (reply is Reply.TAKEN)
        self.settle()

    @rule(site=st.sampled_from(SITES), times=st.integers(1, 2))
    def does_all(self, site: str, times: int) -> None:
        """An honest site, which may send everything again."""
        for _ in range(times):
            for task in self.book.tasks_for(site, self.now):
                self.answers(site, task, 0)

    @rule(site=st.sampled_from(SITES), for_good=st.booleans())
    def leaves(self, site: str, for_good: bool) -> None:
        if self.book.leave(site, f"{site} left", for_good):
            self.story.away.discard(site)
            (self.story.out if for_good else self.story.away).add(site)
            could = self.story.partakers(self.crux) | self.story.owed(self.wanted)
            hopeless = self.kept_rounds < self.last and len(SITES) - len(self.story.out) < self.minimum
            if not self.closing and not self.ended and (hopeless or len(could) < self.minimum):
                self.ended = True
                assert self.book.failure == f"{site} left"
        self.settle()

    @rule(site=st.sampled_from(SITES))
    def comes_back(self, site: str) -> None:
        if self.book.back(site):
            self.story.away.discard(site)

    @rule(seconds=st.floats(0, 30), site=st.sampled_from(SITES))
    def time_passes(self, seconds: float, site: str) -> None:
        self.now += seconds
        self.book.tasks_for(site, self.now)
        if self.book.timer:
            assert self.book.timer.round == self.kept_rounds
            self.timers.append(self.book.timer)

    @rule(data=st.data())
    def a_timer_rings(self, data: st.DataObject) -> None:
        """Any timer that was ever set, of whatever round."""
        timer = data.draw(st.sampled_from(self.timers))
        rings = timer == self.book.timer and self.book.phase is Phase.OPEN
        self.book.time_up(timer)
        if rings:
            enough = len(self.story.partakers(self.crux)) >= self.minimum
            self.closing, self.ended = enough, not enough
            if not enough:
                missing = sorted(self.story.asked - self.story.partakers(self.crux))
                assert f"missing: {', '.join(missing)}" in str(self.book.failure)

    @precondition(lambda self: self.now > 60)
    @rule()
    def cancel(self) -> None:
        if not self.book.over:
            self.ended = True
        self.book.end("cancelled")

    @precondition(lambda self: self.closing and not self.ended)
    @rule(site=st.sampled_from(SITES), stops=st.booleans(), leaves=st.booleans(), killed=st.booleans())
    def is_kept(self, site: str, stops: bool, leaves: bool, killed: bool) -> None:
        """Its outcome goes to disk, with whom the next round asks; meanwhile a site may leave, or the director die."""
        if stops:
            self.book.ends_with(self.kept_rounds + 1)
            self.last = min(self.last, self.kept_rounds + 1)
        self.chosen = self.book.choose()
        if leaves:
            self.leaves(site, for_good=False)
        self.kept_rounds += 1
        if killed:
            self.restart()
            return
        self.book.kept()
        before, self.story = self.story, Reference()
        self.story.away, self.story.out = before.away, before.out
        self.story.asked = set(self.book.asked)
        self.closing = False
        if self.book.phase is Phase.FAILED:
            self.ended = True
            assert len(self.story.asked - self.story.away) < self.minimum
            assert all(site in str(self.book.failure) for site in self.story.away | self.story.out)

    def settle(self) -> None:
        """A round closes when nobody owes anything, and not before."""
        if not self.closing and not self.ended and not self.story.owed(self.wanted):
            self.closing = True

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "story"):
            return
        book, story = self.book, self.story
        if self.kept_rounds > self.last:
            assert book.phase is (Phase.FINISHED if not self.ended else book.phase)
            return
        expected = Phase.FAILED if self.ended else Phase.CLOSING if self.closing else Phase.OPEN
        if len(story.asked - story.away - story.out) < self.minimum and not story.answers:
            expected = Phase.FAILED
        assert book.phase is expected, (book.failure, story.answers, story.asked)
        assert (book.failure is not None) == (book.phase is Phase.FAILED)
        assert book.number == self.kept_rounds
        assert set(book.took_part) == story.partakers(self.crux)
        assert set(book.missing) == story.asked - story.partakers(self.crux)
        for task in self.wanted:
            assert set(book.answered(task)) == {site for site, each in story.answers if each == task}
        if book.phase is Phase.OPEN:
            assert book.waiting == story.owed(self.wanted)
            assert book.waiting, "nobody is waited for, and it does not close"
        if book.phase is Phase.CLOSING:
            assert len(book.took_part) >= self.minimum
            assert set(book.took_part) <= set(book.asked)


TestStory = Story.TestCase
TestStory.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
