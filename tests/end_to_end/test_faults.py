"""One running toy federation and what goes wrong around it: two envoys of a name, calls that are not for everyone."""

import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import grpc
import numpy as np
import pytest
from openfl.protocols import director_pb2, director_pb2_grpc
from processes import PYTHON, ToyFederation
from test_federation import submit
from toy.experiment import first_vector

import lab.submission
from federation.errors import ExperimentFailed, SubmissionRefused
from federation.notebook.handle import FederationHandle
from federation.site.client import INSTEAD_OF, PROCESS
from lab.presets import preset
from shard_descriptors.corpus import SUPERB_KS

CARRIED = 1.5 * (1 + 1.5 + 1.75)
"""Three rounds with momentum 0.5; an optimizer that begins anew in the second gives less."""


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ToyFederation]:
    """One federation for this whole file."""
    federation = ToyFederation(tmp_path_factory.mktemp("faults"))
    yield federation
    federation.stop()
    assert "Traceback" not in federation.log("director")


class FakeEnvoy:
    """A process of its own in the director's eyes, which says only what a test lets it say."""

    def __init__(self, toys: ToyFederation, name: str, process: str) -> None:
        self.name, self._metadata = name, [(PROCESS, process)]
        self.channel = grpc.insecure_channel(f"localhost:{toys.port}")
        self.stub = director_pb2_grpc.DirectorStub(self.channel)

    def register(self) -> bool:
        info = director_pb2.ShardInfo(
            node_info=director_pb2.NodeInfo(name=self.name), sample_shape=["4"], target_shape=["1"]
        )
        request = director_pb2.UpdateShardInfoRequest(shard_info=info)
        return self.stub.UpdateShardInfo(request, metadata=self._metadata, timeout=10).accepted

    def is_there(self) -> None:
        request = director_pb2.UpdateEnvoyStatusRequest(name=self.name)
        self.stub.UpdateEnvoyStatus(request, metadata=self._metadata, timeout=10)

    def wait(self, instead_of: str = "", timeout: float = 10) -> str:
        request = director_pb2.WaitExperimentRequest(collaborator_name=self.name)
        metadata = [*self._metadata, (INSTEAD_OF, instead_of.encode())]
        return self.stub.WaitExperiment(request, metadata=metadata, timeout=timeout).experiment_name


def wait_until(true: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def wait_until_online(toys: ToyFederation, *names: str) -> None:
    federation = FederationHandle("localhost", toys.port)
    wait_until(lambda: tuple(site.name for site in federation.sites() if site.online) == names)


def code_of(call: grpc.RpcError) -> str:
    return str(call.code().name)


def test_of_two_envoys_of_one_name_the_second_is_refused(toys: ToyFederation) -> None:
    experiment = submit(toys, "undisturbed", rounds=2, sleep_on=1.0, in_round=1, seconds=4)
    toys.start("twin", PYTHON, "-m", "federation.envoy", "--config", toys.logs / "site1.yaml", env=toys.env)
    assert toys.wait("twin") == 1
    assert "refused this site: another envoy named site1 is connected to this director; stop that" in toys.log("twin")
    assert "Traceback" not in toys.log("twin")
    assert "site1: refused, another envoy of this name is there; peer " in toys.log("director")
    list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], 3.0)
    assert toys.log("site1").count("undisturbed: starts") == 1


def test_a_name_is_free_again_when_its_envoy_is_gone(toys: ToyFederation) -> None:
    # Gone while it waits for work: its connection breaks, and the name is free at once.
    first, second = (FakeEnvoy(toys, "site8", process) for process in ("a", "b"))
    assert first.register()
    with ThreadPoolExecutor(1) as pool:
        question = pool.submit(first.wait)
        time.sleep(0.3)  # it has arrived
        first.channel.close()
        started = time.monotonic()
        assert second.register()
        assert time.monotonic() - started < 1.0  # the director's patience with a silent one is 2 s
        assert question.exception(10)
    # Killed at whatever moment: the next one is in soon.
    toys.kill("site1")
    toys.start_site("site1", 1.0)
    toys.wait_for("site1", "registered", seconds=10)
    # Frozen, its connection open: the name is free when nothing was heard of it for two health periods.
    frozen = toys.running["frozen"] = toys.running["site1"]
    frozen.send_signal(signal.SIGSTOP)
    toys.start_site("site1", 1.0)
    toys.wait_for("site1", "registered")
    frozen.send_signal(signal.SIGCONT)
    assert frozen.wait(10) == 1  # it learns that its name is another's by now


def test_the_director_waits_for_a_sign_of_life(toys: ToyFederation) -> None:
    first, second = (FakeEnvoy(toys, "site9", process) for process in ("a", "b"))
    with pytest.raises(grpc.RpcError) as unknown:
        first.wait()
    assert code_of(unknown.value) == "NOT_FOUND"
    assert first.register()
    assert first.register()
    started = time.monotonic()
    assert second.register()  # the first says no more
    assert 1.5 < time.monotonic() - started < 5
    for late in (first.is_there, first.wait):
        with pytest.raises(grpc.RpcError) as taken:
            late()
        assert code_of(taken.value) == "ALREADY_EXISTS"
    with pytest.raises(grpc.RpcError) as idle:
        second.wait(timeout=0.3)  # and when this call is broken off, the process counts as gone
    assert code_of(idle.value) == "DEADLINE_EXCEEDED"
    started = time.monotonic()
    assert first.register()
    assert time.monotonic() - started < 1.0


def test_an_experiment_is_its_own_sites_business(toys: ToyFederation) -> None:
    stranger = FakeEnvoy(toys, "site8", "c")
    assert stranger.register()
    wait_until_online(toys, "site1", "site2")  # the others, who say no more, count as away after two seconds
    experiment = submit(toys, "private", rounds=1, sleep_on=1.0, in_round=0, seconds=3)
    toys.wait_for("site1", "private: starts")

    def data(experiment_name: str, site: str) -> bytes:
        request = director_pb2.GetExperimentDataRequest(experiment_name=experiment_name, collaborator_name=site)
        return b"".join(part.npbytes for part in stranger.stub.GetExperimentData(request, timeout=5))

    def fail(experiment_name: str, site: str) -> None:
        stranger.stub.SetExperimentFailed(
            director_pb2.SetExperimentFailedRequest(
                experiment_name=experiment_name, collaborator_name=site, error_code=1, error_description="no"
            ),
            timeout=5,
        )

    for call in (data, fail):
        for name, code in (("private", "PERMISSION_DENIED"), ("unheard of", "NOT_FOUND")):
            with pytest.raises(grpc.RpcError) as error:
                call(name, "site8")
            assert code_of(error.value) == code
            assert name in error.value.details()
    assert data("private", "site1").startswith(b"PK")
    # It hears of the end of an experiment that it has no part in at once, and of no work.
    stranger.register()
    assert stranger.wait(instead_of="private") == ""
    list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], 1.5)


def test_a_model_that_is_not_there_is_told_in_the_notebook(toys: ToyFederation, tmp_path: Path) -> None:
    """On the notebook's own machine, before anything is sent; on a site it is a task like others that raises."""
    wait_until_online(toys, "site1", "site2")
    federation = FederationHandle("localhost", toys.port)
    for folder, words in (
        (tmp_path / "lost", "there is no folder"),
        (tmp_path, "does not hold a whole model"),
    ):
        config = preset(model=str(folder))
        with pytest.raises(SubmissionRefused, match=words):
            lab.submission.submit(federation, config, "lost", SUPERB_KS)
    assert federation.attach("lost").status() == "unknown"


@pytest.mark.parametrize("task", ["train", "validate_local"])
def test_a_killed_site_goes_on_with_its_optimizer(toys: ToyFederation, task: str) -> None:
    wait_until_online(toys, "site1", "site2")
    (toys.logs / "tmp" / "nap-1.0").unlink(missing_ok=True)
    fault = "nap_on" if task == "train" else "nap_validating_on"
    experiment = submit(toys, f"killed in {task}", momentum=0.5, in_round=1, **{fault: 1.0})
    wait_until((toys.logs / "tmp" / "nap-1.0").exists)
    (kept,) = (toys.logs / "sites" / "site1").iterdir()
    assert {path.name for path in kept.iterdir()} == ({"0.state"} if task == "train" else {"0.state", "1.state"})
    toys.kill("site1")
    toys.start_site("site1", 1.0)
    metrics = list(experiment.metrics())
    np.testing.assert_allclose(experiment.last_weights()["vector"], CARRIED, rtol=0)
    assert len({(m.round, m.site, m.task, m.metric) for m in metrics}) == len(metrics)
    assert {m.round for m in metrics if (m.site, m.task) == ("site1", "validate_local")} == {1, 2, 3}
    assert "the optimizer goes on from where 0.state left it" in toys.log("site1")
    assert ("training again" in toys.log("site1")) == (task == "validate_local")
    toys.wait_for("site1", f"killed in {task}: (done|is over)")
    wait_until(lambda: not list((toys.logs / "sites").glob("*/*")))  # removed with the experiment


def test_a_director_that_is_stopped_at_the_end_of_a_round_goes_on(toys: ToyFederation) -> None:
    wait_until_online(toys, "site1", "site2")
    rounds, seed = 45, time.time_ns()
    generator = random.Random(seed)
    experiment = submit(toys, "stopped often", rounds=rounds)
    for stop in (1, 2):
        for metric in experiment.metrics():
            if metric.task == "validate_local" and metric.round >= 15 * stop:
                break
        time.sleep(generator.uniform(0, 0.1))
        toys.running["director"].terminate()
        assert toys.wait("director") == 0, seed
        assert "Traceback" not in toys.log("director"), seed
        toys.start_director(toys.port)
        experiment = FederationHandle("localhost", toys.port).attach("stopped often")
    metrics = list(experiment.metrics())
    told = [(m.round, m.site, m.task, m.metric) for m in metrics]
    assert len(set(told)) == len(told), seed
    for site in ("site1", "site2"):
        assert [r for r, *rest in told if rest == [site, "train", "loss"]] == list(range(1, rounds + 1)), seed
    np.testing.assert_array_equal(experiment.last_weights()["vector"], 1.5 * rounds)
    # Stopped after the last round was kept and before its end was: nothing is left to do but to say so.
    toys.kill("director")
    progress = toys.logs / "state" / "stopped%20often" / "progress.json"
    progress.write_text(json.dumps(json.loads(progress.read_text()) | {"status": "in_progress"}))
    toys.start_director(toys.port)
    experiment = FederationHandle("localhost", toys.port).attach("stopped often")
    assert len(list(experiment.metrics())) == len(metrics)
    assert experiment.status() == "finished"


class FullDisk:
    """The disk with the director's state, which a test can fill: a small file system, or a limit on files' sizes."""

    def __init__(self, toys: ToyFederation, kind: str) -> None:
        self._folder, self.kind = toys.logs / "state", kind
        self._director = toys.running["director"].pid
        if kind == "a small file system":
            mounted = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(self._folder)], capture_output=True, text=True
            )
            if mounted.returncode:
                pytest.skip(f"this machine lets no test mount a file system: {mounted.stderr.strip()}")

    def fill(self) -> None:
        """Leave some 50 kB."""
        if self.kind == "a small file system":
            with (self._folder / ".ballast").open("wb") as ballast:
                room = os.statvfs(self._folder)
                ballast.write(bytes(room.f_bavail * room.f_frsize - 50_000))
        else:
            resource.prlimit(self._director, resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))

    def free(self) -> None:
        (self._folder / ".ballast").unlink(missing_ok=True)
        resource.prlimit(self._director, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

    def remove(self) -> None:
        with suppress(ProcessLookupError):
            self.free()
        if self.kind == "a small file system":
            subprocess.run(["umount", str(self._folder)], check=True)


@pytest.fixture(params=["a small file system", "a limit on files"])
def disk(toys: ToyFederation, request: pytest.FixtureRequest) -> Iterator[FullDisk]:
    disk = FullDisk(toys, request.param)
    yield disk
    disk.remove()


def test_a_full_disk(toys: ToyFederation, disk: FullDisk) -> None:
    """The last test of this file: experiments of the first kind of disk are gone with it."""
    wait_until_online(toys, "site1", "site2")
    state = toys.logs / "state"
    before = {path.name for path in state.iterdir()}
    numbers = 50_000  # 200 kB in a checkpoint
    where = "on its disk .*its operator has to make room in the folder that director.yaml names as `state`"
    disk.fill()
    with pytest.raises(SubmissionRefused, match=f"the director cannot keep big {where}"):
        submit(toys, "big", length=numbers)
    assert {path.name for path in state.iterdir()} - {".ballast"} == before
    disk.free()
    name = f"big on {disk.kind}"
    experiment = submit(toys, name, length=numbers, sleep_on=1.0, in_round=1, seconds=2)
    next(metric for metric in experiment.metrics() if metric.task == "validate_local" and metric.round == 2)
    disk.fill()
    with pytest.raises(ExperimentFailed, match=f"the director cannot keep round 2 of {name} {where}"):
        list(experiment.metrics())
    (kept,) = {path for path in state.iterdir() if path.name not in before and path.is_dir()}
    assert {path.name for path in kept.iterdir()} == {
        "best-0.safetensors", "experiment.json", "experiment.zip", "metrics.jsonl", "progress.json",
        "round-1.safetensors",
    }  # fmt: skip
    progress = json.loads((kept / "progress.json").read_text())
    assert (progress["status"], progress["next_round"]) == ("failed", 1)
    disk.free()
    after = submit(toys, f"after {disk.kind}", length=numbers, rounds=1)
    list(after.metrics())
    np.testing.assert_allclose(after.last_weights()["vector"], first_vector(numbers) + 1.5)
    assert experiment.status() == "failed"
