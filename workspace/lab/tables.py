"""Tables of a run, made from its metric lines."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

GLOBAL = "aggregator"
"""The site name under which the mean over the sites is recorded."""
POOLED = "pooled"
"""The name of the baseline that has all recordings in one place."""
SCORES = ("loss", "accuracy", "macro_f1")


def alone(site: str) -> str:
    """The name of the baseline that one site trains by itself."""
    return f"{site} alone"


def history(metrics: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """One metric of one task: a row for each round, a column for each site."""
    chosen = metrics[(metrics["task"] == task) & (metrics["metric"] == metric)]
    return chosen.pivot_table(index="round", columns="site", values="value", aggfunc="last")


def rounds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Rounds by site: each site's own model before averaging, and the averaged model, on the validation speakers."""
    columns = {}
    for site in sorted(set(metrics["site"][metrics["task"] == "validate_local"]) - {GLOBAL}):
        for score in SCORES:
            columns[site, score] = history(metrics, "validate_local", score)[site]
    for score in SCORES:
        columns["average", score] = history(metrics, "validate_global", score).reindex(columns=[GLOBAL])[GLOBAL]
    return pd.DataFrame(columns).rename_axis("round")


def best_validation(metrics: pd.DataFrame, metric: str) -> dict[str, float]:
    """Round and scores of the averaged model that scored best on the sites' validation speakers; of equals the last.

    Empty before the first round is over.
    """
    averages = metrics[(metrics["task"] == "validate_global") & (metrics["site"] == GLOBAL)]
    if averages.empty:
        return {}
    scores = averages.pivot_table(index="round", columns="metric", values="value", aggfunc="last")[list(SCORES)]
    best = scores[metric][::-1].idxmax()
    return {"round": int(best), **scores.loc[best].to_dict()}


def results(summary: Mapping[str, Any]) -> pd.DataFrame:
    """Test scores of the federation and its baselines from a run's summary, with each one's share of the pooled.

    Where there was nothing to test on, what the best model scored in validation.
    """
    if not summary["test"]:
        return pd.DataFrame({"federated, in validation": summary["validation"]}).T
    table = pd.DataFrame.from_dict(summary["test"], orient="index")
    if POOLED in table.index:
        table["of pooled"] = table["accuracy"] / table.loc[POOLED, "accuracy"]
    return table.rename_axis("trained on")
