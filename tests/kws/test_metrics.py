import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score
from small_network import quick

from kws.metrics import Evaluation

NAMES = ("yes", "no", "up")


def evaluation(pairs: list[tuple[int, int, float]]) -> Evaluation:
    """From (label, answer, loss) of each utterance."""
    labels, answers, losses = zip(*pairs, strict=True)
    return Evaluation(np.array(labels), np.array(answers), float(np.mean(losses)))


answers = st.tuples(st.integers(0, 2), st.integers(0, 2), st.floats(0, 20))


@st.composite
def parts(draw: st.DrawFn) -> list[list[tuple[int, int, float]]]:
    return draw(st.lists(st.lists(answers, min_size=1, max_size=8), min_size=2, max_size=6))


@quick
@given(parts(), st.randoms())
def test_merging_any_split_in_any_order_equals_the_evaluation_of_all(
    split: list[list[tuple[int, int, float]]], random: object
) -> None:
    whole = evaluation([pair for part in split for pair in part])
    random.shuffle(split)
    merged = evaluation(split[0])
    for part in split[1:]:
        merged = merged.merge(evaluation(part))
    assert merged.scalars() == pytest.approx(whole.scalars())
    assert (merged.confusion(NAMES) == whole.confusion(NAMES)).all(axis=None)


@quick
@given(st.lists(answers, min_size=1, max_size=20))
def test_scores_agree_with_the_confusion_matrix(pairs: list[tuple[int, int, float]]) -> None:
    scored = evaluation(pairs)
    counts = scored.confusion(NAMES)
    assert list(counts.sum(axis=1)) == [sum(label == number for label, _, _ in pairs) for number in range(3)]
    assert np.trace(counts.to_numpy()) == round(scored.accuracy * len(pairs))
    table = scored.per_label(NAMES)
    assert list(table["utterances"]) == list(counts.sum(axis=1))
    present = table[table["utterances"] > 0]
    assert scored.macro_f1 == pytest.approx(present["f1"].mean())
    assert scored.macro_f1 == pytest.approx(
        f1_score(scored.labels, scored.predictions, labels=np.unique(scored.labels), average="macro", zero_division=0)
    )


def test_by_hand() -> None:
    scored = Evaluation(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), loss=0.5)
    # yes: precision 1, recall 2/3, F1 0.8. no: precision 1/2, recall 1, F1 2/3. up does not occur and does not count.
    assert scored.scalars() == pytest.approx({"loss": 0.5, "accuracy": 0.75, "macro_f1": (0.8 + 2 / 3) / 2})
    assert scored.confusion(NAMES).loc["yes", "no"] == 1
    assert scored.confusion(NAMES).loc["no", "yes"] == 0
    assert scored.per_label(NAMES).loc["yes"].to_dict() == pytest.approx(
        {"precision": 1.0, "recall": 2 / 3, "f1": 0.8, "utterances": 3}
    )
    assert scored.per_label(NAMES).loc["up", "utterances"] == 0
