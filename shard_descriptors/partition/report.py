"""What lies in each shard: counts, how much the shards differ, what a partition would do, and a plot.

pandas and matplotlib are imported where they are used: a site that only counts needs neither.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from shard_descriptors.corpus import SUPERB_KS, ClipFormat, Corpus
from shard_descriptors.partition.contract import PartitionError, Scheme, assign, digest, homes
from shard_descriptors.partition.schemes import described
from shard_descriptors.utterances import SPLITS, Utterance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


MANY = 40
"""Above so many sites a plot does not name them."""


class Summary(TypedDict):
    """Counts of one shard, by split; JSON-able, and without any name that tells who speaks."""

    speakers: dict[str, int]
    utterances: dict[str, int]
    labels: dict[str, dict[str, int]]
    seconds: dict[str, float]


class Skew(TypedDict):
    """How much the sites differ; all zero when they are alike.

    label_kl:      per site, the Kullback-Leibler divergence in nats of its label distribution from
                   that of all sites together; None for a site without utterances.
    label_kl_mean: their plain mean.
    quantity_gini: Gini coefficient of the number of utterances: 0 equal, towards 1 all at one site.
    """

    label_kl: dict[str, float | None]
    label_kl_mean: float
    quantity_gini: float


class Preview(TypedDict):
    """A partition before it is used; JSON-able, and without any name that tells who speaks.

    partition:       the assignment's digest, as a run's record holds it.
    shards:          a `Summary` by shard, "shard 1" the first.
    skew:            `Skew` of the train split.
    torn_speakers:   number of speakers that are in more than one shard.
    speakers:        of how many.
    one_more_shard:  share of the utterances, and number of speakers, that would move if there were one more; None where
                     there cannot be one.
    """

    corpus: str
    scheme: dict[str, Any]
    of: int
    seed: int
    partition: str
    shards: dict[str, Summary]
    skew: Skew
    torn_speakers: int
    speakers: int
    one_more_shard: dict[str, float] | None


def preview(corpus: Corpus, scheme: Scheme, num_shards: int, seed: int) -> Preview:
    """What the scheme makes of the corpus. PartitionError where it cannot."""
    rows = corpus.utterances
    assigned = assign(rows, scheme, num_shards, seed)
    parts: list[list[Utterance]] = [[] for _ in range(num_shards)]
    for row, number in zip(rows, assigned.tolist(), strict=True):
        parts[number].append(row)
    shards = {f"shard {number}": summarize(part, corpus.format) for number, part in enumerate(parts, start=1)}
    home = homes(rows, assigned)
    try:
        larger = assign(rows, scheme, num_shards + 1, seed)
        moved_home = homes(rows, larger)
        one_more = {
            "utterances": float(np.mean(assigned != larger)),
            "speakers": float(sum(home[speaker] != moved_home[speaker] for speaker in home)),
        }
    except PartitionError:
        one_more = None
    return {
        "corpus": corpus.name,
        "scheme": described(scheme),
        "of": num_shards,
        "seed": seed,
        "partition": digest(rows, assigned),
        "shards": shards,
        "skew": skew(label_table(shards)),
        "torn_speakers": sum(len(numbers) > 1 for numbers in home.values()),
        "speakers": len(home),
        "one_more_shard": one_more,
    }


def shard_table(summaries: Mapping[str, Summary], split: str = "train") -> "pd.DataFrame":
    """A row for each site: utterances, speakers, seconds of audio, then the utterances of each label."""
    table = label_table(summaries, split)
    for position, kind in enumerate(("utterances", "speakers", "seconds")):
        table.insert(position, kind, [summary[kind][split] for summary in summaries.values()])  # type: ignore[literal-required]
    return table


def summarize(utterances: Sequence[Utterance], form: ClipFormat = SUPERB_KS) -> Summary:
    """Speakers, utterances, labels and seconds of audio in each split; a clip counts with its full length."""
    by_split: dict[str, list[Utterance]] = {split: [] for split in SPLITS}
    for utterance in utterances:
        by_split[utterance.split].append(utterance)
    labels = {split: Counter(u.label for u in rows) for split, rows in by_split.items()}
    return {
        "speakers": {split: len({u.speaker for u in rows} - {None}) for split, rows in by_split.items()},
        "utterances": {split: len(rows) for split, rows in by_split.items()},
        "labels": {split: {label: labels[split][label] for label in form.labels} for split in SPLITS},
        "seconds": {
            split: sum(u.num_samples or form.num_samples for u in rows) / form.sample_rate
            for split, rows in by_split.items()
        },
    }


def label_table(summaries: Mapping[str, Summary], split: str = "train") -> "pd.DataFrame":
    """Utterances per site (rows) and label (columns, in the order of their ids) of one split."""
    import pandas as pd

    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; it must be one of {', '.join(SPLITS)}")
    return pd.DataFrame.from_dict(
        {site: summary["labels"][split] for site, summary in summaries.items()},
        orient="index",
        dtype=int,
    )


def skew(table: "pd.DataFrame") -> Skew:
    """Label skew and quantity skew of a `label_table`. ValueError for a table without counts."""
    counts = table.to_numpy(dtype=float)
    sizes = counts.sum(axis=1)
    if sizes.sum() == 0:
        raise ValueError("the table holds no utterances; take a split that the sites have")
    pooled = counts.sum(axis=0) / sizes.sum()
    divergences: dict[str, float | None] = {}
    for site, row, size in zip(table.index, counts, sizes, strict=True):
        share = row[row > 0] / size if size else row[:0]
        # max: rounding must not make it negative
        divergence = max(0.0, float(np.sum(share * np.log(share / pooled[row > 0]))))
        divergences[str(site)] = divergence if size else None
    known = [value for value in divergences.values() if value is not None]
    gaps = np.abs(sizes[:, None] - sizes[None, :]).sum()
    return {
        "label_kl": divergences,
        "label_kl_mean": float(np.mean(known)),
        "quantity_gini": float(gaps / (2 * len(sizes) * sizes.sum())),
    }


def plot_shards(summaries: Mapping[str, Summary], split: str = "train") -> "tuple[Figure, Axes, pd.DataFrame]":
    """Bars of utterances per site, stacked by label: (figure, axes, the table behind them).

    Many sites are drawn without their names, the largest on top.
    """
    import matplotlib.pyplot as plt

    table = label_table(summaries, split)
    many = len(table) > MANY
    if many:
        table = table.loc[table.sum(axis=1).sort_values(ascending=False, kind="stable").index]
    figure, axes = plt.subplots(figsize=(8, 6 if many else 1.2 + 0.5 * len(table)), layout="constrained")
    colours: Any = plt.get_cmap("tab20")
    places = np.arange(len(table))
    left = np.zeros(len(table))
    for number, label in enumerate(table.columns):
        # matplotlib leaves names with a leading underscore out of the legend
        name = str(label).strip("_")
        axes.barh(places, table[label], left=left, height=1 if many else 0.8, color=colours(number % 20), label=name)
        left += table[label].to_numpy()
    axes.set_yticks([] if many else places, [] if many else table.index)
    if many:
        axes.set_ylabel(f"{len(table)} sites, by size")
    axes.set_ylim(len(table) - 0.5, -0.5)  # the first site on top, as in the table
    axes.set_xlabel(f"{split} utterances")
    axes.legend(ncols=6, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure, axes, table
