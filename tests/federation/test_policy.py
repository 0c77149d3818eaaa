import pytest
import yaml

from federation.policy import RoundPolicy, retries_of


def plan_of(policy: RoundPolicy) -> dict:
    plan: dict = {"aggregator": {"settings": {}}}
    policy.add_to(plan, sites=2)
    return yaml.safe_load(yaml.safe_dump(plan))


def test_retries_travel_in_the_plan() -> None:
    assert retries_of(plan_of(RoundPolicy())) == 0
    assert retries_of(plan_of(RoundPolicy(retries=2))) == 2


@pytest.mark.parametrize("plan", [None, [], {}, {"envoy": None}, {"envoy": {"settings": {"retries": None}}}])
def test_a_plan_that_does_not_say(plan: object) -> None:
    assert retries_of(plan) == 0


@pytest.mark.parametrize("retries", [-1, 11, 10**9, "many"])
def test_retries_have_a_limit(retries: object) -> None:
    with pytest.raises(ValueError, match=r"retries is .*allowed: 0 to 10|invalid literal"):
        retries_of({"envoy": {"settings": {"retries": retries}}})
