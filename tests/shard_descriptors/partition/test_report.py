"""Counts, skew figures that can be checked by hand, and a plot whose numbers are its table's."""

import json
import math
from pathlib import Path

import matplotlib
import pytest

from shard_descriptors.labels import LABELS
from shard_descriptors.partition.contract import assign, shard_of
from shard_descriptors.partition.report import (
    MANY,
    Summary,
    label_table,
    plot_shards,
    preview,
    shard_table,
    skew,
    summarize,
)
from shard_descriptors.partition.schemes import Iid, Own, Speakers
from shard_descriptors.sources.speech_commands import load
from shard_descriptors.utterances import Utterance


@pytest.fixture(autouse=True)
def _no_window() -> None:
    matplotlib.use("Agg")


def counted(**labels: int) -> Summary:
    """A summary of a site whose train split has these labels."""
    return summarize(
        [
            Utterance(f"{label}/{n}", f"{n}.wav", label, f"{n}", "train")
            for label, number in labels.items()
            for n in range(number)
        ]
    )


def test_summarize(tiny_corpus: Path) -> None:
    summary = summarize(load(tiny_corpus).utterances)
    assert summary["speakers"] == {"train": 12, "validation": 4, "test": 4}
    assert summary["utterances"] == {"train": 193, "validation": 40, "test": 48}
    assert summary["seconds"] == {"train": 193.0, "validation": 40.0, "test": 48.0}
    assert list(summary["labels"]["test"]) == list(LABELS)
    assert summary["labels"]["test"] == dict.fromkeys(LABELS, 4)
    assert json.loads(json.dumps(summary)) == summary


def test_empty() -> None:
    summary = summarize([])
    assert summary["utterances"] == {"train": 0, "validation": 0, "test": 0}


def test_label_table(tiny_corpus: Path) -> None:
    rows = load(tiny_corpus).utterances
    assigned = assign(rows, Speakers(), 2, 0)
    sites = {f"site {i}": summarize(shard_of(rows, assigned, i)) for i in (1, 2)}
    table = label_table(sites)
    assert list(table.index) == ["site 1", "site 2"]
    assert tuple(table.columns) == LABELS
    assert table.to_numpy().sum() == 193
    assert label_table(sites, "test").to_numpy().sum() == 48
    with pytest.raises(ValueError, match="split is 'dev'; it must be one of train"):
        label_table(sites, "dev")


def test_alike_sites_have_no_skew() -> None:
    figures = skew(label_table({"a": counted(yes=3, no=1), "b": counted(yes=3, no=1)}))
    assert figures == {"label_kl": {"a": 0.0, "b": 0.0}, "label_kl_mean": 0, "quantity_gini": 0}


def test_each_site_its_own_label() -> None:
    figures = skew(label_table({"a": counted(yes=5), "b": counted(no=5)}))
    assert figures["label_kl_mean"] == pytest.approx(math.log(2))
    assert figures["quantity_gini"] == 0


def test_quantity_skew() -> None:
    figures = skew(label_table({"a": counted(yes=3), "b": counted(yes=1)}))
    assert figures["quantity_gini"] == pytest.approx(0.25)
    assert figures["label_kl_mean"] == 0


def test_site_without_utterances() -> None:
    figures = skew(label_table({"a": counted(yes=3), "b": counted()}))
    assert figures["label_kl"] == {"a": 0.0, "b": None}
    assert figures["quantity_gini"] == pytest.approx(0.5)
    json.dumps(figures, allow_nan=False)
    with pytest.raises(ValueError, match="holds no utterances"):
        skew(label_table({"a": counted()}))


def test_plot() -> None:
    figure, axes, table = plot_shards({"a": counted(yes=3, no=2), "b": counted(_silence_=4)})
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [label.strip("_") for label in LABELS]
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == table.to_numpy().T.tolist()
    figure.canvas.draw()


def test_a_plot_of_many_sites_is_sorted_and_has_no_names() -> None:
    sites = {f"site {n}": counted(yes=n % 7, no=1) for n in range(MANY + 1)}
    figure, axes, table = plot_shards(sites)
    sizes = table.sum(axis=1).tolist()
    assert sizes == sorted(sizes, reverse=True)
    assert not axes.get_yticklabels()
    figure.canvas.draw()


def test_shard_table(tiny_corpus: Path) -> None:
    table = shard_table({"all": summarize(load(tiny_corpus).utterances)})
    assert table.loc["all"].tolist()[:3] == [193, 12, 193.0]
    assert list(table.columns) == ["utterances", "speakers", "seconds", *LABELS]


def test_preview(tiny_corpus: Path) -> None:
    corpus = load(tiny_corpus)
    seen = preview(corpus, Speakers(), 3, 7)
    assert json.loads(json.dumps(seen, allow_nan=False)) == seen
    assert list(seen["shards"]) == ["shard 1", "shard 2", "shard 3"]
    assigned = assign(corpus.utterances, Speakers(), 3, 7)
    for number, shown in enumerate(seen["shards"].values(), start=1):
        assert shown == summarize(shard_of(corpus.utterances, assigned, number))
    assert (seen["corpus"], seen["scheme"], seen["of"]) == ("synthetic", {"scheme": "speakers"}, 3)
    assert (seen["torn_speakers"], seen["speakers"]) == (0, 20)
    assert seen["one_more_shard"] is not None
    assert 0 < seen["one_more_shard"]["speakers"] < 20
    assert preview(corpus, Iid(), 3, 7)["torn_speakers"] > 15
    assert preview(corpus, Own(), 1, 0)["one_more_shard"] is None
    names = {u.speaker for u in corpus.utterances if u.speaker}
    assert not any(name in json.dumps(seen) for name in names), "a preview names no speaker"
