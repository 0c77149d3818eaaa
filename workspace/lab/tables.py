"""Tables of a run, made from its metric lines and its summary; which metrics there are, `kws.metrics` says."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from kws.metrics import METRICS, per_label
from lab.comparison import Interval

GLOBAL = "aggregator"
"""The site name under which all sites together are recorded."""
POOLED = "pooled"
"""The name of the baseline that has all recordings in one place."""


def alone(site: str) -> str:
    """The name of the baseline that one site trains by itself."""
    return f"{site} alone"


def shown_each_round() -> list[str]:
    """The metrics that tables and lines of each round show."""
    return [name for name, metric in METRICS.items() if metric.every_round]


def sites_of(metrics: pd.DataFrame) -> list[str]:
    """The sites that have validated, sorted; baselines and the average are none."""
    validated = metrics["task"].isin(["validate_local", "validate_global"])
    return sorted(set(metrics["site"][validated]) - {GLOBAL})


def history(metrics: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """One metric of one task: a row for each round, a column for each site."""
    chosen = metrics[(metrics["task"] == task) & (metrics["metric"] == metric)]
    return chosen.pivot_table(index="round", columns="site", values="value", aggfunc="last")


def rounds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Rounds by site: each site's own model before averaging, and the averaged model, on the validation speakers."""
    columns = {}
    for score in shown_each_round():
        local, average = (history(metrics, task, score) for task in ("validate_local", "validate_global"))
        for site in local.columns.drop(GLOBAL, errors="ignore"):
            columns[site, score] = local[site]
        columns["average", score] = average.reindex(columns=[GLOBAL])[GLOBAL]
    order = [(site, score) for site in [*sites_of(metrics), "average"] for score in shown_each_round()]
    return pd.DataFrame({key: columns[key] for key in order if key in columns}).rename_axis("round")


def best_validation(metrics: pd.DataFrame, metric: str) -> dict[str, float]:
    """Round and scores of the averaged model that scored best on the sites' validation speakers; of equals the last.

    Empty before the first round is over.
    """
    averages = metrics[(metrics["task"] == "validate_global") & (metrics["site"] == GLOBAL)]
    scores = averages.pivot_table(index="round", columns="metric", values="value", aggfunc="last")
    if metric not in scores:
        return {}
    latest_first = scores[metric][::-1]
    best = latest_first.idxmax() if METRICS[metric].direction == "max" else latest_first.idxmin()
    return {"round": int(best), **scores.loc[best].reindex([*METRICS]).dropna().to_dict()}


def validation_by_label(metrics: pd.DataFrame, round_number: int, labels: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1, IoU and utterances of every label: the averaged model, on all sites' validation."""
    lines = metrics[(metrics["task"] == "validate_global") & (metrics["site"] == GLOBAL)]
    lines = lines[lines["round"] == round_number]
    return per_label(dict(zip(lines["metric"], lines["value"], strict=True)), labels)


def results(summary: Mapping[str, Any], every: bool = True) -> pd.DataFrame:
    """Test scores of the federation and its baselines from a run's summary, as text with the digits that they support.

    With 95 % intervals those that every round shows, and what the federated model has more of the metric that chose it;
    the others without (`every`), and the accuracy of the speaker who is understood worst. Where there was nothing to
    test on, what the best model scored in validation.
    """
    if not summary["test"]:
        return pd.DataFrame({"federated, in validation": summary["validation"]}).T
    best, columns = summary["best_metric"], dict[str, dict[str, str]]()
    for name, metric in METRICS.items():
        if metric.every_round or every:
            found = {model: Interval(scores[name], *summary["intervals"][model][name])
                     for model, scores in summary["test"].items()}  # fmt: skip
            columns[name] = _texts(found) if metric.every_round else {m: t.split()[0] for m, t in _texts(found).items()}
    differences = {model: Interval(*found[best]) for model, found in summary["differences"].items()}
    columns[f"federated minus it ({best})"] = _texts(differences, "+")
    columns["worst speaker"] = {model: f"{accuracy:.2f}" for model, accuracy in summary["worst_speaker"].items()}
    return pd.DataFrame(columns, index=list(summary["test"])).fillna("").rename_axis("trained on")


def _texts(figures: Mapping[str, Interval], sign: str = "") -> dict[str, str]:
    """A column: all with the decimals of the one that is known best."""
    decimals = max((figure.decimals for figure in figures.values()), default=1)
    return {model: figure.text(sign, decimals) for model, figure in figures.items()}
