import pytest

from federation.policy import RoundPolicy


def test_a_policy_is_told_how_many_sites_there_are() -> None:
    assert RoundPolicy().among(5).minimum_sites == 5
    assert RoundPolicy(minimum_sites=2, retries=1).among(5) == RoundPolicy(minimum_sites=2, retries=1)
    with pytest.raises(
        ValueError, match="minimum_sites is 3, and a round asks only 2 sites; start more, ask more or need fewer"
    ):
        RoundPolicy(minimum_sites=3).among(2)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("minimum_sites", [0, -1, True, 1.0, "2", 10**9]),
        ("round_seconds", [0, -1.0, float("nan"), float("inf"), True, "60", 10**9]),
        ("gone_seconds", [0, -1.0, float("nan"), float("inf"), True, "60", None]),
        ("retries", [-1, 11, 10**9, True, 1.0, "many", None]),
    ],
)
def test_every_number_is_held_to_its_kind_and_limits(name: str, values: list[object]) -> None:
    for value in values:
        with pytest.raises(ValueError, match=rf"^{name} is "):
            RoundPolicy(**{name: value})  # type: ignore[arg-type]


def test_every_problem_at_once() -> None:
    with pytest.raises(
        ValueError, match=r"minimum_sites is 0.*\nround_seconds is -1.*\ngone_seconds is 0.*\nretries is 99"
    ):
        RoundPolicy(minimum_sites=0, round_seconds=-1, gone_seconds=0, retries=99)
