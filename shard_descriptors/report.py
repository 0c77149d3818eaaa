"""What lies in each shard: counts, how much the shards differ, and a plot.

pandas and matplotlib are imported where they are used: a site that only counts needs neither.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np

from shard_descriptors.corpus import SUPERB_KS, ClipFormat
from shard_descriptors.utterances import SPLITS, Utterance

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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


def summarize(utterances: Sequence[Utterance], form: ClipFormat = SUPERB_KS) -> Summary:
    """Speakers, utterances, labels and seconds of audio in each split; a clip counts with its full length."""
    by_split = {split: [u for u in utterances if u.split == split] for split in SPLITS}
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
    """Bars of utterances per site, stacked by label: (figure, axes, the table behind them)."""
    import matplotlib.pyplot as plt

    table = label_table(summaries, split)
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.5 * len(table)), layout="constrained")
    colours: Any = plt.get_cmap("tab20")
    left = np.zeros(len(table))
    for number, label in enumerate(table.columns):
        # matplotlib leaves names with a leading underscore out of the legend
        name = label.strip("_")
        axes.barh(table.index, table[label], left=left, color=colours(number), label=name)
        left += table[label].to_numpy()
    axes.invert_yaxis()  # the first site on top, as in the table
    axes.set_xlabel(f"{split} utterances")
    axes.legend(ncols=6, fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure, axes, table
