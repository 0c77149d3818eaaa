"""What the notebook calls that is neither training nor plotting: the run, its own copy of the corpus, the results."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kws.config import ExperimentConfig
from kws.metrics import Evaluation
from lab import HOUSE, comparison, sounds, tables
from lab.asked import seeded
from lab.claims import Overlap
from lab.comparison import Comparison, compare
from lab.predictions import FEDERATED, Predictions
from lab.records import Run
from lab.tables import POOLED, alone
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.corpus import ClipFormat, Corpus
from shard_descriptors.partition.contract import Assignment, assign, digest, shard_of
from shard_descriptors.partition.own import Own
from shard_descriptors.partition.schemes import scheme_of
from shard_descriptors.sources.registry import open_corpus
from shard_descriptors.utterances import Utterance


def start_run() -> Run:
    """The run directory that `kws demo` has made (environment variable KWS_RUN), or a new one in `runs/`."""
    given = os.environ.get("KWS_RUN")
    return Run(Path(given)) if given else Run.create(HOUSE / "runs")


@dataclass
class Trial:
    """An experiment with one seed: its configuration and records, how long it took, and its models' answers.

    evaluations: by model, "federated" and the baselines, on the test utterances.
    """

    config: ExperimentConfig
    run: Run
    seconds: float = math.nan
    evaluations: dict[str, Evaluation] = field(default_factory=dict)


def trials(config: ExperimentConfig, run: Run, seeds: Sequence[int] = ()) -> list[Trial]:
    """One for each seed; the first is recorded in the run itself, the others in folders of it. None: the config's."""
    first, *others = seeds or (config.training.seed,)
    return [Trial(seeded(config, first), run)] + [Trial(seeded(config, seed), run.of_seed(seed)) for seed in others]


def clip_format(shards: Mapping[str, Mapping[str, Any]]) -> ClipFormat:
    """Labels, sample rate and length of the sites' clips."""
    given = next(iter(shards.values()))["format"]
    return ClipFormat(**(given | {"labels": tuple(given["labels"])}))


def brings_own(shard: Mapping[str, Any]) -> bool:
    """Whether a site trains on recordings of its own, not on a shard of a common corpus."""
    return scheme_of(shard["scheme"]) == Own()


def local_corpus(shards: Mapping[str, Mapping[str, Any]], **source: Any) -> Corpus:
    """The experimenter's own copy of the corpus that the sites share out.

    Args:
        **source: what `open_corpus` takes, where the sites share out another corpus than Speech Commands.

    Raises:
        ValueError: it is another corpus than theirs, or theirs is nobody else's, or it has no test utterances: a
            comparison would mean nothing.
    """
    theirs = next(iter(shards.values()))
    if brings_own(theirs):
        raise ValueError(
            "the sites train on recordings of their own, which nobody else has: there is no common corpus to test on. "
            "Open own_recordings.ipynb instead"
        )
    corpus = open_corpus(**(theirs["settings"] | source))
    if digest(corpus.utterances, _assignment(corpus.utterances, theirs)) != theirs["partition"]:
        raise ValueError(
            f"the sites train on {theirs['corpus']}, and this notebook has {corpus.name}, which is not the same; set "
            f"DATA to the same corpus before you start the notebook, or name another source here: "
            f"local_corpus(shards, source='table', data_path=...)"
        )
    if not any(utterance.split == "test" for utterance in corpus.utterances):
        raise ValueError(
            f"{corpus.name} has no test utterances, so there is nothing to compare models on. Give some the split "
            f"'test', or open own_recordings.ipynb, which goes by the validation"
        )
    return corpus


def train_shards(
    utterances: Sequence[Utterance], shards: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[Utterance]]:
    """By site, its training utterances."""
    assigned = _assignment(utterances, next(iter(shards.values())))
    return {
        site: [u for u in shard_of(utterances, assigned, s["shard"]) if u.split == "train"]
        for site, s in shards.items()
    }


def _assignment(utterances: Sequence[Utterance], described: Mapping[str, Any]) -> Assignment:
    return assign(utterances, scheme_of(described["scheme"]), described["of"], described["seed"])


def finish(
    run: Run,
    config: ExperimentConfig,
    shards: Mapping[str, Mapping[str, Any]],
    seconds: float,
    predictions: Predictions | None = None,
    overlap: Overlap | None = None,
    trials: Sequence[Trial] = (),
) -> pd.DataFrame:
    """Write the run's summary, keep the predictions that it is made of, and show the results; again when more is known.

    Args:
        seconds: how long the federation took, from submission to its end.
        predictions: of the test utterances: "federated", and the baselines that were trained; None where there is
            nothing to test on.
        overlap: how new the test utterances are to the sites.
        trials: of several seeds, all of them.
    """
    metrics = run.metrics()
    best = tables.best_validation(metrics, config.best_metric)
    sites = tables.by_site(metrics, int(best["round"]), config.best_metric) if best else pd.DataFrame()
    sizes = {site: shard["utterances"]["train"] for site, shard in shards.items() if "utterances" in shard}
    if predictions:
        predictions.save(run.predictions_path)
    run.write_summary(
        **figures(predictions, config.best_metric, shards),
        rounds=config.training.rounds,
        sites=list(shards),
        seconds=seconds,
        corpus=", ".join(sorted({shard["corpus"] for shard in shards.values()})),
        partition=", ".join(sorted({shard["partition"] for shard in shards.values()})),
        test_of=overlap and overlap.sentence(),
        overlap=overlap and overlap.to_dict(),
        validation=best,
        validation_by_site={site: row.dropna().to_dict() for site, row in sites.iterrows()},
        worst_site=next(iter(sites.index), None),
        budget=tables.budget(metrics, sizes),
        work=tables.work_by_site(metrics).to_dict(orient="index"),
        seeds={
            str(trial.config.training.seed): {name: each.scalars() for name, each in trial.evaluations.items()}
            for trial in trials
            if len(trials) > 1
        },
    )
    return tables.results(run.summary())


def figures(predictions: Predictions | None, best_metric: str, sites: Iterable[str]) -> dict[str, Any]:
    """All that a summary says of the test utterances, of the predictions alone.

    test: every metric of every model. intervals: its 95 % interval, low and high. differences: what the federated model
    has more than each other one: value, low and high. worst_speaker: the least accuracy of any speaker.
    """
    evaluations = predictions.evaluations if predictions else {}
    compared = compare(predictions) if predictions else Comparison({}, {}, "nothing")
    worst = predictions.by_speaker().min(numeric_only=True) if predictions else {}
    scores = {model: evaluation.scalars() for model, evaluation in evaluations.items()}
    federated, own = scores.get(FEDERATED), {site: scores.get(alone(site)) for site in sites}
    return {
        "accuracy": federated and federated["accuracy"],
        "macro_f1": federated and federated["macro_f1"],
        "pooled_accuracy": scores[POOLED]["accuracy"] if POOLED in scores else None,
        "local_accuracies": {site: found["accuracy"] for site, found in own.items() if found},
        "best_metric": best_metric,
        "test_utterances": len(predictions) if predictions else 0,
        "test": scores,
        "drawn": compared.drawn,
        "intervals": {
            model: {metric: [each.low, each.high] for metric, each in found.items()}
            for model, found in compared.scores.items()
        },
        "differences": {
            model: {metric: [each.value, each.low, each.high] for metric, each in found.items()}
            for model, found in compared.differences.items()
        },
        "worst_speaker": {model: float(worst[model]) for model in scores if not np.isnan(worst[model])},
    }


def difference(runs: Sequence[Run], metric: str) -> str:
    """What the first of these runs has more of a metric than the second, in a sentence; or why nobody can say."""
    if len(runs) < 2:
        return "there is no other finished run to compare with yet"
    one, other = runs[:2]
    try:
        theirs = Predictions.load(other.predictions_path)
        more = comparison.difference(Predictions.load(one.predictions_path), theirs, metric)
    except (OSError, ValueError) as error:
        return f"{one.name} and {other.name}: {error}"
    return f"{one.name} minus {other.name}: test {metric} {more.text('+')}, 95 % interval"


def mistakes(evaluation: Evaluation, clips: ClipSet, labels: Sequence[str]) -> pd.DataFrame:
    """The wrong answer of which the model was most certain, for each true label, the most certain first.

    Columns: number of the clip, file, true label, answer, and the probability that the model gave it.
    """
    wrong = np.flatnonzero(~evaluation.right)
    table = pd.DataFrame(
        {
            "clip": wrong,
            "file": [clips.utterances[number].name for number in wrong],
            "true": [labels[evaluation.labels[number]] for number in wrong],
            "answered": [labels[evaluation.predictions[number]] for number in wrong],
            "probability": evaluation.confidences[wrong],
        }
    )
    return table.sort_values("probability", ascending=False, kind="stable").drop_duplicates("true", ignore_index=True)


def listen(table: pd.DataFrame, clips: ClipSet) -> None:
    """Show a player for each clip of a table of mistakes."""
    rows = list(table.itertuples())
    captions = [f"{row.file}: {row.true}, answered {row.answered} ({row.probability:.2f})" for row in rows]
    sounds.play(clips, [row.clip for row in rows], captions)
