from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from answers import LABELS, answered, predictions
from sklearn.metrics import accuracy_score, log_loss

from kws.metrics import Evaluation
from lab.predictions import Predictions
from lab.session import figures
from shard_descriptors.utterances import Utterance

MODELS = ("federated", "pooled", "envoy alone", "envoy_two alone")


def test_every_figure_of_the_comparison_is_made_of_the_file(tmp_path: Path) -> None:
    some = predictions(np.random.default_rng(0), models=MODELS)
    some.save(tmp_path / "predictions.parquet")
    again = Predictions.load(tmp_path / "predictions.parquet")
    sites = ("envoy", "envoy_two")
    assert figures(again, "macro_f1", sites) == figures(some, "macro_f1", sites)
    assert again.speakers == some.speakers
    assert again.names == some.names
    for model in MODELS:
        np.testing.assert_array_equal(again.evaluations[model].logits, some.evaluations[model].logits)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.parquet"]


def test_the_file_is_a_table_that_others_can_read(tmp_path: Path) -> None:
    some = predictions(np.random.default_rng(1), models=MODELS)
    some.save(tmp_path / "predictions.parquet")
    table = pd.read_parquet(tmp_path / "predictions.parquet")
    assert list(table.columns) == ["model", "utterance", "start", "speaker", "split", "label"] + [
        f"logit {label}" for label in LABELS
    ]
    assert set(table["split"]) == {"test"}
    assert table["speaker"].isna().sum() == 50 * len(MODELS)
    for model, rows in table.groupby("model"):
        logits = rows[[f"logit {label}" for label in LABELS]].to_numpy(np.float64)
        scores = some.evaluations[model].scalars()
        answers = [LABELS[number] for number in logits.argmax(axis=1)]
        assert accuracy_score(rows["label"], answers) == pytest.approx(scores["accuracy"])
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        truth = [LABELS.index(label) for label in rows["label"]]
        assert log_loss(truth, shares, labels=range(4)) == pytest.approx(scores["loss"])


def test_speakers_one_by_one() -> None:
    labels = np.zeros(6, np.int64)
    evaluations = {
        "federated": answered(labels, np.array([1, 0, 1, 1, 0, 1], bool)),
        "pooled": answered(labels, np.array([1, 1, 0, 0, 0, 1], bool)),
    }
    rows = [
        Utterance(f"{n}.wav", "", "yes", speaker, "test") for n, speaker in enumerate(["b", "b", "a", "a", None, "c"])
    ]
    some = Predictions.of(evaluations, rows, LABELS)
    units, speakers = some.units
    assert (list(units), speakers) == ([1, 1, 0, 0, 3, 2], 3)
    table = some.by_speaker()
    assert table.loc["b"].to_dict() == {"utterances": 2, "federated": 0.5, "pooled": 1.0}
    assert table.loc["a"].to_dict() == {"utterances": 2, "federated": 1.0, "pooled": 0.0}
    assert table.index[0] == "b", "the most difficult first"
    assert some.by_speaker("loss").index[0] == "b", "where more is worse, too"
    found = figures(some, "accuracy", ())
    assert found["worst_speaker"] == {"federated": 0.5, "pooled": 0.0}


def test_models_are_compared_on_the_same_utterances() -> None:
    some = predictions(np.random.default_rng(2))
    other = some.evaluations["pooled"]
    for wrong in (
        Evaluation((other.labels + 1) % 4, other.logits),
        Evaluation(other.labels[1:], other.logits[1:]),
        Evaluation(other.labels, np.hstack([other.logits, other.logits])),
    ):
        with pytest.raises(ValueError, match="pooled was not evaluated on the same"):
            Predictions({"federated": other, "pooled": wrong}, some.speakers, some.labels, some.names, some.splits)


def test_without_models_or_speakers(tmp_path: Path) -> None:
    nothing = Predictions({}, (), LABELS, (), ())
    nothing.save(tmp_path / "p.parquet")
    assert Predictions.load(tmp_path / "p.parquet") == nothing
    evaluation = answered(np.zeros(3, np.int64), np.ones(3, bool))
    nobody = Predictions({"federated": evaluation}, (None,) * 3, LABELS, (("a", 0), ("a", 1), ("b", 0)), ("test",) * 3)
    assert nobody.by_speaker().empty
    found = figures(nobody, "accuracy", ())
    assert found["worst_speaker"] == {}
    assert found["drawn"] == "3 utterances"
