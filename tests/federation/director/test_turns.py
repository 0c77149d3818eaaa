from collections import Counter
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from federation.director.turns import PATIENCE, Entry, Turns, turns

SITES = ("a", "b", "c", "d")


def entry(name: str, sites: str, **about: object) -> Entry:
    return Entry(name, frozenset(sites), **about)  # type: ignore[arg-type]


def test_different_sites_run_side_by_side_and_the_same_sites_one_after_the_other() -> None:
    entries = [entry("1", "ab"), entry("2", "b"), entry("3", "cd")]
    assert turns(entries, {}) == Turns(("1", "3"), (), {})
    assert turns(entries, {"b": 2}).start == ("1", "2", "3")
    assert turns(entries, {"a": 2}).start == ("1", "3")


def test_what_waits_for_an_owner_holds_nobody_up() -> None:
    waits = entry("1", "ab", runs=True, gives_way=True)
    assert turns([waits, entry("2", "ab")], {}) == Turns(("2",), ("1",), {})
    assert turns([waits, entry("2", "cd")], {}) == Turns(("2",), (), {})  # it is in nobody's way
    assert turns([waits, entry("2", "ab")], {"a": 2, "b": 2}) == Turns(("2",), (), {})
    assert turns([waits], {}) == Turns((), (), {})
    parked = entry("1", "ab", waits_for_owner=True)
    assert turns([parked, entry("2", "ab")], {}) == Turns(("2",), (), {})
    assert turns([replace(parked, waits_for_owner=False), entry("2", "ab")], {}) == Turns(("1",), (), {})


def test_one_that_waits_is_passed_by_a_few_only() -> None:
    runs, large = entry("0", "a", runs=True), entry("1", "ab")
    assert turns([runs, large, entry("2", "b")], {}) == Turns(("2",), (), {"1": 1})
    patient = replace(large, passed=PATIENCE)
    assert turns([runs, patient, entry("2", "b"), entry("3", "c")], {}) == Turns(("3",), (), {})
    many = [entry(str(number), "b") for number in range(2, 12)]
    decided = turns([runs, large, *many], {"b": 100})
    assert len(decided.start) == decided.passed["1"] == PATIENCE


entries = st.lists(
    st.builds(
        Entry,
        name=st.just(""),
        sites=st.frozensets(st.sampled_from(SITES), min_size=1),
        runs=st.booleans(),
        gives_way=st.booleans(),
        waits_for_owner=st.booleans(),
        passed=st.integers(0, PATIENCE),
    ),
    max_size=12,
).map(
    lambda given: [
        replace(each, name=str(number), waits_for_owner=each.waits_for_owner and not each.runs)
        for number, each in enumerate(given)
    ]
)
slots = st.dictionaries(st.sampled_from(SITES), st.integers(1, 3))


def holders(entries: list[Entry], decided: Turns) -> Counter[str]:
    """How many experiments each site works on after the decision, those apart that give way."""
    at_work = [each for each in entries if (each.runs and not each.gives_way) or each.name in decided.start]
    return Counter(site for each in at_work for site in each.sites)


@given(entries, slots)
def test_whatever_waits(given: list[Entry], slots: dict[str, int]) -> None:
    decided = turns(given, slots)
    by_name = {each.name: each for each in given}
    at_work = holders(given, decided)
    before = holders(given, Turns((), (), {}))
    # No site works on more than it has slots for, because of what starts.
    for site in SITES:
        assert at_work[site] <= max(before[site], slots.get(site, 1))
    # Only what waits, and for nobody's word, starts; only what gives way stops, and only where a slot is needed.
    assert all(not by_name[name].runs and not by_name[name].waits_for_owner for name in decided.start)
    for name in decided.stop:
        assert by_name[name].gives_way
        started = [by_name[each].sites for each in decided.start]
        assert any(sites & by_name[name].sites for sites in started)
    # Who does not start could not, or would pass one that has been passed often enough.
    for number, each in enumerate(given):
        if each.runs or each.waits_for_owner or each.name in decided.start:
            continue
        full = any(at_work[site] >= slots.get(site, 1) for site in each.sites)
        impatient = any(
            earlier.sites & each.sites
            and not (earlier.runs or earlier.waits_for_owner or earlier.name in decided.start)
            and earlier.passed + decided.passed.get(earlier.name, 0) >= PATIENCE
            for earlier in given[:number]
        )
        assert full or impatient
    # Nobody who waits is passed more often than that.
    for name, times in decided.passed.items():
        assert by_name[name].passed + times <= max(PATIENCE, by_name[name].passed)
    # The first that waits for nobody's word and finds its sites free has its turn.
    ready = [each for each in given if not each.runs and not each.waits_for_owner]
    if ready and all(before[site] < slots.get(site, 1) for site in ready[0].sites):
        assert ready[0].name in decided.start


@given(st.lists(st.frozensets(st.sampled_from(SITES), min_size=1), min_size=1, max_size=12), st.randoms())
@settings(max_examples=30)
def test_everyone_has_a_turn_however_many_come_later(sites: list[frozenset[str]], random: object) -> None:
    """Experiments end one at a time, in any order, and each time one more is submitted: the first ones all ran."""
    queue = [Entry(str(number), each) for number, each in enumerate(sites)]
    passed: Counter[str] = Counter()
    started: list[str] = []
    number = len(queue)
    for _ in range(len(sites) * (PATIENCE + 2)):
        decided = turns([replace(each, passed=passed[each.name]) for each in queue], {})
        passed.update(decided.passed)
        started += decided.start
        queue = [replace(each, runs=each.runs or each.name in decided.start) for each in queue]
        running = [each for each in queue if each.runs]
        over = random.choice(running)  # type: ignore[attr-defined]
        queue = [each for each in queue if each is not over]
        queue.append(Entry(str(number), frozenset(random.sample(SITES, 1))))  # type: ignore[attr-defined]
        number += 1
    assert {str(each) for each in range(len(sites))} <= set(started)
