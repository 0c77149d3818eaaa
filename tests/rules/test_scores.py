"""How metrics merge: by hand, as any partition of the examples would have it, and what is refused."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, jaccard_score, recall_score

from rules.scores import KINDS, MOST_METRICS, MOST_SCORES, Score, is_sum, merge, problems, read, refusal

ACCURACY = Score("ratio", {"right": 1}, {"true": 1})
F1 = Score("mean", {"right": 2}, {"true": 1, "answered": 1}, among="true")
IOU = Score("mean", {"right": 1}, {"true": 1, "answered": 1, "right": -1}, among="true")
WORST = Score("least", {"right": 1}, {"true": 1})
GAPS = Score("gaps", {"confidence": 1, "hits": -1}, {"true": 1})
SCORES = {"accuracy": ACCURACY, "f1": F1, "iou": IOU, "worst": WORST, "gaps": GAPS}
LABELS = 4

quick = settings(max_examples=100, deadline=None)
pairs = st.lists(st.tuples(st.integers(0, LABELS - 1), st.integers(0, LABELS - 1)), min_size=1, max_size=40)


def counted(answers: list[tuple[int, int]]) -> dict[str, float]:
    """Sums of (label, answer) pairs; the odd ones are answered with 0.75, the even ones with 0.5."""
    sums: dict[str, float] = {}
    for label, answer in answers:
        confidence = 0.75 if answer % 2 else 0.5
        for name, value in (
            (f"true/{label}", 1), (f"answered/{answer}", 1), (f"right/{label}", label == answer),
            (f"confidence/{confidence}", confidence), (f"hits/{confidence}", label == answer),
        ):  # fmt: skip
            if value:
                sums[f"sum/{name}"] = sums.get(f"sum/{name}", 0.0) + value
    return sums


def test_by_hand() -> None:
    # label 0: two of three right; label 1: its one right, and one answer of label 0's.
    sums = counted([(0, 0), (0, 0), (0, 1), (1, 1)])
    assert merge({"a": sums}, {"a": 4}, SCORES) == {name: float(value) for name, value in sums.items()} | {
        "accuracy": 0.75,
        "f1": pytest.approx((0.8 + 2 / 3) / 2),
        "iou": pytest.approx((2 / 3 + 1 / 2) / 2),
        "worst": pytest.approx(2 / 3),
        "gaps": pytest.approx((abs(2 * 0.5 - 2) + abs(2 * 0.75 - 1)) / 4),
    }


@quick
@given(st.lists(pairs, min_size=1, max_size=6), st.randoms())
def test_any_partition_in_any_order_scores_as_one_evaluation_of_all(
    parts: list[list[tuple[int, int]]], random: object
) -> None:
    whole = [pair for part in parts for pair in part]
    pooled = merge({"all": counted(whole)}, {"all": len(whole)}, SCORES)
    random.shuffle(parts)
    sites = {f"site{number}": part for number, part in enumerate(parts)}
    sizes = {site: len(part) for site, part in sites.items()}
    assert merge({site: counted(part) for site, part in sites.items()}, sizes, SCORES) == pooled  # to the last bit
    labels, answers = zip(*whole, strict=True)
    present = sorted(set(labels))
    settings = {"labels": present, "average": "macro", "zero_division": 0.0}
    assert pooled["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    assert pooled["f1"] == pytest.approx(f1_score(labels, answers, **settings))
    assert pooled["iou"] == pytest.approx(jaccard_score(labels, answers, **settings))
    assert pooled["worst"] == pytest.approx(min(recall_score(labels, answers, labels=present, average=None)))


def test_the_mean_of_the_sites_scores_would_choose_the_worse_model() -> None:
    """Two sites with labels of their own: the first model's mistakes fall on the other site's labels, where it costs no
    site's own macro F1 anything."""

    def sites(confused_with: int, wrong: int) -> dict[str, dict[str, float]]:
        north = [(0, 0)] * (100 - wrong) + [(0, confused_with)] * wrong + [(1, 1)] * 100
        return {"north": counted(north), "south": counted([(2, 2)] * 100 + [(3, 3)] * 100)}

    sizes = {"north": 200, "south": 200}
    merged, means = {}, {}
    for name, sent in (("worse", sites(2, 40)), ("better", sites(1, 35))):
        merged[name] = merge(sent, sizes, SCORES)["f1"]
        means[name] = np.mean([merge({site: each}, sizes, SCORES)["f1"] for site, each in sent.items()])
    assert merged == pytest.approx({"worse": 0.8958333, "better": 0.9097356}, abs=1e-6)
    assert means["worse"] > means["better"]
    assert merged["worse"] < merged["better"]


def test_means_are_weighed_and_a_site_that_lacks_one_does_not_count() -> None:
    sent = {"a": {"loss": 1.0, "seconds": 8.0}, "b": {"loss": 2.0}}
    assert merge(sent, {"a": 1, "b": 3}) == {"loss": 1.75, "seconds": 8.0}
    assert merge({"a": {}}, {"a": 1}, SCORES) == {}
    assert merge({"a": {"loss": 1.0}}, {"a": 1}, SCORES) == {"loss": 1.0}, "no sums, so no scores"


def test_a_score_without_anything_to_divide_by_is_left_out() -> None:
    assert merge({"a": {"sum/right/0": 1.0}}, {"a": 1}, SCORES) == {"sum/right/0": 1.0}
    for score in SCORES.values():
        assert math.isnan(score.of({}))


def test_arrays_are_computed_place_by_place() -> None:
    samples = [counted(answers) for answers in ([(0, 0), (1, 0)], [(0, 0), (1, 1), (1, 1)], [(2, 0)])]
    names = sorted({name for sample in samples for name in sample})
    stacked = {name: np.array([sample.get(name, 0.0) for sample in samples]) for name in names}
    for score in SCORES.values():
        np.testing.assert_allclose(score.of(stacked), [score.of(sample) for sample in samples])
    assert np.isnan(F1.of({"sum/true/0": np.array([0.0, 1.0])})).tolist() == [True, False]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_refused_with_site_and_metric(value: float) -> None:
    words = refusal("north", "validate_local", {"sum/true": 1.0, "sum/loss": value})
    assert words is not None
    assert all(part in words for part in ("north", "validate_local", "sum/loss", str(value)))


def test_metrics_are_bounded() -> None:
    assert refusal("north", "train", {str(number): 0.0 for number in range(MOST_METRICS)}) is None
    words = refusal("north", "train", {str(number): 0.0 for number in range(MOST_METRICS + 1)})
    assert words == f"site north, task train: {MOST_METRICS + 1} metrics; allowed: {MOST_METRICS}"
    for name in ("", "x" * 101, "a\nb"):
        assert "a metric has the name" in (refusal("north", "train", {name: 0.0}) or "")
    assert "allowed: up to 1e+100" in (refusal("north", "train", {"loss": -1e101}) or "")
    sites = [str(number) for number in range(1000)]
    merged = merge({site: {"sum/a": 1e100, "b": 1e100} for site in sites}, dict.fromkeys(sites, 10**9))
    assert all(map(math.isfinite, merged.values()))


def test_scores_travel_as_json() -> None:
    text = json.dumps({name: asdict(score) for name, score in SCORES.items()})
    assert read(json.loads(text)) == SCORES


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ([], "scores are []; allowed: an object"),
        ({"a": 1}, "scores.a is 1; allowed: an object"),
        ({"sum/a": {}}, "a score has the name 'sum/a'"),
        ({"a": asdict(F1) | {"kind": "median"}}, f"scores.a.kind is 'median'; allowed: {', '.join(KINDS)}"),
        ({"a": asdict(F1) | {"top": {}}}, "scores.a.top is {}; allowed: 1 to 20 names"),
        ({"a": asdict(F1) | {"top": {"x/y": 1}}}, "scores.a.top: 'x/y' names no sum"),
        ({"a": asdict(F1) | {"bottom": {"true": math.nan}}}, "scores.a.bottom.true is nan; allowed: numbers"),
        ({"a": asdict(F1) | {"among": 3}}, "scores.a.among is 3; allowed: the name of a sum, or null"),
        ({"a": asdict(F1) | {"code": "x"}}, "scores.a.'code' is not known here"),
        ({str(number): asdict(F1) for number in range(MOST_SCORES + 1)}, f"there are {MOST_SCORES + 1} scores"),
    ],
)
def test_scores_that_cannot_be_used(scores: object, words: str) -> None:
    assert any(words in problem for problem in problems(scores)), list(problems(scores))
    with pytest.raises(ValueError, match=r"score"):
        read(scores)


def test_every_problem_of_a_score_is_told_at_once() -> None:
    with pytest.raises(ValueError, match=r"kind is 'x'.*\ntop is 3.*\nbottom is") as caught:
        Score("x", 3, {})
    assert len(str(caught.value).splitlines()) == 3


def test_what_is_a_sum() -> None:
    assert is_sum("sum/loss")
    assert not is_sum("loss")
