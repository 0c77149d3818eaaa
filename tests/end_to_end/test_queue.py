"""Experiments side by side on real processes: on different sites, and past one that waits for a site's owner."""

from collections.abc import Iterator

import numpy as np
import pytest
from processes import TOYS, ToyFederation
from test_faults import wait_until

from federation.errors import ExperimentFailed
from federation.notebook.handle import ExperimentHandle, FederationHandle
from federation.site.review import ReviewFolder

CARRIED = 1.5 * (1 + 1.5 + 1.75)
"""Three rounds with momentum 0.5, undisturbed."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """One federation for this whole file; the owner of the second site decides on each submission."""
    federation = ToyFederation(tmp_path_factory.mktemp("queue"), sites=1)
    try:
        federation.start_site("site2", 2.0, accept="ask")
        federation.wait_for("site2", "registered")
        yield federation
    finally:
        federation.stop()
    assert "Traceback" not in federation.log("director")


def submit(toys: ToyFederation, name: str, *sites: str, rounds: int = 3, **faults: float) -> ExperimentHandle:
    federation = FederationHandle("localhost", toys.port)
    federation.wait_for_sites(2, 30)
    return federation.submit(
        name, sites=sites or None, package=TOYS / "toy", entry_point="toy.experiment:experiment",
        settings={"length": 4, "faults": faults}, rounds=rounds, best_metric="accuracy",
    )  # fmt: skip


def approve(toys: ToyFederation, name: str) -> None:
    """What the second site's owner does; the decision holds for the same code under another name."""
    folder = ReviewFolder(toys.logs / "site2.review")
    wait_until(lambda: name in [each.experiment for each in folder.received()])
    (digest,) = {each.digest for each in folder.received() if each.experiment == name}
    if folder.decision(digest):
        return
    folder.note_shown(digest)
    folder.decide(digest, approved=True)


def weights(experiment: ExperimentHandle) -> np.ndarray:
    list(experiment.metrics())
    return experiment.last_weights()["vector"]


def test_different_sites_work_side_by_side(toys: ToyFederation) -> None:
    slow = submit(toys, "slow", "site1", sleep_on=1.0, in_round=0, seconds=60)
    toys.wait_for("site1", r"round 1, task train: starts .*experiment=slow ")
    both = submit(toys, "both", rounds=1)
    other = submit(toys, "other", "site2")
    approve(toys, "other")
    np.testing.assert_allclose(weights(other), 6.0)  # 2.0 a round, while the first one sleeps
    assert slow.status() == "in_progress"
    assert both.status() == "pending, 1 before it"
    slow.cancel()
    with pytest.raises(ExperimentFailed, match="slow was cancelled"):
        list(slow.metrics())
    approve(toys, "both")
    np.testing.assert_allclose(weights(both), 1.5)


def test_one_that_waits_for_an_owner_holds_nobody_up(toys: ToyFederation) -> None:
    """It gives way at the sites whose owners have decided, and goes on to the weights of an undisturbed run."""
    known = submit(toys, "known")
    approve(toys, "known")
    np.testing.assert_allclose(weights(known), 4.5)
    waits = submit(toys, "waits", momentum=0.5)
    toys.wait_for("site1", r"round 1, task train: took .*experiment=waits ")
    wait_until(lambda: waits.status() == "in_progress, waiting for approval at site2")
    for name in ("first", "second"):
        passes = submit(toys, name)  # the code of "known", so it is approved
        np.testing.assert_allclose(weights(passes), 4.5)
        assert waits.status() == "pending, waiting for approval at site2"
    assert "experiment waits: leaves its sites to others while it waits for approval at site2" in toys.log("director")
    # The owner decides while another one is at work, and one more has come: it has its turn all the same.
    at_work = submit(toys, "at work", rounds=1, sleep_on=1.0, in_round=0, seconds=6)
    approve(toys, "at work")
    toys.wait_for("site1", r"round 1, task train: starts .*experiment=\"at work\" ")
    approve(toys, "waits")
    later = submit(toys, "later")
    np.testing.assert_allclose(weights(at_work), 1.5)
    np.testing.assert_allclose(weights(waits), CARRIED)
    np.testing.assert_allclose(weights(later), 4.5)
    metrics = list(waits.metrics())
    assert len({(m.round, m.site, m.task, m.metric) for m in metrics}) == len(metrics)
    assert {m.round for m in metrics if (m.site, m.task) == ("site1", "train")} == {1, 2, 3}


def test_an_owner_may_decide_while_another_site_is_busy(toys: ToyFederation) -> None:
    """The site of the owner is free, so its envoy goes on at once; the experiment starts when all of its sites can."""
    waits = submit(toys, "decided", momentum=0.75)
    wait_until(lambda: waits.status() == "in_progress, waiting for approval at site2")
    busy = submit(toys, "busy", "site1", rounds=1, sleep_on=1.0, in_round=0, seconds=8)
    toys.wait_for("site1", r"round 1, task train: starts .*experiment=busy ")
    approve(toys, "decided")
    wait_until(lambda: waits.status() == "pending, 1 before it")
    np.testing.assert_allclose(weights(busy), 1.0)
    np.testing.assert_allclose(weights(waits), 1.5 * (1 + 1.75 + 2.3125))


def test_it_gives_way_at_all_of_its_sites_for_the_sake_of_one(toys: ToyFederation) -> None:
    """Its trainer at a site that nobody else needs ends, too, and fails nothing."""
    known = submit(toys, "at one site", "site2")
    approve(toys, "at one site")
    list(known.metrics())
    waits = submit(toys, "everywhere", momentum=0.125)
    toys.wait_for("site1", r"round 1, task train: took .*experiment=everywhere ")
    wait_until(lambda: waits.status() == "in_progress, waiting for approval at site2")
    again = submit(toys, "at one site again", "site2")
    np.testing.assert_allclose(weights(again), 6.0)
    assert waits.status() == "pending, waiting for approval at site2"
    toys.wait_for("site1", "experiment everywhere: (done|is over)", 10)
    approve(toys, "everywhere")
    np.testing.assert_allclose(weights(waits), 1.5 * (1 + 1.125 + 1.140625))


def test_code_that_its_owner_rejects_while_it_has_given_way_is_told_so(toys: ToyFederation) -> None:
    known = submit(toys, "known again")
    approve(toys, "known again")
    np.testing.assert_allclose(weights(known), 4.5)
    waits = submit(toys, "unwanted", momentum=0.25)
    wait_until(lambda: waits.status() == "in_progress, waiting for approval at site2")
    at_work = submit(toys, "meanwhile", rounds=1, sleep_on=1.0, in_round=0, seconds=6)
    approve(toys, "meanwhile")
    wait_until(lambda: waits.status() == "pending, waiting for approval at site2")
    folder = ReviewFolder(toys.logs / "site2.review")
    (digest,) = {each.digest for each in folder.received() if each.experiment == "unwanted"}
    folder.decide(digest, approved=False, reason="not here")
    with pytest.raises(ExperimentFailed, match=r"(?s)site2 failed.*not here"):
        list(waits.metrics())
    np.testing.assert_allclose(weights(at_work), 1.5)
