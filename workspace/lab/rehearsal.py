"""A federation before it is one: a few of its rounds, simulated in this process on the experimenter's own copy."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch

from kws.config import ExperimentConfig
from lab import tables
from lab.records import Run
from lab.selection import Selection
from lab.simulation import federated_averaging
from shard_descriptors.clips.clip_set import ClipSet
from shard_descriptors.utterances import Utterance


def rehearse(
    config: ExperimentConfig, shards: Mapping[str, Sequence[Utterance]], validation: ClipSet, rounds: int, run: Run
) -> pd.DataFrame:
    """Simulate an experiment of so many rounds, whose rate runs its whole course in them: wrong settings show early.

    It computes what the sites would (`lab.simulation`), one after the other, so a round takes as long as those of all
    sites together. With no rounds it does nothing.

    Args:
        config: the experiment. shards: by site, its training utterances. validation: the clips of all sites.
        run: gets metric lines, as of a federation.

    Returns:
        A row for each round: every site's training loss, and the average's scores in validation.
    """
    if rounds:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        short = replace(config, training=replace(config.training, rounds=rounds))
        sites = {site: ClipSet(own, validation.format) for site, own in shards.items()}
        chosen = Selection(
            short, validation, device,
            lambda done, scores: run.add_metrics(done, tables.GLOBAL, "validate_global", scores),
        )  # fmt: skip
        federated_averaging(short, sites, run.add_metrics, device, after_round=chosen)
    return tables.rehearsed(run.metrics())
