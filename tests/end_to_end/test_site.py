"""What happens at a site: slots, owners who take their time, processes that code has started, and a full disk."""

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from unittest.mock import patch

import numpy as np
import psutil
import pytest
from processes import TOYS, ToyFederation
from test_federation import submit

from federation import review
from federation.errors import ExperimentFailed
from federation.notebook.handle import ExperimentHandle, FederationHandle
from federation.policy import RoundPolicy


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """Two sites with two slots each."""
    federation = ToyFederation(tmp_path_factory.mktemp("site"), sites=0)
    for number in (1, 2):
        federation.start_site(f"site{number}", float(number), slots=2)
    for number in (1, 2):
        federation.wait_for(f"site{number}", "registered")
    yield federation
    federation.stop()


def wait_until(condition: Callable[[], object], seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_experiments_run_side_by_side_on_free_slots(toys: ToyFederation) -> None:
    slow = submit(toys, "slow", rounds=1, sleep_on=1.0, in_round=0, seconds=100)
    toys.wait_for("site1", "round 1, task train: starts")
    quick = submit(toys, "quick", rounds=2)
    assert len(list(quick.metrics())) > 0
    np.testing.assert_allclose(quick.last_weights()["vector"], 3.0)
    assert slow.status() == "in_progress"
    third = submit(toys, "third", rounds=1)
    fourth = submit(toys, "fourth", rounds=1)
    for each in (third, fourth):
        list(each.metrics())
    assert slow.status() == "in_progress"
    slow.cancel()
    with pytest.raises(ExperimentFailed, match="cancelled"):
        list(slow.metrics())
    toys.wait_for("site1", "slow: is over for this site; its trainer was ended")
    assert "2 slots: so many experiments run side by side" in toys.log("site1")
    assert len({line for line in toys.log("site1").splitlines() if ": done" in line}) == 3


def started(toys: ToyFederation) -> psutil.Process | None:
    """The process that the toy has started at site 1, if it lives."""
    path = toys.logs / "tmp" / "started-1.0"
    if not path.exists() or not path.read_text():
        return None
    pid = int(path.read_text())
    alive = psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return psutil.Process(pid) if alive else None


@pytest.mark.parametrize("ending", ["the experiment's end", "a failure", "the envoy's death", "the envoy's stop"])
def test_what_an_experiments_code_has_started_ends_with_it(toys: ToyFederation, ending: str) -> None:
    (toys.logs / "tmp" / "started-1.0").unlink(missing_ok=True)
    FederationHandle("localhost", toys.port).wait_for_sites(2, 30)
    if ending == "the experiment's end":
        experiment = submit(toys, ending, rounds=1, start_on=1.0, in_round=0)
        list(experiment.metrics())
        toys.wait_for("site1", f"{ending}: done")
    elif ending == "a failure":
        experiment = submit(toys, ending, rounds=1, start_on=1.0, raise_on=2.0, in_round=0)
        with pytest.raises(ExperimentFailed, match="the toy was told to fail"):
            list(experiment.metrics())
    else:
        experiment = submit(toys, ending, rounds=1, start_on=1.0, sleep_on=1.0, in_round=0, seconds=100)
        wait_until(lambda: started(toys))
        if ending == "the envoy's death":
            left = {path for path in (toys.logs / "tmp").glob("site1-*") if list(path.glob("*/experiment.json"))}
            assert len(left) == 1
            toys.kill("site1")
        else:
            left = set()
            toys.running["site1"].terminate()
            assert toys.wait("site1") == 0
            assert not list((toys.logs / "tmp").glob("site1-*"))
        wait_until(lambda: not started(toys))
        experiment.cancel()
        toys.start_site("site1", 1.0, slots=2)
        toys.wait_for("site1", "registered")
        wait_until(lambda: not left & {*(toys.logs / "tmp").glob("site1-*")})
        return
    wait_until(lambda: not started(toys))


def owner(toys: ToyFederation, *words: str) -> str:
    """What a command of site 3's owner prints."""
    told = StringIO()
    arguments = ["review", *words, "--config", str(toys.logs / "site3.yaml")]
    with patch("sys.argv", arguments), redirect_stdout(told), pytest.raises(SystemExit) as left:
        review.main()
    assert not left.value.code, told.getvalue()
    return told.getvalue()


def waiting(toys: ToyFederation) -> list[str]:
    return re.findall(r"^(\w{12}) .* waits for you$", owner(toys, "list"), flags=re.MULTILINE)


def reads(pool: ThreadPoolExecutor, experiment: ExperimentHandle) -> Callable[[], int]:
    reading = pool.submit(lambda: len(list(experiment.metrics())))
    return lambda: reading.result(60)


def test_an_experiment_that_waits_for_an_owner_holds_nobody_else_up(toys: ToyFederation, tmp_path: Path) -> None:
    toys.start_site("site3", 3.0, accept="ask")
    toys.wait_for("site3", "registered")
    changed = []
    for step in ("10.0", "20.0"):
        package = tmp_path / step / "toy"
        shutil.copytree(TOYS / "toy", package, ignore=shutil.ignore_patterns("__pycache__"))
        source = package / "experiment.py"
        source.write_text(source.read_text().replace("STEP = 1.0", f"STEP = {step}"))
        changed.append(package)
    with ThreadPoolExecutor(4) as pool:
        known = submit(toys, "known", rounds=1)
        wait_until(lambda: waiting(toys))
        (digest,) = waiting(toys)
        owner(toys, "show", digest)
        owner(toys, "approve", digest)
        assert reads(pool, known)() > 0
        waits = [submit(toys, f"waits {n}", rounds=1, package=package) for n, package in enumerate(changed)]
        wait_until(lambda: len(waiting(toys)) == 2)
        goes = submit(toys, "goes on", rounds=1)  # the owner knows this code
        assert reads(pool, goes)() > 0
        np.testing.assert_allclose(goes.last_weights()["vector"], 2.0)
        assert ["waiting for approval at site3" in each.status() for each in waits] == [True, True]
        for digest in waiting(toys):
            owner(toys, "show", digest)
            owner(toys, "approve", digest)
        for each, step in zip(waits, (10.0, 20.0), strict=True):
            assert reads(pool, each)() > 0
            np.testing.assert_allclose(each.last_weights()["vector"], 2 * step)
    toys.running["site3"].terminate()
    assert toys.wait("site3") == 0
    assert "Traceback" not in toys.log("site3")


@pytest.fixture
def small_disk(toys: ToyFederation) -> Iterator[Path]:
    """A folder of its own, of 2 MB, for all that site 4 writes."""
    folder = toys.logs / "site4.disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"this machine lets no test mount a file system: {mounted.stderr.strip()}")
    yield folder
    toys.running["site4"].terminate()
    toys.wait("site4")
    subprocess.run(["umount", str(folder)], check=True)


def test_an_envoy_outlives_a_disk_that_is_full_for_a_moment(toys: ToyFederation, small_disk: Path) -> None:
    for name in ("site4.review", "site4.audit.jsonl"):
        (toys.logs / name).symlink_to(small_disk / name)
    (small_disk / "site4.review").mkdir()
    before, toys.env = toys.env, toys.env | {"TMPDIR": str(small_disk)}
    toys.start_site("site4", 4.0)
    toys.env = before
    toys.wait_for("site4", "registered")
    FederationHandle("localhost", toys.port).wait_for_sites(3, 30)

    def fill() -> None:
        with (small_disk / "ballast").open("wb", buffering=0) as ballast:
            while True:
                try:
                    ballast.write(bytes(1000))
                except OSError:
                    return

    fill()
    # From the submission on: the review folder, the experiment's folder and the audit log all need room.
    experiment = submit(toys, "patient", rounds=2, length=20_000, policy=RoundPolicy(minimum_sites=3))
    toys.wait_for("site4", "the disk is full .*waits up to 600 s for room")
    time.sleep(1.5)
    assert toys.running["site4"].poll() is None
    os.unlink(small_disk / "ballast")
    toys.wait_for("site4", "the disk has room again")
    toys.wait_for("site4", "round 1, task train: starts")
    assert len(list(experiment.metrics())) > 0
    assert experiment.status() == "finished"
    assert "Traceback" not in toys.log("site4")
