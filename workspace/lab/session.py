"""What the notebook calls that is neither training nor plotting: the run, its own copy of the corpus, listening."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kws.config import ExperimentConfig, changed
from kws.metrics import Evaluation
from lab import HOUSE, tables
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
from shard_descriptors.sources.speech_commands import SYNTHETIC
from shard_descriptors.utterances import Utterance


def apply_changes(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration with the changes that `kws demo --change` was given (environment variable KWS_CHANGES)."""
    return changed(config, [line for line in os.environ.get("KWS_CHANGES", "").splitlines() if line])


def start_run() -> Run:
    """The run directory that `kws demo` has made (environment variable KWS_RUN), or a new one in `runs/`."""
    given = os.environ.get("KWS_RUN")
    return Run(Path(given)) if given else Run.create(HOUSE / "runs")


def suggested_rounds(shards: Mapping[str, Mapping[str, Any]]) -> int:
    """Rounds after which "tiny" has learned what it can: synthetic speech is easy, people are not."""
    return 10 if next(iter(shards.values()))["corpus"] == SYNTHETIC else 30


def with_baselines() -> bool:
    """Whether to train the baselines too: yes, unless the environment's KWS_BASELINES is 0."""
    return os.environ.get("KWS_BASELINES", "1") != "0"


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
) -> dict[str, tuple[int, list[Utterance]]]:
    """By site, the number of its shard and its training utterances."""
    assigned = _assignment(utterances, next(iter(shards.values())))
    return {
        site: (s["shard"], [u for u in shard_of(utterances, assigned, s["shard"]) if u.split == "train"])
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
) -> pd.DataFrame:
    """Write the run's summary, keep the predictions that it is made of, and show the results.

    Args:
        seconds: how long the federation took, from submission to its end.
        predictions: of the test utterances: "federated", and the baselines that were trained; None where there is
            nothing to test on.
        overlap: how new the test utterances are to the sites.
    """
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
        validation=tables.best_validation(run.metrics(), config.best_metric),
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
    from IPython.display import Audio, display

    for row in table.itertuples():
        print(f"{row.file}: {row.true}, answered {row.answered} ({row.probability:.2f})")
        display(Audio(clips.read([row.clip])[0], rate=clips.format.sample_rate, normalize=True))
