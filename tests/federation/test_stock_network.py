"""The engine's faults in director, envoy and notebook, which ours has not got. docs/engine.md lists them all."""

import asyncio
import pickle
import subprocess
import sys
import threading
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent import futures
from contextlib import asynccontextmanager, chdir, suppress
from functools import partial
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import yaml
from click.testing import CliRunner
from openfl.component import Aggregator as EngineAggregator
from openfl.component.director import Director as EngineDirector
from openfl.component.envoy.envoy import Envoy as EngineEnvoy
from openfl.federated import Plan
from openfl.interface import envoy as engine_launcher
from openfl.interface.interactive_api.experiment import FLExperiment
from openfl.interface.interactive_api.federation import Federation as EngineFederation
from openfl.transport import AggregatorGRPCServer, DirectorGRPCServer
from openfl.transport.grpc.director_client import DirectorClient, ShardDirectorClient
from openfl.utilities.workspace import ExperimentWorkspace
from processes import TOYS
from rounds import GOOD, build, finish_round, messages, nothing, pack
from served import SECONDS, SHAPES, Running, free_port, our_server, within
from stock import fault
from submissions import SMALL, zipped
from toy.experiment import TASKS, Numbers, VectorModel
from toy_shard import ToyShard

from federation import authority as certificates
from federation.authority import Role
from federation.director.conductor import Conductor
from federation.director.director import Director
from federation.director.results import Results
from federation.errors import ArchiveRefused, SubmissionRefused
from federation.notebook.handle import FederationHandle
from federation.notebook.handle import _Client as OurClient
from federation.schedule import TRAIN
from federation.settings import Certificates, EnvoySettings, certificates_beside, load_envoy
from federation.site.client import SiteClient
from federation.site.envoy import Envoy
from federation.site.listing import lines
from federation.site.review import ReviewFolder, Submission, Verdict, verdict
from federation.wire import archives as experiment_archives
from federation.wire.models import save
from federation.wire.transfer import Address

BOTH = ["site1", "site2"]


def our_director(folder: Path, **settings: Any) -> Director:
    return Director(state_root=folder / "state", tls=False, **SHAPES, **settings)


def stock_director(_: Path, **settings: Any) -> EngineDirector:
    return EngineDirector(tls=False, **SHAPES, **settings)


def stock_server(folder: Path, **settings: Any) -> DirectorGRPCServer:
    server = DirectorGRPCServer(director_cls=EngineDirector, **{"tls": False, **settings})
    server.root_dir = folder
    return server


def registered(director: Any, sites: list[str] = BOTH) -> None:
    for name in sites:
        director.acknowledge_shard({"node_info": {"name": name}, **SHAPES})


# What a notebook sends


def stock_submission(port: int, name: str) -> None:
    experiment = FLExperiment(EngineFederation("ada", "localhost", port, tls=False), name)
    experiment.start(model_provider=VectorModel(), task_keeper=TASKS, data_loader=Numbers(), rounds_to_train=2)


def our_submission(port: int, name: str) -> None:
    FederationHandle("localhost", port, client_id="ada").submit(
        name, package=TOYS / "toy", entry_point="toy.experiment:experiment", settings={}, rounds=1,
        best_metric="accuracy", keep_optimizer=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[Path]]:
    """What arrives at a director when each side's notebook submits the same experiment twice."""
    arrived = {}
    for make, submit in ((stock_server, stock_submission), (our_server, our_submission)):
        notebook = tmp_path_factory.mktemp("notebook")
        (notebook / "recordings").mkdir()
        (notebook / "recordings" / "voice.wav").write_bytes(b"what somebody said")
        running = Running(partial(make, tmp_path_factory.mktemp("director")))
        try:
            registered(running.director)
            for name in BOTH:
                running.director.col_exp[name] = None  # or the engine cannot list them
            with chdir(notebook):
                for name in ("one", "two"):
                    submit(running.port, name)
            arrived[submit] = [running.director.experiments_registry[name].archive_path for name in ("one", "two")]
        finally:
            running.close()
    return arrived


@fault("interface/interactive_api/experiment.py:467", stock=stock_submission, ours=our_submission)
def test_what_lies_beside_the_notebook_stays_there(subject: Any, archives: Any) -> None:
    assert not [name for name in zipfile.ZipFile(archives[subject][0]).namelist() if name.endswith(".wav")]


@fault("interface/interactive_api/experiment.py:262", stock=stock_submission, ours=our_submission)
def test_no_list_of_packages_is_shipped(subject: Any, archives: Any) -> None:
    assert "requirements.txt" not in zipfile.ZipFile(archives[subject][0]).namelist()


def stock_identity(archive: Path, folder: Path) -> tuple[str, int]:
    zipfile.ZipFile(archive).extractall(folder)
    plan = Plan.parse(folder / "plan" / "plan.yaml")
    return plan.federation_uuid, plan.config["network"]["settings"]["agg_port"]


def our_identity(archive: Path, _: Path) -> tuple[str, None]:
    return experiment_archives.describe(experiment_archives.read(archive)).id, None  # all on the director's own port


@fault(
    "federated/plan/plan.py:299",
    "federated/plan/plan.py:309",
    stock=(stock_submission, stock_identity),
    ours=(our_submission, our_identity),
)
def test_two_experiments_of_one_plan_are_two_federations(subject: Any, archives: Any, tmp_path: Path) -> None:
    side, identity = subject
    (one, port), (two, other) = (identity(path, tmp_path / str(n)) for n, path in enumerate(archives[side]))
    assert one != two
    assert port is None or port != other


@fault(
    "transport/grpc/director_client.py:358",
    stock=lambda port: DirectorClient(
        client_id="ada",
        director_host="localhost",
        director_port=port,
        tls=False,
        root_certificate=None,
        private_key=None,
        certificate=None,
    ),
    ours=lambda port: OurClient(f"localhost:{port}", Certificates(), "ada"),
)
def test_the_initial_model_travels_once(subject: Any, tmp_path: Path) -> None:
    received: list[bytes] = []
    handler = grpc.stream_unary_rpc_method_handler(lambda messages, _: received.extend(messages) or b"")
    server = grpc.server(futures.ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("openfl.director.Director", {"SetNewExperiment": handler}),)
    )
    port = server.add_insecure_port("localhost:0")
    server.start()
    archive, model = tmp_path / "code.zip", np.ones(2**18, np.float32)
    archive.write_bytes(bytes(5 * 2**20))
    subject(port).set_new_experiment("toy", BOTH, archive, {"w": model})
    server.stop(None)
    assert 0 < sum(map(len, received)) < 1.1 * (archive.stat().st_size + model.nbytes)


# A director and its experiments


async def submitted(director: Any, archive: Path, folder: Path, name: str = "toy", sites: Sequence[str] = BOTH) -> Any:
    """Hand the director an experiment, as its server does."""
    copy, initial = folder / f"{name}.zip", {"vector": np.zeros(4, np.float32)}
    copy.write_bytes(archive.read_bytes())
    if isinstance(director, Director):
        registered(director, [site for site in sites if site not in director._shard_registry])
        model: dict[str, Any] = {"initial_model": save(folder / f"{name}.safetensors", initial).path}
    else:
        model = {"tensor_dict": initial}
    return await director.set_new_experiment(
        experiment_name=name, sender_name="ada", collaborator_names=sites, experiment_archive_path=copy, **model
    )


@asynccontextmanager
async def begun(make: Any, archive: Path, folder: Path) -> AsyncIterator[tuple[Any, Any]]:
    """A director and its experiment, whose first round waits for sites."""
    director = make(folder)
    await submitted(director, archive, folder)
    experiment = director.experiments_registry["toy"]
    with chdir(folder):
        loop = asyncio.create_task(director.start_experiment_execution_loop())
        try:
            assert await within(SECONDS, lambda: rounds_of(experiment))
            yield director, experiment
        finally:
            loop.cancel()
            with suppress(asyncio.CancelledError):
                await loop


def rounds_of(experiment: Any) -> Any:
    """What keeps an experiment's rounds, or None before they have begun."""
    return getattr(experiment, "conductor", None) or experiment.aggregator


async def finish(experiment: Any) -> None:
    """Both sites do everything and are told to quit."""
    rounds = rounds_of(experiment)
    if isinstance(rounds, Conductor):
        while not rounds.finished:
            for site in BOTH:
                await take_part(rounds, site)
            await rounds.settled()
        assert all([(await rounds.assignment(site)).over for site in BOTH])
        return
    for number in range(rounds.rounds_to_train):
        last = number == rounds.rounds_to_train - 1 and len(rounds.assigner.get_all_tasks_for_round(number)) == 1
        finish_round(rounds, number, None if last else {"vector": np.ones(4)}, BOTH)
    assert all(rounds.get_tasks(site)[3] for site in BOTH)


async def take_part(rounds: Conductor, site: str) -> None:
    """Do all tasks of the round that is on."""
    number, packed = rounds.round, pack({"vector": np.ones(4, np.float32)})
    for task in rounds.book.tasks:
        if task == TRAIN:
            address = Address(site=site, round=number, upload="one", size=packed.size)
            await rounds.receive(address, messages(packed.chunks(0)), nothing)
        rounds.take(Results(site, number, task, 1, GOOD))


DIRECTORS = {"stock": (stock_director, stock_submission), "ours": (our_director, our_submission)}


@fault("component/director/experiment.py:347", **DIRECTORS)
def test_idle_envoys_hear_at_once_of_an_experiment(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def heard() -> bool:
        director = make(tmp_path)
        loop = asyncio.create_task(director.start_experiment_execution_loop())
        waiting = asyncio.create_task(director.wait_experiment("site1"))
        await asyncio.sleep(0.05)
        await submitted(director, archives[side][0], tmp_path)
        in_time = await within(2, waiting.done)
        for task in (loop, waiting):
            task.cancel()
        return in_time

    assert asyncio.run(heard())


@fault("component/director/experiment.py:220", **DIRECTORS)
def test_the_end_is_known_at_once(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def known() -> bool:
        async with begun(make, archives[side][0], tmp_path) as (_, experiment):
            await finish(experiment)
            return await within(2, lambda: experiment.status == "finished")

    assert asyncio.run(known())


@fault("component/director/experiment.py:130", **DIRECTORS)
def test_a_failed_experiment_stays_failed(
    subject: Any, archives: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, side = subject
    monkeypatch.setattr(asyncio, "sleep", lambda _, sleep=asyncio.sleep: sleep(0.01))  # the engine's ten seconds

    async def status() -> str:
        async with begun(make, archives[side][0], tmp_path) as (director, experiment):
            director.set_experiment_failed(experiment_name="toy", collaborator_name="site1")
            await submitted(director, archives[side][0], tmp_path, "next")
            assert await within(SECONDS, lambda: rounds_of(director.experiments_registry["next"]))
            return str(experiment.status)

    assert asyncio.run(status()) == "failed"


@fault("component/director/director.py:295", **DIRECTORS)
def test_a_second_reader_gets_every_metric(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def read_twice() -> list[list[Any]]:
        async with begun(make, archives[side][0], tmp_path) as (director, experiment):
            await finish(experiment)
            return [[line async for line in director.stream_metrics("toy", "ada") if line] for _ in range(2)]

    first, second = asyncio.run(read_twice())
    assert first
    assert second == first


@fault("component/director/director.py:89", **DIRECTORS)
def test_an_experiment_outlives_its_director(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def status() -> str | None:
        await submitted(make(tmp_path), archives[side][0], tmp_path)
        found: str | None = await make(tmp_path).get_experiment_status("toy", "ada")
        return found

    assert asyncio.run(status()) == "pending, 0 before it"


@fault("component/director/director.py:394", stock=stock_director, ours=our_director, raises=KeyError)
def test_an_envoy_that_has_not_asked_for_work_is_listed(subject: Any, tmp_path: Path) -> None:
    async def listed() -> list[Any]:
        director = subject(tmp_path)
        registered(director)
        return list(director.get_envoys())

    assert len(asyncio.run(listed())) == 2


@fault("component/director/director.py:244", raises=AttributeError, **DIRECTORS)
def test_an_envoy_that_asks_again_gets_its_experiment_again(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def ask_twice() -> list[str]:
        director = make(tmp_path)
        await submitted(director, archives[side][0], tmp_path)
        if isinstance(director, Director):  # which tells of the experiment that runs
            director.presence.hear("site1", "")
            director.experiments_registry["toy"].status = "in_progress"
        director.col_exp_queues["site1"].put_nowait("toy")
        return [await asyncio.wait_for(director.wait_experiment("site1"), 1) for _ in range(2)]

    assert asyncio.run(ask_twice()) == ["toy", "toy"]


@fault("component/director/director.py:239", raises=TimeoutError, **DIRECTORS)
def test_a_question_of_a_lost_connection_takes_nothing_away(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def ask_again() -> str:
        director = make(tmp_path)
        if isinstance(director, Director):
            director.presence.hear("site1", "")
        lost = asyncio.create_task(director.wait_experiment("site1"))  # nobody hears the answer
        question = asyncio.create_task(director.wait_experiment("site1"))
        await asyncio.sleep(0)
        await submitted(director, archives[side][0], tmp_path)
        running = asyncio.create_task(director.start_experiment_execution_loop())
        try:
            return await asyncio.wait_for(question, 1)
        finally:
            for task in (lost, running):
                task.cancel()

    assert asyncio.run(ask_again()) == "toy"


@fault("component/director/experiment.py:218", **DIRECTORS)
def test_an_experiment_needs_a_site(subject: Any, archives: Any, tmp_path: Path) -> None:
    make, side = subject

    async def accepted() -> bool:
        try:
            return bool(await submitted(make(tmp_path), archives[side][0], tmp_path, sites=[]))
        except SubmissionRefused:
            return False

    assert not asyncio.run(accepted())


@fault("component/director/director.py:112", stock=stock_director, ours=our_director)
def test_the_director_says_which_shapes_it_refuses(
    subject: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def accepted() -> bool:
        shard = {"node_info": {"name": "odd"}, "sample_shape": ["5"], "target_shape": ["1"]}
        return bool(subject(tmp_path).acknowledge_shard(shard))

    assert not asyncio.run(accepted())
    assert "5" in caplog.text


# A director's server


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """Certificates for a director, two envoys and an experimenter."""
    folder = tmp_path / "authority"
    certificates.init(folder)
    certificates.issue(folder, Role.DIRECTOR, "director", ["localhost"])
    for role, name in ((Role.ENVOY, "site1"), (Role.ENVOY, "rogue"), (Role.EXPERIMENTER, "ada")):
        certificates.issue(folder, role, name)
    return folder


def secure(authority: Path, name: str) -> dict[str, Any]:
    return {"tls": True, **certificates_beside(authority / f"{name}.crt").as_strings()}


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Running]]:
    """Start a director's server; stopped at the end."""
    started = []

    def start(make: Any, **settings: Any) -> Running:
        started.append(Running(partial(make, tmp_path), **settings))
        return started[-1]

    yield start
    for running in started:
        running.close()


def shard_client(running: Running, authority: Path, certificate: str, shard: str) -> ShardDirectorClient:
    return ShardDirectorClient(
        director_host="localhost", director_port=running.port, shard_name=shard, **secure(authority, certificate)
    )


@fault("transport/grpc/director_server.py:419", stock=stock_server, ours=our_server)
def test_with_tls_too_a_site_can_report_that_it_failed(subject: Any, serve: Any, authority: Path) -> None:
    running = serve(subject, **secure(authority, "director"))
    archive = authority / "experiment.zip"
    archive.write_bytes(zipped(SMALL))
    running.do(submitted(running.director, archive, authority))
    experiment = running.director.experiments_registry["toy"]
    if subject is stock_server:  # which can only fail when it has an aggregator to stop
        experiment.aggregator = build(EngineAggregator, authority)
    else:

        async def starts() -> None:
            running.loop.create_task(experiment.start(running.director.presence.last_heard))

        running.do(starts())
        running.do(within(SECONDS, lambda: rounds_of(experiment)))
    shard_client(running, authority, "site1", "site1").set_experiment_failed("toy", error_description="broken")
    assert experiment.status == "failed"


def stock_unpacked(archive: Path, folder: Path) -> set[str]:
    with suppress(FileExistsError), chdir(folder), ExperimentWorkspace("toy", archive):
        return {path.name for path in (folder / "toy").rglob("*") if path.is_file()}
    return set()


def our_unpacked(archive: Path, folder: Path) -> set[str]:
    with suppress(ArchiveRefused):
        experiment_archives.write(experiment_archives.read(archive), folder)
    return {path.name for path in folder.rglob("*") if path.is_file()} - {archive.name}


@fault("utilities/workspace.py:99", stock=stock_unpacked, ours=our_unpacked)
def test_an_archive_of_other_things_than_code_is_not_unpacked(subject: Any, tmp_path: Path) -> None:
    library = {"library.so": b"code that nobody can read"}
    (tmp_path / "experiment.zip").write_bytes(zipped(SMALL | library))
    assert "library.so" not in subject(tmp_path / "experiment.zip", tmp_path)


@fault("interface/interactive_api/experiment.py:731", **DIRECTORS)
def test_a_task_travels_as_its_source(subject: Any, archives: Any) -> None:
    with zipfile.ZipFile(archives[subject[1]][0]) as archive:
        compiled = b"".join(archive.read(name) for name in archive.namelist() if not name.endswith((".py", ".json")))
    assert b"wrapper_decorator" not in compiled
    assert b"site-packages" not in compiled


class Trap:
    """Code in a pickle: it runs when somebody unpickles it."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


TRAP = """
from pathlib import Path
Path({marker!r}).touch()
def experiment(settings): ...
"""


def stock_prepare(folder: Path, marker: Path, archive: Path) -> None:
    """What a director does with an experiment that it has taken."""
    zipfile.ZipFile(archive).extractall(folder)
    for name in ("aggregation_function_obj.pkl", "task_assigner_obj.pkl"):
        (folder / name).write_bytes(pickle.dumps(Trap(marker)))
    with chdir(folder), suppress(Exception):
        Plan.parse(Path("plan/plan.yaml")).get_assigner()


def our_prepare(folder: Path, marker: Path, archive: Path) -> None:
    async def run() -> None:
        files = experiment_archives.read(archive)
        files["toy/experiment.py"] = TRAP.format(marker=str(marker)).encode()
        experiment_archives.pack(files, folder / "trapped.zip")
        async with begun(our_director, folder / "trapped.zip", folder):
            pass

    asyncio.run(run())


@fault(
    "federated/plan/plan.py:317",
    stock=(stock_submission, stock_prepare),
    ours=(our_submission, our_prepare),
)
def test_a_director_runs_nothing_that_it_is_sent(subject: Any, archives: Any, tmp_path: Path) -> None:
    side, prepare = subject
    marker = tmp_path / "it has run"
    prepare(tmp_path, marker, archives[side][0])
    assert not marker.exists()


def stock_open(folder: Path, marker: Path, archive: Path) -> None:
    """What a site does with an experiment before anybody has said that it may run."""
    zipfile.ZipFile(archive).extractall(folder)
    for path in folder.glob("*_obj.pkl"):
        path.write_bytes(pickle.dumps(Trap(marker)))
    with chdir(folder), suppress(Exception):
        tuple(Plan.parse(Path("plan/plan.yaml")).deserialize_interface_objects())


def our_open(folder: Path, marker: Path, archive: Path) -> None:
    files = experiment_archives.read(archive)
    files["toy/experiment.py"] = TRAP.format(marker=str(marker)).encode()
    experiment_archives.pack(files, folder / "trapped.zip")
    submission = Submission(experiment_archives.read(folder / "trapped.zip"))
    ReviewFolder(folder / "review").receive(submission, "trapped")
    assert verdict("ask", None) is Verdict.WAIT
    assert any("Path(" in line for line in lines("toy/experiment.py", submission.files["toy/experiment.py"]))


@fault("federated/plan/plan.py:756", stock=(stock_submission, stock_open), ours=(our_submission, our_open))
def test_a_site_looks_before_anything_runs(subject: Any, archives: Any, tmp_path: Path) -> None:
    side, look = subject
    marker = tmp_path / "it has run"
    look(tmp_path, marker, archives[side][0])
    assert not marker.exists()


@fault("transport/grpc/director_server.py:292", stock=stock_server, ours=our_server)
def test_an_experiment_is_told_to_its_own_sites_only(subject: Any, serve: Any, archives: Any, authority: Path) -> None:
    running = serve(subject, **secure(authority, "director"))
    side = stock_submission if subject is stock_server else our_submission
    running.do(submitted(running.director, archives[side][0], authority, sites=["site2"]))
    told = b""
    with suppress(grpc.RpcError):
        for part in shard_client(running, authority, "site1", "site1").get_experiment_data("toy"):
            told += part.npbytes
    assert told == b""


def stock_site(port: int) -> ShardDirectorClient:
    return ShardDirectorClient(director_host="localhost", director_port=port, shard_name="site1", tls=False)


def our_site(port: int) -> SiteClient:
    return SiteClient(EnvoySettings("site1", "localhost", port, "toy_shard.ToyShard"))


@fault("component/director/director.py:96", stock=(stock_server, stock_site), ours=(our_server, our_site))
def test_a_name_is_one_envoys(subject: Any, serve: Any) -> None:
    server, client = subject
    running = serve(server)
    first, second = client(running.port), client(running.port)
    assert first.report_shard_info(ToyShard(1.0), ())
    alive = threading.Timer(0.2, partial(first.send_health_check, envoy_name="site1", is_experiment_running=False))
    alive.start()
    accepted = False
    with suppress(grpc.RpcError):
        accepted = second.report_shard_info(ToyShard(2.0), ())
    alive.join()
    assert not accepted


@fault("transport/grpc/director_server.py:190", stock=stock_server, ours=our_server)
def test_nobody_registers_in_the_name_of_another(subject: Any, serve: Any, authority: Path) -> None:
    running = serve(subject, **secure(authority, "director"))
    with suppress(grpc.RpcError):
        shard_client(running, authority, "rogue", "site1").report_shard_info(ToyShard(1.0), ())
    assert not running.director.get_registered_shards()


@fault("transport/grpc/director_server.py:219", stock=stock_server, ours=our_server)
def test_an_envoy_does_not_submit_experiments(subject: Any, serve: Any, authority: Path) -> None:
    running = serve(subject, **secure(authority, "director"))
    client = DirectorClient(
        client_id="rogue", director_host="localhost", director_port=running.port, **secure(authority, "rogue")
    )
    archive = authority / "code.zip"
    archive.write_bytes(b"import os")
    with suppress(grpc.RpcError):
        client.set_new_experiment("mine", BOTH, archive, {"w": np.zeros(1, np.float32)})
    assert "mine" not in running.director.experiments_registry


def listening() -> set[tuple[str, int]]:
    """Addresses and ports on which this process listens."""
    found = psutil.Process().net_connections("inet")
    return {(each.laddr.ip, each.laddr.port) for each in found if each.status == psutil.CONN_LISTEN}


def stock_aggregator_server(folder: Path, serve: Any) -> None:
    serve(stock_server)
    server = AggregatorGRPCServer(aggregator=build(EngineAggregator, folder), agg_port=free_port(), tls=False)
    server.get_server().start()


@fault(
    "transport/grpc/aggregator_server.py:74",
    stock=stock_aggregator_server,
    ours=lambda _, serve: serve(our_server),  # its aggregators have no other
)
def test_plain_mode_is_for_this_machine_only(subject: Any, serve: Any, tmp_path: Path) -> None:
    before = listening()
    subject(tmp_path, serve)
    addresses = [ip_address(address) for address, _ in listening() - before]
    assert addresses
    assert all((getattr(each, "ipv4_mapped", None) or each).is_loopback for each in addresses)


# A notebook that comes back


@pytest.fixture
def finished(serve: Any, archives: Any, tmp_path: Path) -> int:
    """The port of a director that has an experiment, toy, with its metrics and models."""

    async def run() -> None:
        async with begun(our_director, archives[our_submission][0], tmp_path) as (_, experiment):
            await finish(experiment)
            await within(SECONDS, lambda: experiment.over)

    asyncio.run(run())
    return int(serve(our_server).port)


def stock_notebook(port: int) -> FLExperiment:
    return FLExperiment(EngineFederation("ada", "localhost", port, tls=False), "toy")


def stock_model(port: int) -> Any:
    experiment = stock_notebook(port)
    experiment.restore_experiment_state(VectorModel())
    return experiment.get_last_model()


@fault(
    "federated/plan/plan.py:529",
    stock=stock_model,
    ours=lambda port: FederationHandle("localhost", port, client_id="ada").attach("toy").last_weights(),
    raises=KeyError,
)
def test_another_notebook_takes_the_model_home(subject: Any, finished: int, tmp_path: Path) -> None:
    with chdir(tmp_path):
        np.testing.assert_array_equal(subject(finished)["vector"], 1.0)


def stock_metrics(port: int) -> Any:
    experiment = stock_notebook(port)
    experiment.experiment_submitted = True
    return experiment.stream_metrics(tensorboard_logs=False)


@fault(
    "interface/interactive_api/experiment.py:195",
    stock=stock_metrics,
    ours=lambda port: FederationHandle("localhost", port, client_id="ada").attach("toy").metrics(),
)
def test_metrics_are_values(subject: Any, finished: int, tmp_path: Path) -> None:
    with chdir(tmp_path):
        metrics = subject(finished)
        assert metrics is not None
        assert {metric.site for metric in metrics} == {"aggregator", *BOTH}


# An envoy


def our_envoy(port: int) -> Envoy:
    return Envoy(EnvoySettings("site1", "localhost", port, "toy_shard.ToyShard", {"value": 1.0}))


def stock_envoy(port: int) -> EngineEnvoy:
    return EngineEnvoy(
        shard_name="site1", director_host="localhost", director_port=port, shard_descriptor=ToyShard(1.0), tls=False
    )


def goes_on(envoy: Any, work: Callable[[], None]) -> bool:
    """Whether it still tries after some time without a director."""
    with futures.ThreadPoolExecutor(1) as pool:
        trying = pool.submit(work)
        futures.wait([trying], timeout=1)
        tries = not trying.done()
        envoy.director_client = None  # the next try ends it
    return tries


@fault("component/envoy/envoy.py:207", stock=stock_envoy, ours=our_envoy)
def test_an_envoy_goes_on_telling_a_director_that_is_away(subject: Any) -> None:
    envoy = subject(free_port())
    assert goes_on(envoy, envoy.send_health_check)


@fault("component/envoy/envoy.py:275", stock=stock_envoy, ours=our_envoy)
def test_an_envoy_waits_for_its_director(subject: Any) -> None:
    envoy = subject(free_port())
    assert goes_on(envoy, envoy.start)


def shipped(folder: Path, number: int) -> Path:
    """An experiment's archive with a module of its own."""
    with zipfile.ZipFile(folder / f"{number}.zip", "w") as archive:
        archive.writestr("shipped_code.py", f"NUMBER = {number}\n")
    return folder / f"{number}.zip"


def stock_workspace(archive: Path) -> int:
    with ExperimentWorkspace(archive.stem, archive):
        return int(import_module("shipped_code").NUMBER)


@fault("component/envoy/envoy.py:159", stock=stock_workspace)
def test_a_second_experiment_runs_its_own_code(subject: Any, tmp_path: Path) -> None:
    with chdir(tmp_path):
        assert [subject(shipped(tmp_path, number)) for number in (1, 2)] == [1, 2]


def stock_launch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The envoy that the engine's command makes of an envoy.yaml; it is not started."""
    made: list[Any] = []
    monkeypatch.setattr(EngineEnvoy, "start", lambda envoy: made.append(envoy))
    arguments = ["-n", "site1", "-dh", "localhost", "-dp", "1", "--disable-tls", "-ec", "envoy.yaml"]
    with chdir(folder):
        done = CliRunner().invoke(engine_launcher.start_, arguments)
    if done.exception:
        raise done.exception
    return made[0]


def our_launch(folder: Path, _: pytest.MonkeyPatch) -> Any:
    return Envoy(load_envoy(folder / "envoy.yaml", name="site1"))


def write_envoy(folder: Path, **more: Any) -> None:
    descriptor = {"template": "toy_shard.ToyShard", "params": {"value": 1.0}}
    (folder / "envoy.yaml").write_text(yaml.safe_dump({"shard_descriptor": descriptor, **more}))


@fault("interface/envoy.py:128", stock=stock_launch, ours=our_launch)
def test_an_experiment_installs_no_packages(subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_envoy(tmp_path)
    assert not subject(tmp_path, monkeypatch).install_requirements


STOCK_MONITOR = "openfl.plugins.processing_units_monitor.pynvml_monitor.PynvmlCUDADeviceMonitor"
MONITORS = {"stock": (stock_launch, STOCK_MONITOR), "ours": (our_launch, "federation.site.cuda_monitor.CudaMonitor")}


def missing_driver() -> str | None:
    """Why this machine's GPUs cannot be asked for."""
    try:
        import_module("pynvml").nvmlInit()
    except Exception as error:
        return f"no NVIDIA driver and library: {error}"
    return None


@pytest.mark.skipif(not missing_driver(), reason="this machine has an NVIDIA driver")
@fault("plugins/processing_units_monitor/pynvml_monitor.py:15", raises=Exception, **MONITORS)
def test_one_envoy_yaml_serves_machines_without_a_gpu(
    subject: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launch, template = subject
    write_envoy(tmp_path, optional_plugin_components={"cuda_device_monitor": {"template": template}})
    assert launch(tmp_path, monkeypatch).cuda_device_monitor is None


@pytest.mark.skipif(bool(missing_driver()), reason=str(missing_driver()))
@fault("plugins/processing_units_monitor/pynvml_monitor.py:32", raises=AttributeError, **MONITORS)
def test_the_driver_tells_its_version(subject: Any) -> None:
    module, _, name = subject[1].rpartition(".")
    assert getattr(import_module(module), name)().get_driver_version()[0].isdigit()


# Every process


def said(code: str) -> str:
    """What some code prints in a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


@fault(
    "pipelines/__init__.py:5",
    stock="import openfl.component.director, openfl.component.envoy, openfl.transport",
    ours="import federation.director, federation.envoy, federation.site.collaborator, federation.notebook.handle",
)
def test_only_what_trains_loads_pytorch(subject: str) -> None:
    assert said(f"import sys; {subject}; print({{'torch', 'sklearn'}} & sys.modules.keys())") == "set()\n"


def test_what_trains_can_load_it_afterwards() -> None:
    pipeline = "from openfl.pipelines.kc_pipeline import KCPipeline"
    code = f"import federation.site.trainer, torch; {pipeline}; print(torch.ones(1))"
    assert said(code) == "tensor([1.])\n"
