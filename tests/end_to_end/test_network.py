"""A federation over several hosts, with certificates: links that are cut, narrow, long and lossy.

The hosts are network namespaces (`network.py`): director, three sites, and two laptops with notebooks. site2's link is
of limited rate; site3's is of 20 Mbit/s, 100 ms there and back, and loses one packet in a hundred (`wire.py`).
"""

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from network import Hosts, Network, leftovers
from processes import HOUSE, PYTHON, TOYS, certificate_lines, write_site
from toy.experiment import first_vector

from federation import authority as certificates

PORT = 50051
ENV = {"PYTHONPATH": f"{TOYS}:{HOUSE}", "OMP_NUM_THREADS": "1"}
Key = tuple[int, str, str, str]


class Machines(Hosts):
    """The federation's processes, each at its host, with a certificate of its own."""

    def __init__(self, network: Network, logs: Path) -> None:
        super().__init__(network, logs)
        director = network.add("director")
        network.add("site1")
        network.add("site2", mbit=50)
        network.add("site3", mbit=20, milliseconds=50, loss=0.01)
        network.add("laptop1")
        network.add("laptop2")
        self.authority = logs / "authority"
        certificates.init(self.authority)
        certificates.issue(self.authority, "director", "director", ["director.test", director])
        certificates.issue(self.authority, "experimenter", "ada")
        self.addresses = {"laptop1": f"director.test:{PORT}", "laptop2": f"{director}:{PORT}"}  # by name, by number
        settings = {
            "sample_shape": ["4"], "target_shape": ["1"], "listen_host": "0.0.0.0", "listen_port": PORT,
            "envoy_health_check_period": 1, "state": "state",
        }  # fmt: skip
        config = logs / "director.yaml"
        config.write_text(yaml.safe_dump({"settings": settings} | certificate_lines(self.authority, "director")))
        self.start_at("director", "director", PYTHON, "-m", "federation.director", "--config", config, env=ENV)
        for number in (1, 2, 3):
            self.start_site(f"site{number}", float(number))
        self.wait_for("director", "listening on")

    def start_site(self, name: str, value: float) -> None:
        certificates.issue(self.authority, "envoy", name)
        site = write_site(self.logs, name, PORT, "toy_shard.ToyShard", {"value": value})
        told = yaml.safe_load(site.read_text()) | certificate_lines(self.authority, name)
        told["director"]["host"] = "director.test"
        site.write_text(yaml.safe_dump(told))
        self.start_at(name, name, PYTHON, "-m", "federation.envoy", "--config", site, env=ENV)

    def start_notebook(self, laptop: str, name: str, experiment: str, **submission: object) -> None:
        certificate, weights = self.authority / "ada.crt", self.logs / f"{name}.npy"
        command = [PYTHON, TOYS / "notebook.py", self.addresses[laptop], certificate, experiment, weights]
        submit = ["--submit", json.dumps(submission)] if submission else []
        self.start_at(laptop, name, *command, *submit, env=ENV)

    def metrics(self, notebook: str) -> dict[Key, float]:
        """What a notebook was told; it is told nothing twice."""
        lines = [json.loads(line) for line in self.log(notebook).splitlines() if re.match(r'\[\d+, "', line)]
        told: dict[Key, float] = {(done, site, task, name): value for done, site, task, name, value in lines}
        assert len(told) == len(lines)
        return told

    def wait_for(self, name: str, pattern: str, seconds: float = 300) -> re.Match[str]:
        return super().wait_for(name, pattern, seconds)

    def weights(self, notebook: str) -> np.ndarray:
        """The last weights as a notebook got them, once it has ended well."""
        assert self.wait(notebook, 300) == 0, self.log(notebook)
        return np.load(self.logs / f"{notebook}.npy")

    def all_went_well(self) -> None:
        """No log calls anything a fault but the connection itself."""
        for name in ("director", "site1", "site2", "site3"):
            for word in ("ERROR", "Traceback", "failed", "is gone", "goes on without", "too_many_pings"):
                assert word not in self.log(name), f"{name}:\n{self.log(name)}"


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    try:
        network = Network()
    except PermissionError as reason:
        pytest.skip(str(reason))
    with network:
        started = Machines(network, tmp_path_factory.mktemp("network"))
        yield started
        started.stop()


def test_what_a_killed_run_leaves_is_removed_by_the_next(machines: Machines) -> None:
    run = (
        "import subprocess, time; from network import Network; network = Network(); network.add('host'); "
        "subprocess.Popen(network.at('host', 'sleep', '1000')); print('ready', flush=True); time.sleep(1000)"
    )
    killed = subprocess.Popen([PYTHON, "-c", run], stdout=subprocess.PIPE, env=os.environ | ENV)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"ready\n"
    killed.kill()
    killed.wait()
    names = [f"kws-{killed.pid}-1-host", f"kws-{killed.pid}-1-router"]
    assert sorted(leftovers()) == names
    sleeper = int(subprocess.check_output(["ip", "netns", "pids", names[0]]))
    with Network():
        assert leftovers() == []
    assert not Path("/proc", str(sleeper), "exe").exists()  # dead, or waits for its parent
    assert machines.network.sent("site1") > 0  # the others' networks stay


def took_part(metrics: dict[Key, float]) -> set[tuple[int, str]]:
    return {(done, site) for (done, site, _, name), value in metrics.items() if name == "took_part" and value == 1.0}


def test_a_whole_run_with_certificates_over_a_long_narrow_and_lossy_link(machines: Machines) -> None:
    """10 MB each way take site3 four seconds at best: longer than a site may be silent, which a busy one is not."""
    sites, length = ["site1", "site2", "site3"], 2_500_000
    machines.start_notebook(
        "laptop1", "submitter", "far", sites=sites, length=length, rounds=1, policy={"gone_seconds": 4}
    )
    machines.wait_for("site3", "round 1, task train: starts")
    before = machines.network.sent("site3")
    machines.wait_for("site3", "round 1, task train: took")
    assert machines.network.sent("site3") - before > 4 * length  # it did go over that link
    # As in a plain run: the sites add 1, 2 and 3 a round.
    np.testing.assert_allclose(machines.weights("submitter"), first_vector(length) + 2.0, rtol=1e-6)
    metrics = machines.metrics("submitter")
    assert took_part(metrics) == {(1, site) for site in sites}
    assert {done for done, site, task, _ in metrics if (site, task) == ("aggregator", "validate_global")} == {0, 1}
    machines.all_went_well()


def test_links_that_are_cut_for_30_seconds(machines: Machines) -> None:
    """site2's in the middle of its upload, and a notebook's; another notebook dies, and a third takes its place."""
    network, length = machines.network, 5_000_000
    machines.running["site3"].terminate()
    machines.wait("site3")
    start, trained = network.sent("site2"), machines.log("site2").count("task train: starts")
    machines.start_notebook("laptop1", "steady", "cut", sites=["site1", "site2"], length=length, rounds=1)
    network.wait_until_sent("site2", start + 4 * length // 3, 120)
    network.cut("site2", "laptop1")
    cut = time.monotonic()
    for name in ("short-lived", "successor"):
        machines.start_notebook("laptop2", name, "cut")
        machines.wait_for(name, r'\[0, "site1", "validate_global"')  # the first metric of all
        if name == "short-lived":
            machines.kill(name)
    time.sleep(max(0.0, cut + 30 - time.monotonic()))
    before = network.sent("site2")
    assert before - start < 4 * length  # it was in the middle
    network.mend("site2", "laptop1")
    delay = network.wait_until_sent("site2", before + 500_000, 10)
    print(f"the transfer goes on {delay:.1f} s after the link is back")
    for notebook in ("steady", "successor"):
        np.testing.assert_allclose(machines.weights(notebook), first_vector(length) + 1.5, rtol=1e-6)
    metrics = machines.metrics("steady")
    assert machines.metrics("successor") == metrics
    assert took_part(metrics) == {(1, "site1"), (1, "site2")}
    assert machines.log("steady").count("the director is out of reach") == 1
    assert "the director is out of reach" not in machines.log("successor")
    assert machines.log("site2").count("task train: starts") == trained + 1  # sent again, not trained again
    machines.all_went_well()
