"""This project's federation: a director and an envoy for each site, started as in the end-to-end tests."""

from pathlib import Path

from addition import Job
from measure import BENCHMARKS, Tagged
from processes import ToyFederation

from federation.notebook.handle import ExperimentHandle, FederationHandle


class AdditionFederation(Tagged, ToyFederation):
    """A director, and sites that hold their number and their weight."""

    def __init__(self, job: Job) -> None:
        super().__init__(Path(job.folder), sites=0)
        for site in range(1, job.sites + 1):
            self.start_site(f"site{site}", float(site), size=job.weight(site))


def submit(started: ToyFederation, job: Job, name: str) -> ExperimentHandle:
    """Send the job to the director as soon as all sites are there."""
    federation = FederationHandle("localhost", started.port)
    federation.wait_for_sites(job.sites, 120)
    return federation.submit(
        name,
        package=BENCHMARKS / "addition",
        entry_point="addition.tasks:experiment",
        settings={},  # the job is in the environment, as for every system
        rounds=job.rounds,
        best_metric="accuracy",
        keep_optimizer=False,
    )


def run(job: Job) -> None:
    """Start director and envoys, submit the experiment, wait for its end, and take the last model."""
    with AdditionFederation(job) as started:
        experiment = submit(started, job, "addition")
        for _ in experiment.metrics():
            pass
        job.checkpoint(experiment.last_weights())
