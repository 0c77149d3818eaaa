"""From the notebook to the federation and back: connect, see the sites, submit, follow, take the best model."""

import json
import math
import os
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pandas as pd

import kws
from federation.errors import FederationError, SubmissionRefused
from federation.notebook.handle import ExperimentHandle, FederationHandle, Site
from federation.policy import RoundPolicy
from federation.settings import Certificates, certificates_beside, load_director
from kws.algorithms import Local
from kws.config import ConfigError, ExperimentConfig
from kws.metrics import METRICS
from kws.model import Classifier, ModelError, build_model, frozen_digest
from kws.tasks import settings_of
from lab import HOUSE
from lab.algorithms import check_numbers, described_rule, sampling_of
from lab.records import Run
from lab.session import brings_own
from lab.tables import GLOBAL
from shard_descriptors.corpus import ClipFormat


def connect() -> FederationHandle:
    """Connect to the director of `director/director.yaml`, or to `host:port` in the environment's KWS_DIRECTOR.

    With TLS, KWS_CERTIFICATE names the experimenter's certificate; its key and root_ca.crt lie beside it.

    Raises:
        FederationError: no director answers there, it refuses the certificate, or it wants one and none is named.
    """
    settings = load_director(HOUSE / "director" / "director.yaml")
    host, _, port = os.environ.get("KWS_DIRECTOR", f"{settings.listen_host}:{settings.listen_port}").rpartition(":")
    named = os.environ.get("KWS_CERTIFICATE")
    if settings.certificates.tls and not named:
        raise FederationError(
            "director.yaml asks for certificates: set KWS_CERTIFICATE to the path of the one issued to you "
            "(python -m federation.certificates issue FOLDER experimenter NAME)"
        )
    return FederationHandle(host, int(port), certificates_beside(HOUSE / named) if named else Certificates())


def wait_for_shards(federation: FederationHandle, timeout: float = 600, sites: int = 1) -> dict[str, dict[str, Any]]:
    """What every site tells of its shard, as soon as all shards of the corpus are there, or that many sites.

    Args:
        timeout: seconds to wait.
        sites: the least number of sites. That there are as many as shards is known without it; how many bring
            recordings of their own is not.

    Raises:
        FederationError: the sites do not agree on the partition or on the form of a clip, or some are still missing
            after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    found = federation.wait_for_sites(sites, timeout)
    while len(found) < described(found[0])["of"]:
        found = federation.wait_for_sites(len(found) + 1, deadline - time.monotonic())
    shards = {site.name: described(site) for site in found}
    _refuse_other_clips(shards)
    if any(brings_own(shard) for shard in shards.values()):
        _refuse_a_mixture(shards)
        return shards
    partitions = {(shard["of"], shard["partition"]) for shard in shards.values()}
    if len(partitions) > 1 or len({shard["shard"] for shard in shards.values()}) < len(shards):
        held = "; ".join(f"{name}: shard {s['shard']} of {s['of']} of {s['corpus']}" for name, s in shards.items())
        raise FederationError(
            f"the sites do not share out one corpus ({held}). Every envoy.yaml must name the same corpus, `of` and "
            f"`seed`, and a `shard` of its own; change them and start those envoys again"
        )
    return shards


def _refuse_other_clips(shards: dict[str, dict[str, Any]]) -> None:
    (first, expected), *others = ((name, shard["format"]) for name, shard in shards.items())
    for name, given in others:
        for setting, value in expected.items():
            if given[setting] != value:
                raise FederationError(
                    f"the sites' clips differ in {setting}: {first} has {value}, {name} has {given[setting]}. One "
                    f"model needs the same everywhere; change one envoy.yaml (labels: give the same list to all) and "
                    f"start that envoy again"
                )


def _refuse_a_mixture(shards: dict[str, dict[str, Any]]) -> None:
    if shared := [name for name, shard in shards.items() if not brings_own(shard)]:
        raise FederationError(
            f"{', '.join(shared)} hold shards of a common corpus, the other sites recordings of their own; set "
            f"`partition` in every envoy.yaml to `own`, or in none"
        )


def described(site: Site) -> dict[str, Any]:
    """The description that the site's shard descriptor gave."""
    description: dict[str, Any] = json.loads(site.description) | {"devices": ", ".join(site.devices)}
    return description


def shard_table(shards: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row for each site: its shard, devices, speakers and utterances by split."""
    rows = {
        name: {
            "shard": "own" if brings_own(shard) else f"{shard['shard']} of {shard['of']}",
            "devices": shard["devices"],
        }
        | {f"{split} speakers": count for split, count in shard["speakers"].items()}
        | {f"{split} utterances": count for split, count in shard["utterances"].items()}
        for name, shard in shards.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("site")


def submit(
    federation: FederationHandle,
    config: ExperimentConfig,
    name: str,
    form: ClipFormat,
    policy: RoundPolicy | None = None,
    sites: Collection[str] | None = None,
) -> ExperimentHandle:
    """Send the experiment and the source of `kws` to the director.

    Every site compares the frozen part of its model with the one here. sites: which take part; None: all that are
    online.

    Raises:
        SubmissionRefused: the model cannot be built here, the rule does not take its numbers, or the director says why.
    """
    try:
        check_numbers(config.algorithm)
        frozen = frozen_digest(build_model(config.model, config.training.seed, form))
    except (ModelError, ConfigError) as error:
        raise SubmissionRefused(str(error)) from error
    return federation.submit(
        name,
        package=Path(kws.__file__).resolve().parent,
        entry_point="kws.tasks:experiment",
        settings=settings_of(config, form, frozen),
        rounds=config.training.rounds,
        best_metric=config.best_metric,
        best_direction=METRICS[config.best_metric].direction,
        scores={name: metric.score for name, metric in METRICS.items()},
        keep_optimizer=config.training.keep_optimizer or config.algorithm.keeps,
        rule=described_rule(config.algorithm),
        policy=policy,
        update_format=config.update_format,
        sites=sites,
        sampling=sampling_of(config),
        patience=config.training.patience,
    )


def best_model(experiment: ExperimentHandle, config: ExperimentConfig, form: ClipFormat) -> Classifier:
    """The model that scored best in the aggregated validation; with a new head where each site has one of its own."""
    local = Local(build_model(config.model, config.training.seed, form), config.algorithm)
    local.load(experiment.best_weights())
    return local.model


def record(experiment: ExperimentHandle, run: Run, draw: Callable[[pd.DataFrame], None], every: float = 1.0) -> float:
    """Write every metric into the run as it arrives, and draw; returns the seconds it took.

    Args:
        draw: is given all metric lines so far when a round is over, and at the end.
        every: the least seconds between two drawings, so that a fast or a large federation is not held up by its plot.

    Raises:
        ExperimentFailed: with site, round, task and the remote traceback.
    """
    started = time.monotonic()
    drawn, told = -math.inf, set[str]()
    for metric in experiment.metrics():
        run.add_metric(metric.round, metric.site, metric.task, metric.metric, metric.value)
        if (metric.site, metric.task) == (GLOBAL, "validate_global"):
            told.add(metric.metric)
        if told >= METRICS.keys():  # a round is over when all is said of its average
            told.clear()
            if time.monotonic() - drawn >= every:
                draw(run.metrics())
                drawn = time.monotonic()
    draw(run.metrics())
    return time.monotonic() - started
