"""Some of the sites in each round, chosen sites for an experiment, and an early end, on real processes."""

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from processes import TOYS, ToyFederation

from federation.errors import SubmissionRefused
from federation.notebook.handle import ExperimentHandle, FederationHandle, Metric
from federation.policy import RoundPolicy
from rules.sampling import Sampling

SITES = ("site1", "site2", "site3", "site4")
ROUNDS = 6
MOMENTUM = 0.5


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    federation = ToyFederation(tmp_path_factory.mktemp("sampling"), sites=len(SITES))
    try:
        yield federation
    finally:
        federation.stop()
    for name in ("director", *SITES):
        assert "Traceback" not in federation.log(name)


def submit(toys: ToyFederation, name: str, rounds: int = ROUNDS, **more: object) -> ExperimentHandle:
    federation = FederationHandle("localhost", toys.port)
    federation.wait_for_sites(len(SITES), 30)
    return federation.submit(
        name, package=TOYS / "toy", entry_point="toy.experiment:experiment",
        settings={"length": 4, "faults": {"momentum": MOMENTUM}}, rounds=rounds, best_metric="accuracy", **more,
    )  # fmt: skip


def took_part(metrics: list[Metric]) -> list[set[str]]:
    """By round, who did."""
    told = [each for each in metrics if each.metric == "took_part"]
    return [{each.site for each in told if each.round == done and each.value} for done in range(1, ROUNDS + 1)]


def expected(draws: list[set[str]]) -> float:
    """What the toys' model comes to: each site keeps its momentum while it rests."""
    model, momentum = 0.0, dict.fromkeys(SITES, 0.0)
    for drawn in draws:
        for site in drawn:
            momentum[site] = MOMENTUM * momentum[site] + float(site.removeprefix("site"))
        model += float(np.mean([momentum[site] for site in drawn]))
    return model


def test_a_round_asks_some_and_the_others_rest(toys: ToyFederation) -> None:
    sampling = Sampling(2, seed=5)
    draws = [set(sampling.draw(number, SITES, SITES)) for number in range(ROUNDS)]
    assert len({frozenset(drawn) for drawn in draws}) > 2
    experiment = submit(toys, "sampled", sampling=sampling)
    metrics = list(experiment.metrics())
    assert took_part(metrics) == draws
    np.testing.assert_allclose(experiment.last_weights()["vector"], expected(draws))
    measured = {each.site for each in metrics if (each.round, each.task) == (ROUNDS, "validate_global")}
    assert measured == {*SITES, "aggregator"}
    for site in SITES:
        rests = sum(site in one and site not in other for one, other in itertools.pairwise(draws))
        assert toys.log(site).count("rests until a round asks this site again") == rests
        toys.wait_for(site, "experiment sampled: done")


def test_a_director_that_is_killed_asks_the_same_sites(toys: ToyFederation) -> None:
    sampling = Sampling(0.5, seed=11)
    draws = [set(sampling.draw(number, SITES, SITES)) for number in range(ROUNDS)]
    experiment = submit(toys, "sampled and killed", sampling=sampling)
    for metric in experiment.metrics():
        if metric.round == 3:
            break
    toys.kill("director")
    toys.start_director(toys.port)
    metrics = list(FederationHandle("localhost", toys.port).attach("sampled and killed").metrics())
    assert took_part(metrics) == draws
    np.testing.assert_allclose(experiment.last_weights()["vector"], expected(draws))


def test_an_experiment_names_its_sites(toys: ToyFederation) -> None:
    experiment = submit(toys, "of two", rounds=1, sites=["site4", "site2"])
    metrics = list(experiment.metrics())
    assert {each.site for each in metrics} == {"site2", "site4", "aggregator"}
    np.testing.assert_allclose(experiment.last_weights()["vector"], 3.0)
    with pytest.raises(SubmissionRefused, match=r"sites names site9, which are not online; online: site1, site2"):
        submit(toys, "of none", sites=["site2", "site9"])
    with pytest.raises(SubmissionRefused, match="sites names no site; online: site1"):
        submit(toys, "of nobody", sites=[])
    with pytest.raises(SubmissionRefused, match="minimum_sites is 3, and a round asks only 2 sites"):
        submit(toys, "of too few", sampling=Sampling(2), policy=RoundPolicy(minimum_sites=3))


def test_it_ends_when_the_model_gets_no_better(toys: ToyFederation, caplog: pytest.LogCaptureFixture) -> None:
    experiment = submit(toys, "early", rounds=30, patience=2)
    metrics = list(experiment.metrics())  # the toys' accuracy is best at a height of 3.0, then falls
    scores = {each.round: each.value for each in metrics if (each.site, each.metric, each.task) == (
        "aggregator", "accuracy", "validate_global",
    )}  # fmt: skip
    best = max(scores, key=lambda done: scores[done])
    assert max(scores) == best + 3
    assert experiment.status() == "finished"
    assert f"stops early, after round {best + 3}: no accuracy since round {best} was better" in caplog.text
