"""Tables of a run, made from its metric lines and its summary; which metrics there are, `kws.metrics` says."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

import pandas as pd

from kws.metrics import METRICS, per_label
from lab.comparison import Interval
from lab.predictions import FEDERATED
from lab.records import Run

GLOBAL = "aggregator"
"""The site name under which all sites together are recorded."""
POOLED = "pooled"
"""The name of the baseline that has all recordings in one place."""
WORK = ("seconds", "samples_per_second", "bytes_down", "bytes_up", "update_norm")
"""What a site tells of each round beside its scores: see `federation.site.collaborator.Result`."""
MEGABYTE = 1e6


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


def work(metrics: pd.DataFrame) -> pd.DataFrame:
    """By round and site: seconds of training, samples a second, MB down and up, norm of what the site changed."""
    lines = metrics[(metrics["task"] == "train") & metrics["metric"].isin(WORK) & (metrics["site"] != GLOBAL)]
    table = lines.pivot_table(index=["round", "site"], columns="metric", values="value", aggfunc="last")
    return _in_megabytes(table.reindex(columns=[*WORK]))


def work_by_site(metrics: pd.DataFrame) -> pd.DataFrame:
    """By site, over its rounds: how many, seconds and MB in all, samples a second in the mean, first and last norm."""
    rows = {}
    for site, own in work(metrics).groupby(level="site"):
        rows[site] = {
            "rounds": len(own),
            "seconds": own["seconds"].sum(),
            "samples_per_second": own["samples_per_second"].mean(),
            "MB_down": own["MB_down"].sum(),
            "MB_up": own["MB_up"].sum(),
            "first_update_norm": own["update_norm"].iloc[0],
            "last_update_norm": own["update_norm"].iloc[-1],
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")


def _in_megabytes(table: pd.DataFrame) -> pd.DataFrame:
    sizes = {"bytes_down": "MB_down", "bytes_up": "MB_up"}
    return table.assign(**{name: table[name] / MEGABYTE for name in sizes}).rename(columns=sizes)


def budget(metrics: pd.DataFrame, sizes: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """How much each model was trained, counted in what was recorded: by model, `rounds`, `steps` and `epochs`.

    steps: one after the other; of the federation, whose sites work side by side, those of the site with the most.
    epochs: how often a clip was heard, in the mean over the model's clips. What has recorded neither is left out.

    sizes: how many training clips each site has.
    """
    everyone = sum(sizes.values())
    clips = {FEDERATED: everyone, POOLED: everyone} | {alone(site): size for site, size in sizes.items()}
    trained = metrics[metrics["task"] == "train"]
    owner = trained["site"].where(~trained["site"].isin(list(sizes)), FEDERATED)
    found = {}
    for model, count in clips.items():
        own = trained[owner == model]
        steps, samples = (
            own[own["metric"] == name].pivot_table(index="round", columns="site", values="value", aggfunc="last")
            for name in ("steps", "samples")
        )
        if len(steps) and len(samples):
            found[model] = {
                "rounds": len(steps),
                "steps": float(steps.max(axis=1).sum()),
                "epochs": float(samples.to_numpy(na_value=0.0).sum() / count),
            }
    return found


def validation(metrics: pd.DataFrame, model: str, metric: str) -> pd.Series:
    """One metric of a model by round, on the validation speakers of all sites: "federated", or a baseline's name."""
    task, site = ("validate_global", GLOBAL) if model == FEDERATED else ("validate", model)
    return history(metrics, task, metric).reindex(columns=[site])[site].dropna()


def rehearsed(metrics: pd.DataFrame) -> pd.DataFrame:
    """Of a simulation: by round, every site's training loss, and the average's scores in validation."""
    losses = history(metrics, "train", "loss")
    columns = {(site, "training loss"): losses[site] for site in losses}
    columns |= {("average", name): validation(metrics, FEDERATED, name) for name in shown_each_round()}
    return pd.DataFrame(columns).rename_axis("round")


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


def by_site(metrics: pd.DataFrame, round_number: int, metric: str) -> pd.DataFrame:
    """One metric at each site, the worst first: of its own model and of the averaged one, on the same speakers.

    `own` is what the site had trained in that round, before averaging; `gain` how much better the averaged model is.
    Baselines are not in it, since they are validated on everybody's speakers.
    """
    local, average = (history(metrics, task, metric) for task in ("validate_local", "validate_global"))
    table = pd.DataFrame(
        {
            name: each.reindex([round_number]).iloc[0].reindex(sites_of(metrics))
            for name, each in (("own", local), ("averaged", average))
        },
        dtype=float,
    )
    sign = 1 if METRICS[metric].direction == "max" else -1
    table["gain"] = sign * (table["averaged"] - table["own"])
    return table.sort_values("averaged", ascending=sign > 0).rename_axis("site")


def validation_by_label(metrics: pd.DataFrame, round_number: int, labels: Sequence[str]) -> pd.DataFrame:
    """Precision, recall, F1, IoU and utterances of every label: the averaged model, on all sites' validation."""
    lines = metrics[(metrics["task"] == "validate_global") & (metrics["site"] == GLOBAL)]
    lines = lines[lines["round"] == round_number]
    return per_label(dict(zip(lines["metric"], lines["value"], strict=True)), labels)


def results(summary: Mapping[str, Any], every: bool = True) -> pd.DataFrame:
    """Test scores of the federation and its baselines from a run's summary, as text with the digits that they support.

    With 95 % intervals those that every round shows, and what the federated model has more of the metric that chose it;
    the others without (`every`), and the accuracy of the speaker who is understood worst. Then how much each was
    trained (`budget`). Where there were several seeds: the mean over them, and their standard deviation; the rest is
    of the first. Where there was nothing to test on, what the best model scored in validation.
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
    for name, form in (("epochs", ",.1f"), ("steps", ",.0f")):
        columns[name] = {model: f"{spent[name]:{form}}" for model, spent in summary.get("budget", {}).items()}
    if len(seeds := summary.get("seeds", {})) > 1:
        columns[f"{best} over {len(seeds)} seeds"] = over_seeds(seeds, best)
    return pd.DataFrame(columns, index=list(summary["test"])).fillna("").rename_axis("trained on")


def over_seeds(seeds: Mapping[str, Mapping[str, Mapping[str, float]]], metric: str) -> dict[str, str]:
    """By model, one metric's mean over seeds (by seed, model and metric) and its standard deviation, as text."""
    values: dict[str, list[float]] = {}
    for models in seeds.values():
        for model, scores in models.items():
            values.setdefault(model, []).append(scores[metric])
    return {
        model: f"{mean(each):.3f} ± {stdev(each):.3f}" if len(each) > 1 else f"{mean(each):.3f}"
        for model, each in values.items()
    }


def compared(runs: Sequence[Run]) -> pd.DataFrame:
    """A row for each finished run: what it scored in test, in how many rounds and seconds, and what it was asked for.

    Of the configuration only what is not the same in all of these runs.
    """
    rows: dict[str, dict[str, Any]] = {}
    for run in runs:
        summary, config = run.summary(), dict(_flat(run.config()["config"]))
        best = summary["best_metric"]
        scores = {}
        if FEDERATED in summary["test"]:
            value = summary["test"][FEDERATED][best]
            scores[f"test {best}"] = Interval(value, *summary["intervals"][FEDERATED][best]).text()
        spent = {"rounds": summary["rounds"], "seconds": round(summary["seconds"])}
        rows[run.name] = scores | {"sites": len(summary["sites"]), "corpus": summary["corpus"]} | spent | config
    table = pd.DataFrame.from_dict(rows, orient="index").rename_axis("run")
    if len(runs) < 2:
        return table.loc[:, [name for name in table if "." not in name and name not in SETTINGS]]
    settings = {name for name in table if "." in name or name in SETTINGS}
    same = [name for name in settings if table[name].astype(str).nunique(dropna=False) == 1]
    return table.drop(columns=same)


SETTINGS = ("best_metric", "update_format")
"""The settings of an experiment that are in no group."""


def _flat(values: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def _texts(figures: Mapping[str, Interval], sign: str = "") -> dict[str, str]:
    """A column: all with the decimals of the one that is known best."""
    decimals = max((figure.decimals for figure in figures.values()), default=1)
    return {model: figure.text(sign, decimals) for model, figure in figures.items()}
