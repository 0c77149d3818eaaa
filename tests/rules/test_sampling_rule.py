"""Whom a round asks."""

from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rules.sampling import Sampling

NAMES = st.sets(st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8), min_size=1)


@given(sites=NAMES, round_number=st.integers(0, 500), seed=st.integers(0, 2**32 - 1), data=st.data())
def test_a_draw_is_some_of_those_that_are_there(
    sites: set[str], round_number: int, seed: int, data: st.DataObject
) -> None:
    wanted = data.draw(st.one_of(st.integers(1, 12), st.floats(0.01, 0.99)))
    present = data.draw(st.sets(st.sampled_from(sorted(sites))))
    sampling = Sampling(wanted, seed)
    drawn = sampling.draw(round_number, sites, present)
    assert set(drawn) <= present
    assert len(set(drawn)) == len(drawn) == min(len(present), sampling.number(len(sites)))
    assert drawn == sampling.draw(round_number, sorted(sites), sorted(present, reverse=True))
    if away := data.draw(st.sampled_from([None, *drawn])):
        others = sampling.draw(round_number, sites, present - {away})
        assert set(drawn) - {away} <= set(others)


def test_every_site_has_its_turn_as_often_as_the_others() -> None:
    sites = [f"site{number}" for number in range(10)]
    turns = Counter(site for done in range(2000) for site in Sampling(3, seed=7).draw(done, sites, sites))
    assert all(abs(turns[site] - 600) < 5 * (2000 * 0.3 * 0.7) ** 0.5 for site in sites)
    assert Sampling(3, seed=7).draw(1, sites, sites) != Sampling(3, seed=8).draw(1, sites, sites)


@pytest.mark.parametrize("sites", [0, -1, 1.0, 1.5, 0.0, True, "3", None, float("nan"), 10**9])
def test_how_many_are_asked_is_a_number_or_a_share(sites: object) -> None:
    with pytest.raises(ValueError, match=r"^sites is .*; a number from 1 to 1000000, or a share between 0 and 1"):
        Sampling(sites)  # type: ignore[arg-type]


@example(percent=7, sites=100)
@given(percent=st.integers(1, 99), sites=st.integers(1, 2000))
def test_a_share_is_rounded_up_and_not_beyond(percent: int, sites: int) -> None:
    assert Sampling(percent / 100).number(sites) == -(-percent * sites // 100)


@pytest.mark.parametrize("share", [1e-300, 1e-12])
def test_a_share_of_next_to_nothing_is_one_site(share: float) -> None:
    assert Sampling(share).number(3) == 1


def test_the_seed_of_a_draw() -> None:
    with pytest.raises(ValueError, match=r"sites is 0.*\nseed is -1"):
        Sampling(0, -1)
