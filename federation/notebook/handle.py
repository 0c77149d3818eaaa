"""The notebook's side: connect to a director, see the sites, submit an experiment, follow it, take the model.

Mends, with the engine's file and line:

- interface/interactive_api/experiment.py:467: zips the whole working folder of the notebook, data
  and results included. Here an experiment ships its description and the source files of one package.
- interface/interactive_api/experiment.py:262: also ships `pip freeze`. Here nothing is installed anywhere.
- transport/grpc/director_client.py:358: every chunk of the archive carries the whole initial model. Here it travels
  once.
- experiment.py:731: a task's wrapper is pickled as compiled code, with paths of the notebook's machine. Here nothing is
  pickled: what a site's owner reads is what runs, and the same submission has the same digest everywhere.
- interface/interactive_api/experiment.py:195: metrics are only logged. Here they are values, and a failure is an
  exception.
- federated/plan/plan.py:529: a notebook that comes back gets a KeyError for its model. Here an experiment has a name.
- federated/plan/plan.py:299: identical plans share an id. Here each submission draws its own.
"""

import json
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from openfl.interface.interactive_api.federation import Federation as EngineFederation
from openfl.protocols import base_pb2, director_pb2, director_pb2_grpc
from openfl.protocols.interceptors import headers_adder
from openfl.transport.grpc.director_client import DirectorClient

from federation.errors import REFUSALS, ExperimentFailed, FederationError, SubmissionRefused
from federation.experiment import build, shipped
from federation.logs import quieten_engine
from federation.policy import RoundPolicy
from federation.schedule import NOTICE, TASK_NAMES, finished_rounds
from federation.settings import Certificates
from federation.wire import archives
from federation.wire.channels import CONNECT_SECONDS, CONNECTION_LOST, connect
from federation.wire.description import Description
from federation.wire.metadata import REMOVE
from federation.wire.models import CHUNK, Packed, Piece
from federation.wire.transfer import fetch_trained
from rules.sampling import Sampling
from rules.scores import Score

logger = logging.getLogger(__name__)

RETRY_SECONDS = 0.2
"""Pause before a reader connects again: a proxy in front of a director that is away refuses at once."""


READ_SECONDS = 2.0
"""How long a question is asked again where there is no connection."""


@dataclass(frozen=True)
class Metric:
    """One number that a site measured.

    `round` counts finished rounds of training: "train" and "validate_local" of the first round have 1, and
    "validate_global" measures the averaged model after `round` rounds, 0 being the initial model. `site` is
    "aggregator" for all sites together: sums, scores made of sums (`rules.scores`), and means, weighted by the sites'
    numbers of utterances.
    """

    round: int
    site: str
    task: str
    metric: str
    value: float


@dataclass(frozen=True)
class Site:
    """An envoy as the director sees it; `description` is what its shard descriptor tells of the data."""

    name: str
    online: bool
    devices: tuple[str, ...]
    description: str


class FederationHandle:
    """A connection to a director.

    Raises:
        FederationError: no director answers there, or it refuses the certificate.
    """

    def __init__(
        self, host: str, port: int, certificates: Certificates | None = None, client_id: str = "experimenter"
    ) -> None:
        paths = certificates or Certificates()
        quieten_engine()
        try:
            self._engine = EngineFederation(
                client_id=client_id,
                director_node_fqdn=host,
                director_port=port,
                tls=paths.tls,
                cert_chain=paths.as_strings()["root_certificate"],
                api_cert=paths.as_strings()["certificate"],
                api_private_key=paths.as_strings()["private_key"],
            )
            self._engine.dir_client = _Client(f"{host}:{port}", paths, client_id)
        except grpc.RpcError as error:
            if error.code().name in REFUSALS:
                raise FederationError(f"the director at {host}:{port} refuses: {error.details()}") from None
            raise FederationError(
                f"no director answers at {host}:{port} ({error.details()}); "
                f"start one with director/start_director.sh, or give its host and port"
            ) from None

    def sites(self) -> list[Site]:
        """Every envoy that has registered, sorted by name.

        Raises:
            FederationError: the director has gone, or refuses the certificate.
        """
        registry = _read("the director does not tell its sites", self._engine.get_shard_registry)
        sites = []
        for name, entry in sorted(registry.items()):
            node = entry["shard_info"].node_info
            devices = tuple(f"cuda:{device.index} {device.name}".strip() for device in node.cuda_devices)
            sites.append(Site(name, entry["is_online"], devices or ("cpu",), entry["shard_info"].shard_description))
        return sites

    def wait_for_sites(self, count: int, timeout: float) -> list[Site]:
        """The sites, as soon as `count` of them are online.

        Raises:
            FederationError: after `timeout` seconds; says who is there.
        """
        deadline = time.monotonic() + timeout
        while True:
            online = self._online()
            if len(online) >= count:
                return online
            if time.monotonic() > deadline:
                names = ", ".join(site.name for site in online) or "none"
                raise FederationError(
                    f"{len(online)} of {count} sites are online after {timeout:.0f} s ({names}); "
                    f"start the others with their start_envoy.sh"
                )
            time.sleep(0.2)

    def submit(
        self,
        name: str,
        *,
        package: Path,
        entry_point: str,
        settings: Mapping[str, Any],
        rounds: int,
        best_metric: str,
        best_direction: str = "max",
        keep_optimizer: bool = True,
        policy: RoundPolicy | None = None,
        update_format: str = "float32",
        rule: Mapping[str, Any] | None = None,
        scores: Mapping[str, Score] | None = None,
        sites: Collection[str] | None = None,
        sampling: Sampling | None = None,
        patience: int | None = None,
    ) -> "ExperimentHandle":
        """Send an experiment to the director.

        The entry point is called here as well, on the files that are shipped, for the model before the first round.

        Args:
            name: its name, not used before on this director.
            package: the folder of the Python package that travels to the sites: its `*.py` files only, and those of
                folders within that are packages themselves.
            entry_point: `package.module:function` in it; called with `settings` it returns a ModelInterface, a
                TaskInterface with one task that trains and one that validates, and a DataInterface.
            settings: what the function is given: values that JSON has.
            rounds: rounds of training; a last validation follows.
            best_metric, best_direction: the metric of the aggregated validation by which the best model is chosen, and
                whether larger ("max") or smaller ("min") is better.
            keep_optimizer: whether each site keeps its optimizer state from round to round.
            policy: when a round may close without some of the sites; None: never.
            update_format: how sites send what they have trained; see `federation.wire.updates.FORMATS`.
            rule: how the director makes the next model of the sites' (`{"name": "mean"}`): the name of a rule, and the
                numbers that it takes.
            scores: what the director computes of the sums that sites send, by name.
            sites: the names of the sites that take part; None: all that are online.
            sampling: how many of them each round asks; None: all.
            patience: end after so many rounds without a better best model; None: never.

        Raises:
            SubmissionRefused: the director says why, or the experiment cannot be described, or its package refuses its
                settings.
            FederationError: the entry point does not return what it should.
        """
        _check_kinds(name, package, sites, sampling, policy, rule, scores)
        taking_part = self._chosen(sites)
        asked = sampling.number(len(taking_part)) if sampling else len(taking_part)
        try:
            description = Description(
                id=uuid.uuid4().hex,
                rounds=rounds,
                best_metric=best_metric,
                best_direction=best_direction,
                entry_point=entry_point,
                settings=json.loads(json.dumps(settings)),
                policy=(policy or RoundPolicy()).among(asked or 1),  # the director refuses one without any
                rule=dict(rule or {"name": "mean"}),
                scores={name: asdict(score) for name, score in (scores or {}).items()},
                update_format=update_format,
                keep_optimizer=keep_optimizer,
                sampling=sampling,
                patience=patience,
            )
        except (TypeError, ValueError) as error:
            raise SubmissionRefused(str(error)) from error
        files = archives.sources(package) | {archives.DESCRIPTION: description.to_bytes()}
        with tempfile.TemporaryDirectory(prefix="submit-") as folder:
            archive = Path(folder, "experiment.zip")
            archives.pack(files, archive)
            try:
                with shipped(package):
                    model = build(entry_point, description.settings).initial_tensors()
            except ValueError as error:  # what the package says of its settings; the class is the shipped one's own
                raise SubmissionRefused(str(error)) from error
            try:
                self._engine.dir_client.set_new_experiment(name, taking_part, archive, model)
            except grpc.RpcError as error:
                if error.code() in CONNECTION_LOST:
                    raise SubmissionRefused(
                        f"no word from the director on {name} ({error.details()}); when it is back, "
                        f"attach({name!r}).status() says whether it has the experiment: submit again if it is unknown"
                    ) from None
                raise SubmissionRefused(str(error.details())) from None
        return self.attach(name)

    def attach(self, name: str) -> "ExperimentHandle":
        """An experiment that this or another notebook has submitted."""
        return ExperimentHandle(self._engine.dir_client, name)

    def _chosen(self, sites: Collection[str] | None) -> list[str]:
        """The sites that take part."""
        online = [site.name for site in self._online()]
        if sites is None:
            return online
        if absent := sorted(set(sites) - set(online)):
            raise SubmissionRefused(
                f"sites names {', '.join(absent)}, which are not online; online: {', '.join(online) or 'none'}; start "
                f"them with their start_envoy.sh, or leave them out"
            )
        if not sites:
            raise SubmissionRefused(f"sites names no site; online: {', '.join(online) or 'none'}")
        return [name for name in online if name in sites]

    def _online(self) -> list[Site]:
        return [site for site in self.sites() if site.online]


class _Client(DirectorClient):  # type: ignore[misc]
    """The engine's client on a channel with this package's options; the initial model travels once, in chunks."""

    def __init__(self, address: str, certificates: Certificates, client_id: str) -> None:
        self.channel = connect(address, certificates)  # in plain mode the caller says its name itself
        self.named_channel = grpc.intercept_channel(self.channel, headers_adder({"client_id": client_id}))
        self.stub = director_pb2_grpc.DirectorStub(self.named_channel)

    def set_new_experiment(self, name: str, col_names: Any, arch_path: Any, initial_tensor_dict: Any) -> Any:
        """Submit an experiment; gRPC's error says why the director refuses it."""
        model = Packed({name: Piece.of(array) for name, array in initial_tensor_dict.items()})
        return self.stub.SetNewExperiment(self._messages(name, list(col_names), Path(arch_path), model))

    def forget(self, name: str) -> None:
        """Remove an experiment: the engine's message for an end, and a word that nothing sends by mistake."""
        request = director_pb2.RemoveExperimentRequest(experiment_name=name)
        self.stub.RemoveExperimentData(request, metadata=[(REMOVE, "yes")])

    @staticmethod
    def _messages(name: str, sites: list[str], archive: Path, model: Packed) -> Iterator[Any]:
        def message(**content: Any) -> Any:
            return director_pb2.ExperimentInfo(name=name, collaborator_names=sites, **content)

        with archive.open("rb") as file:
            while part := file.read(CHUNK):
                yield message(experiment_data=director_pb2.ExperimentData(size=len(part), npbytes=part))
        for part in model.chunks():
            yield message(model_proto=base_pb2.ModelProto(tensors=[base_pb2.NamedTensor(data_bytes=part)]))


def _check_kinds(name: Any, package: Any, sites: Any, sampling: Any, policy: Any, rule: Any, scores: Any) -> None:
    """Refuse what is of another kind than `submit` takes; what is in it is looked at later.

    Raises:
        SubmissionRefused: with every problem, one a line.
    """
    named = (
        isinstance(sites, Collection) and not isinstance(sites, str) and all(isinstance(each, str) for each in sites)
    )
    scored = isinstance(scores, Mapping) and all(isinstance(each, Score) for each in scores.values())
    checks = (
        ("sites", sites, named, 'a list of names, ["envoy"] say'),
        ("sampling", sampling, isinstance(sampling, Sampling), "Sampling(2) or Sampling(0.5) of rules.sampling"),
        ("policy", policy, isinstance(policy, RoundPolicy), "RoundPolicy(...) of federation.policy"),
        ("rule", rule, isinstance(rule, Mapping), 'a mapping with its name and numbers, {"name": "mean"} say'),
        ("scores", scores, scored, "a mapping of names to Score of rules.scores"),
    )
    problems = [
        f"{what} is {value!r:.60}; give {kind}, or None" for what, value, right, kind in checks
        if value is not None and not right
    ]  # fmt: skip
    if not isinstance(package, Path):
        problems.insert(0, f"package is {package!r:.60}; give its folder, a pathlib.Path")
    if not isinstance(name, str):
        problems.insert(0, f"name is {name!r:.60}; give a text")
    if problems:
        raise SubmissionRefused("\n".join(problems))


@contextmanager
def _answered(what: str) -> Iterator[None]:
    """Say of a call that fails what has not come of it, and why.

    Raises:
        FederationError: in place of gRPC's error.
    """
    try:
        yield
    except grpc.RpcError as error:
        if error.code() in CONNECTION_LOST:
            raise FederationError(
                f"{what}: no word from it ({error.details()}); what it has it keeps: ask again when it is back"
            ) from None
        raise FederationError(f"{what}: {error.details()}") from None


def _read(what: str, ask: Callable[[], Any]) -> Any:
    """The answer to a question that changes nothing: asked again where it went to a connection that was just lost.

    Raises:
        FederationError: there is none.
    """
    until = time.monotonic() + READ_SECONDS
    while True:
        try:
            return ask()
        except grpc.RpcError as error:
            if error.code() not in CONNECTION_LOST or time.monotonic() > until:
                with _answered(what):
                    raise
        time.sleep(RETRY_SECONDS)


class ExperimentHandle:
    """An accepted experiment, by its name."""

    def __init__(self, client: _Client, name: str) -> None:
        self._client = client
        self.name = name

    def status(self) -> str:
        """Where it stands: "pending, 1 before it", "in_progress", "finished", "failed", or "unknown".

        "in_progress, waiting for approval at site1": the owner of site1 has not decided on the code yet. "unknown":
        this director has no such experiment of this experimenter.

        Raises:
            FederationError: the director has gone, or refuses the certificate.
        """
        ask = partial(self._client.get_experiment_status, self.name)
        return str(_read(f"the director does not tell how {self.name} stands", ask).experiment_status or "unknown")

    def metrics(self, reconnect_seconds: float = 120.0) -> Iterator[Metric]:
        """Every metric from the first on, each once, as it arrives; ends with the experiment.

        When the connection is lost, or the director is stopped, a warning is logged, and the metrics go on as soon as
        the director answers again.

        Args:
            reconnect_seconds: how long to wait for a director that is out of reach, each time; 0 does not wait.

        That a site waits for its owner, or is left out and why, is logged as a warning.

        Raises:
            ExperimentFailed: the experiment failed; names site, round and task and holds the remote traceback. Or
                the director was out of reach for too long; the experiment may go on without this reader.
        """
        seen: set[tuple[int, str, str, str]] = set()
        for line in self._lines(reconnect_seconds):
            if line["task_name"] == NOTICE and not line["metric_origin"]:  # the director's own word has no other origin
                logger.warning("experiment %s: %s", self.name, line["metric_name"])
                continue
            task, done = line["task_name"], finished_rounds(line["task_name"], line["round"])
            metric = Metric(
                done, line["metric_origin"], TASK_NAMES.get(task, task), line["metric_name"], line["metric_value"]
            )
            key = metric.round, metric.site, metric.task, metric.metric
            if key not in seen:
                seen.add(key)
                yield metric

    def best_weights(self) -> dict[str, np.ndarray]:
        """The trained tensors that scored best in the aggregated validation.

        Raises:
            FederationError: there are none yet, the director knows no such experiment, has gone, or refuses the
                certificate.
        """
        return self._weights("best", "was validated")

    def last_weights(self) -> dict[str, np.ndarray]:
        """The average after the last round of training.

        Raises:
            FederationError: see `best_weights`.
        """
        return self._weights("last", "has finished a round")

    def cancel(self) -> None:
        """End the experiment, whether it waits or runs; its readers are told. What it has reached is kept.

        Raises:
            FederationError: the director knows no such experiment, has gone, or refuses the certificate.
        """
        with _answered(f"{self.name} is not cancelled"):
            self._client.remove_experiment_data(self.name)

    def remove(self) -> None:
        """Have the director forget the experiment, which is over, with its models and metrics.

        Raises:
            FederationError: it is not over; or as for `cancel`.
        """
        with _answered(f"{self.name} is not removed"):
            self._client.forget(self.name)

    def _lines(self, reconnect_seconds: float) -> Iterator[dict[str, Any]]:
        """What the director tells: after a lost connection again from the first line, and perhaps in another order."""
        lost: float | None = None
        while True:
            started = time.monotonic()
            try:
                yield from self._client.stream_metrics(self.name)
                return
            except grpc.RpcError as error:
                if error.code() not in CONNECTION_LOST:
                    raise ExperimentFailed(error.details()) from None
                reason = error.details()
            now = time.monotonic()
            if lost is None or now - started > CONNECT_SECONDS:  # it had been connected
                lost = now
                logger.warning(
                    "experiment %s: the director is out of reach (%s); waiting up to %.0f s for it",
                    self.name, reason, reconnect_seconds,
                )  # fmt: skip
            try:
                grpc.channel_ready_future(self._client.channel).result(lost + reconnect_seconds - now)
            except grpc.FutureTimeoutError:
                raise ExperimentFailed(
                    f"no word from the director for {reconnect_seconds:.0f} s in the middle of {self.name} ({reason}); "
                    f"the sites go on, or wait for it: when it is back, attach({self.name!r}) follows the experiment"
                ) from None
            time.sleep(RETRY_SECONDS)

    def _weights(self, kind: str, what: str) -> dict[str, np.ndarray]:
        with tempfile.TemporaryDirectory(prefix="model-") as folder:
            model = fetch_trained(self._client.named_channel, self.name, kind, Path(folder, "model.safetensors"))
            if model is None:
                raise FederationError(f"experiment {self.name} has no such model yet: none {what} ({self.status()})")
            return dict(model)
