"""What an experiment may say of itself: whatever bytes arrive, a description or every problem at once."""

import json
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from federation.policy import RoundPolicy
from federation.wire.description import MAX_BYTES, MAX_DEPTH, Description
from federation.wire.updates import FORMATS
from rules.sampling import Sampling
from rules.scores import Score

NUMBERS = st.one_of(st.integers(-(2**64), 2**64), st.floats(allow_nan=False, allow_infinity=False))
TEXTS = st.text(st.characters(exclude_categories=()), max_size=20)  # half of a surrogate pair too
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXTS, inner, max_size=4)),
    max_leaves=20,
)
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,9}", fullmatch=True)
SECONDS = st.floats(0, 10**8, exclude_min=True)
DESCRIPTIONS = st.builds(
    Description,
    id=st.from_regex(r"[0-9a-f]{32}", fullmatch=True),
    rounds=st.integers(1, 1_000_000),
    best_metric=st.text(st.characters(categories=["L", "N", "P"]), min_size=1, max_size=100),
    best_direction=st.sampled_from(["max", "min"]),
    rule=st.builds(lambda name, numbers: {**numbers, "name": name}, NAMES, st.dictionaries(NAMES, NUMBERS, max_size=4)),
    policy=st.builds(
        RoundPolicy,
        minimum_sites=st.integers(1, 1000),
        round_seconds=st.none() | SECONDS,
        gone_seconds=SECONDS,
        retries=st.integers(0, 10),
    ),
    scores=st.sampled_from([{}, {"accuracy": asdict(Score("ratio", {"right": 1.5}, {"true": 1}, "true"))}]),
    update_format=st.sampled_from(list(FORMATS)),
    keep_optimizer=st.booleans(),
    entry_point=st.builds("{}.{}:{}".format, NAMES, NAMES, NAMES),
    settings=st.dictionaries(TEXTS, VALUES, max_size=4),
    sampling=st.none()
    | st.builds(
        Sampling,
        sites=st.integers(1, 9) | st.floats(0, 1, exclude_min=True, exclude_max=True),
        seed=st.integers(0, 2**32 - 1),
    ),
    patience=st.none() | st.integers(1, 100),
)


SCORES = {"accuracy": asdict(Score("ratio", {"right": 1}, {"true": 1}))}


def sample(**changes: Any) -> Description:
    values = {
        "id": "0123456789abcdef" * 2,
        "rounds": 3,
        "best_metric": "accuracy",
        "entry_point": "toy.experiment:experiment",
        "policy": RoundPolicy(minimum_sites=2),
        "settings": {"size": 4},
        "sampling": Sampling(0.5, seed=7),
    }
    return Description(**(values | changes))


def document(**changes: Any) -> dict[str, Any]:
    return {**json.loads(sample().to_bytes()), **changes}


def written(content: Any) -> bytes:
    return json.dumps(content).encode()


@settings(max_examples=50, deadline=None)
@given(DESCRIPTIONS)
def test_what_is_written_is_read_again(description: Description) -> None:
    content = description.to_bytes()
    assert Description.from_bytes(content) == description
    assert Description.from_bytes(content).to_bytes() == content


def test_the_form_on_disk() -> None:
    assert json.loads(
        sample(rule={"name": "trimmed", "share": 0.1}, best_direction="min", scores=SCORES).to_bytes()
    ) == {
        "version": 1,
        "id": "0123456789abcdef" * 2,
        "rounds": 3,
        "rule": {"name": "trimmed", "share": 0.1},
        "best": {"metric": "accuracy", "direction": "min"},
        "scores": {"accuracy": {"kind": "ratio", "top": {"right": 1}, "bottom": {"true": 1}, "among": None}},
        "policy": {"minimum_sites": 2, "round_seconds": None, "gone_seconds": 120.0, "retries": 0},
        "update_format": "float32",
        "keep_optimizer": True,
        "entry_point": "toy.experiment:experiment",
        "settings": {"size": 4},
        "sampling": {"sites": 0.5, "seed": 7},
        "patience": None,
    }


def test_the_rule_comes_apart() -> None:
    description = sample(rule={"name": "trimmed", "share": 0.1})
    assert (description.rule_name, description.rule_numbers) == ("trimmed", {"share": 0.1})
    assert description.package == "toy"


def test_what_lasts_is_the_same_for_another_id_and_policy_and_for_nothing_else() -> None:
    again = sample(
        id="f" * 32, policy=RoundPolicy(minimum_sites=1, round_seconds=5.0, retries=2), sampling=Sampling(2), patience=3
    )
    assert again.lasting() == sample().lasting()
    for change in ({"rounds": 4}, {"settings": {"size": 5}}, {"entry_point": "toy.experiment:other"}):
        assert sample(**change).lasting() != sample().lasting()
    assert sample(rule={"name": "median"}).lasting() != sample().lasting()


ANY = st.one_of(VALUES, st.sampled_from([float("nan"), float("inf"), 10**400, -1, 0, "", "max", [], {}]))


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        VALUES.map(written),
        st.dictionaries(st.sampled_from([*document(), "plan", ""]), ANY).map(
            lambda change: written(document(**change))
        ),
        st.tuples(
            st.sampled_from(["policy", "best", "rule", "sampling"]),
            TEXTS | st.sampled_from(["name", "retries", "sites", "seed"]),
            ANY,
        ).map(lambda each: written(document(**{each[0]: {**document()[each[0]], each[1]: each[2]}}))),
        st.integers(1, 200_000).map(lambda depth: b"[" * depth),
        st.integers(1, 30_000).map(lambda depth: b'{"settings":' * depth + b"1" + b"}" * depth),
    )
)
def test_whatever_arrives_it_is_a_description_or_a_value_error(content: bytes) -> None:
    said, description = "", None
    try:
        description = Description.from_bytes(content)
    except ValueError as error:
        said = str(error)
    assert said.encode() or description  # what it says goes over the wire: no half of a surrogate pair
    if description:
        assert Description.from_bytes(description.to_bytes()) == description


def test_every_problem_at_once() -> None:
    wrong = document(
        id="no", rounds=0, scores={"a": {"kind": "sum", "top": {}, "bottom": {"n": 1}}}, keep_optimizer=1,
        rule={"name": "mean", "share": "much"}, best={"metric": "", "direction": "up"}, update_format="zip",
        policy={"minimum_sites": None, "round_seconds": -1, "retries": 99}, entry_point="os.system", settings=[],
        extra=1,
    )  # fmt: skip
    with pytest.raises(ValueError, match="missing") as caught:
        Description.from_bytes(written(wrong))
    said = str(caught.value)
    for name in (
        "id is", "rounds is", "rule.share is", "best.metric is", "best.direction is", "policy.minimum_sites is null",
        "policy.round_seconds is", "policy.retries is", "policy.gone_seconds is missing", "update_format is",
        "keep_optimizer is", "entry_point is", "settings is", "'extra' is not known here", "scores.a.kind is",
        "scores.a.top is",
    ):  # fmt: skip
        assert name in said, name
    assert len(said.splitlines()) == 16


@pytest.mark.parametrize("name", sorted(document()))
def test_what_is_missing_is_named(name: str) -> None:
    content = document()
    del content[name]
    with pytest.raises(ValueError, match=f"^{name} is missing$"):
        Description.from_bytes(written(content))


@pytest.mark.parametrize("version", [0, 2, "1", True, None, 1.0])
def test_another_version_is_refused_with_what_to_do(version: object) -> None:
    with pytest.raises(ValueError, match=r"^version is .*; this federation reads version 1: use its own notebook$"):
        Description.from_bytes(written(document(version=version, more={})))


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999", "1" + "0" * 30])
def test_numbers_that_are_none_are_refused_wherever_they_are(number: str) -> None:
    for content in (
        document(settings={"a": [{"b": "HERE"}]}),
        document(rule={"name": "mean", "b": "HERE"}),
        document(rounds="HERE"),
        document(policy={**document()["policy"], "gone_seconds": "HERE"}),
    ):
        with pytest.raises(ValueError, match=r"settings\.a\[0\]\.b|rule\.b|rounds|gone_seconds"):
            Description.from_bytes(written(content).replace(b'"HERE"', number.encode()))


@pytest.mark.parametrize("number", ["9" * 5000, "[" * 500, '"\\ud800'])
def test_json_that_python_stumbles_over(number: str) -> None:
    with pytest.raises(ValueError, match="not JSON"):
        Description.from_bytes(written(document(rounds="HERE")).replace(b'"HERE"', number.encode()))


def test_a_key_that_is_there_twice_is_refused() -> None:
    twice = (
        sample()
        .to_bytes()
        .replace(b'"rounds": 3,', b'"rounds": 3, "rounds": 4,')
        .replace(b'"size": 4', b'"size": 4, "size": 5')
    )
    with pytest.raises(ValueError, match=r"'size' is there 2 times\n'rounds' is there 2 times"):
        Description.from_bytes(twice)


def test_other_encodings_are_refused() -> None:
    for encoding in ("utf-16", "utf-8-sig", "utf-32"):
        with pytest.raises(ValueError, match="not JSON in UTF-8"):
            Description.from_bytes(sample().to_bytes().decode().encode(encoding))


def test_sizes_are_bounded() -> None:
    with pytest.raises(ValueError, match="up to 256 KiB"):
        Description.from_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(ValueError, match="settings have up to 128 KiB"):
        sample(settings={"text": "x" * MAX_BYTES})
    with pytest.raises(ValueError, match="rule has 61 entries"):
        sample(rule={"name": "mean", **{f"n{number}": number for number in range(60)}})


def test_depth_is_bounded() -> None:
    nested: Any = 1
    for _ in range(MAX_DEPTH - 1):
        nested = {"deeper": nested}
    sample(settings=nested)
    with pytest.raises(ValueError, match="nested more than 20 deep"):
        sample(settings={"deeper": nested})


@pytest.mark.parametrize("value", [(1, 2), {1}, b"", object(), 2**65])
def test_a_notebook_is_told_what_json_does_not_have(value: object) -> None:
    with pytest.raises(ValueError, match=r"settings\.a\[0\] is"):
        sample(settings={"a": [value]})
    with pytest.raises(ValueError, match="the key 1 is no text"):
        sample(settings={"a": {1: 2}})


def test_a_description_of_nothing_but_problems_is_refused_at_once_and_in_few_words() -> None:
    keys = ",".join(f'"{number}":1,"{number}":2' for number in range(10_000))
    with pytest.raises(ValueError, match=r"and [0-9]{5} problems more$") as caught:
        Description.from_bytes(f"{{{keys}}}".encode())
    assert len(str(caught.value)) < 10_000
