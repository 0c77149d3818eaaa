"""The director's port: from gRPC's calls to the director, and its answers and refusals back.

Mends, with the engine's file and line:

- transport/grpc/director_server.py:419: with TLS the report of a failure is dropped. Here it ends the experiment.
- transport/grpc/director_server.py:292: whoever knows an experiment's name gets its code, and can
  report it failed. Here only its own sites.
- transport/grpc/aggregator_server.py:74: see `federation.director.router`.
"""

import asyncio
import json
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
from openfl.protocols import aggregator_pb2_grpc, base_pb2, director_pb2, director_pb2_grpc
from openfl.protocols.utils import get_headers
from openfl.transport import DirectorGRPCServer as EngineServer

from federation.director import who
from federation.director.access import Access, certificate_name, guards
from federation.director.commands import Door
from federation.director.director import Director
from federation.director.edge import DESCRIPTION_CHARACTERS, SITES, Edge, shard_problem
from federation.director.limits import raise_file_limit
from federation.director.lock import DIRECTOR, locked
from federation.director.models import ModelServer
from federation.director.room import Room
from federation.director.router import AggregatorRouter
from federation.director.state import clear_leftovers
from federation.director.who import Who
from federation.errors import (
    DirectorLeaves,
    FederationError,
    SubmissionRefused,
    disk_problem,
)
from federation.settings import DirectorSettings
from federation.wire import archives, files
from federation.wire.channels import SERVER_OPTIONS
from federation.wire.metadata import (
    AWAITING_APPROVAL,
    DIGEST,
    EXPERIMENTER,
    IN_HAND,
    INSTEAD_OF,
    MOST_SLOTS,
    PROCESS,
    REMOVE,
    RESTS,
    SLOTS,
)
from federation.wire.models import ModelFile
from federation.wire.names import NAME_CHARACTERS

logger = logging.getLogger(__name__)


class DirectorServer(EngineServer):  # type: ignore[misc]
    """The engine's server with errors that reach the notebook, and all experiments' rounds on the same port."""

    guards: tuple[Access, ...] = ()

    async def _run_server(self) -> None:
        self.server = grpc.aio.server(interceptors=(Edge(), *self.guards), options=SERVER_OPTIONS)
        director_pb2_grpc.add_DirectorServicer_to_server(self, self.server)
        conductor_of = self.director.experiments_registry.conductor_of
        caller = certificate_name if self.tls else lambda context: None  # to ask gRPC takes longer than all the rest
        router = AggregatorRouter(conductor_of, caller)
        aggregator_pb2_grpc.add_AggregatorServicer_to_server(router, self.server)
        models = ModelServer(conductor_of, self._trained, caller, self.director.house.run, Room())
        models.add_to(self.server)
        try:
            port = self._bind()
        except RuntimeError as error:
            raise FederationError(f"cannot listen on {self.listen_uri}: is another director running there?") from error
        logger.info("listening on %s:%d", self.listen_uri.rsplit(":", 1)[0], port)
        await self.server.start()
        # Shielded: what it waits for is what stop() waits for, and must not be cancelled with this task.
        await asyncio.shield(self.server.wait_for_termination())

    def _trained(self, experiment: str, kind: str, context: Any) -> ModelFile | None:
        by = who.of_call(context, self.get_caller(context))
        about = {"experiment": experiment, **by.fields}
        try:
            self.director.check_owner(experiment, by.name)
            model: ModelFile | None = self.director.get_trained_model(experiment, by.name, kind)
        except FederationError as error:
            _refused(f"the {kind} model", by, error, experiment)
            raise
        except OSError as error:
            raise ValueError(f"the {kind} model of {experiment} cannot be read ({error})") from error
        if model:
            logger.info("experiment %s: the %s model is taken by %s", experiment, kind, by, extra=about)
        return model

    def _bind(self) -> int:
        if not self.tls:
            return int(self.server.add_insecure_port(self.listen_uri))
        credentials = grpc.ssl_server_credentials(
            [(self.private_key.read_bytes(), self.certificate.read_bytes())],
            root_certificates=self.root_certificate.read_bytes(),
            require_client_auth=True,
        )
        return int(self.server.add_secure_port(self.listen_uri, credentials))

    async def SetNewExperiment(self, stream: Any, context: Any) -> Any:  # noqa: N802
        """Take an experiment from a notebook, or say why not.

        Each message holds a part of the archive or, in `model_proto.tensors[0].data_bytes`, of the initial model.
        """
        folder = Path(tempfile.mkdtemp(prefix="submission-", dir=self.root_dir))
        archive, model = folder / "experiment.zip", folder / "model.safetensors"
        request = director_pb2.ExperimentInfo()
        try:
            with archive.open("wb") as archive_file, model.open("wb") as model_file:
                async for request in stream:
                    archive_file.write(request.experiment_data.npbytes)
                    archives.check_size(archive_file.tell())
                    for part in request.model_proto.tensors:
                        model_file.write(part.data_bytes)
            ModelFile(model)
            await self.director.set_new_experiment(
                experiment_name=request.name,
                sender_name=self.get_caller(context),
                initial_model=model,
                collaborator_names=request.collaborator_names,
                experiment_archive_path=archive,
            )
        except SubmissionRefused as refusal:
            _refused("a submission", who.of_call(context, self.get_caller(context)), refusal, request.name)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(refusal))
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"the initial model cannot be used: {error}")
        except OSError as error:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED, disk_problem(request.name or "the experiment", error)
            )
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        by = who.of_call(context, self.get_caller(context))
        logger.info("experiment %s: submitted by %s", request.name, by, extra={"experiment": request.name, **by.fields})
        return director_pb2.SetNewExperimentResponse(accepted=True)

    async def GetTrainedModel(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not here: models have streams of their own."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models travel by federation.Models")

    async def GetExperimentDescription(self, request: Any, context: Any) -> Any:  # noqa: N802
        """How one of the caller's experiments stands."""
        experiments = self.director.get_experiments_list(self.get_caller(context))
        known = [each for each in experiments if each["name"] == request.name]
        if not known:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this director knows no such experiment of this caller")
        description = base_pb2.ExperimentDescription(name=request.name, status=known[0]["status"])
        return director_pb2.GetExperimentDescriptionResponse(experiment=description)

    async def GetMetricStream(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """Metrics to a notebook; ends with an error if the experiment did."""
        by = who.of_call(context, self.get_caller(context))
        try:
            self.director.check_owner(request.experiment_name, by.name)
        except FederationError as error:
            _refused("metrics", by, error, request.experiment_name)
            await context.abort(grpc.StatusCode.ABORTED, str(error))
        try:
            async for metric in self.director.stream_metrics(request.experiment_name, by.name):
                yield director_pb2.GetMetricStreamResponse(**metric)
        except DirectorLeaves as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        except FederationError as error:
            await context.abort(grpc.StatusCode.ABORTED, str(error))

    async def RemoveExperimentData(self, request: Any, context: Any) -> Any:  # noqa: N802
        """End an experiment of the caller's, or, where the metadata say so, remove one that is over."""
        by = who.of_call(context, self.get_caller(context))
        name, removes = request.experiment_name, get_headers(context).get(REMOVE) == "yes"
        try:
            self.director.check_owner(name, by.name)
            (self.director.remove if removes else self.director.cancel)(name, by)
        except FederationError as error:
            _refused("remove" if removes else "cancel", by, error, name)
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except OSError as error:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the director cannot remove {name} ({error})")
        return director_pb2.RemoveExperimentResponse(acknowledgement=True)

    async def UpdateShardInfo(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Register an envoy, unless another one that is alive has its name."""
        site, process = request.shard_info.node_info.name, _process(context)
        if problem := shard_problem(request.shard_info):
            raise ValueError(problem)
        if self.director.full and not self.director.knows(site):
            raise ValueError(f"{SITES} sites have registered with this director; it takes no more")
        if not await self.director.presence.claim(site, process):
            logger.error("envoy %s: refused, another envoy of this name is there; peer %s", site, context.peer())
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, _taken(site))
        reply = await super().UpdateShardInfo(request, context)
        if not reply.accepted:
            self.director.presence.forget(site, process)
        return reply

    async def UpdateEnvoyStatus(self, request: Any, context: Any) -> Any:  # noqa: N802
        """An envoy says that it is there."""
        await self._hear(request.name, context)
        return await super().UpdateEnvoyStatus(request, context)

    async def WaitExperiment(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What an envoy should work on, as soon as that is something else than what it works on now."""
        site = request.collaborator_name
        await self._hear(site, context)
        instead_of = get_headers(context).get(INSTEAD_OF, b"").decode()
        said = str(get_headers(context).get(AWAITING_APPROVAL, ""))
        awaiting = said if DIGEST.fullmatch(said) else None
        try:
            with self.director.presence.call(site, _process(context)):
                work = await self.director.wait_experiment(
                    site, _process(context), instead_of, awaiting, _in_hand(context), _slots(context)
                )
        except FederationError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        await self._hear(site, context)  # the name may be another's by now
        if instead_of and self.director.queue.holds(instead_of, site):
            context.set_trailing_metadata(((RESTS, "yes"),))
        return director_pb2.WaitExperimentResponse(experiment_name=work)

    async def GetExperimentData(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        """The archive of an experiment, to its own sites."""
        await self._check_site(request, context)
        sender = self.director.experiments_registry[request.experiment_name].sender
        await context.send_initial_metadata(((EXPERIMENTER, str(sender).encode()),))
        async for part in super().GetExperimentData(request, context):
            yield part

    async def SetExperimentFailed(self, request: Any, context: Any) -> Any:  # noqa: N802
        """One of an experiment's sites reports that it cannot go on, or (error code 0) that it tries once more."""
        await self._check_site(request, context)
        experiment, site = request.experiment_name, request.collaborator_name
        reason = request.error_description[-DESCRIPTION_CHARACTERS:]  # a traceback tells most at its end
        about = {"experiment": experiment, "site": site}
        if request.error_code == 0:
            logger.warning("experiment %s: site %s tries again: %s", experiment, site, reason, extra=about)
        else:
            logger.error("experiment %s: site %s failed", experiment, site, extra=about)
            self.director.set_experiment_failed(experiment_name=experiment, collaborator_name=site, reason=reason)
        return director_pb2.SetExperimentFailedResponse()

    async def _hear(self, site: str, context: Any) -> None:
        """Note that this site's envoy has called; one that has not registered, or not under its own name, is told."""
        if not self.director.knows(site):
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no envoy {site[:NAME_CHARACTERS]} has registered here")
        if not self.director.hear(site, _process(context)):
            await context.abort(grpc.StatusCode.ALREADY_EXISTS, _taken(site))

    async def _check_site(self, request: Any, context: Any) -> None:
        """Go on only for a site of the experiment; with TLS its name has been checked (`director.access`)."""
        experiment = self.director.experiments_registry.get(request.experiment_name)
        if experiment is None:
            reason = f"this director knows no experiment {request.experiment_name[:NAME_CHARACTERS]}"
            await context.abort(grpc.StatusCode.NOT_FOUND, reason)
        if request.collaborator_name not in experiment.collaborators:
            reason = f"{request.collaborator_name[:NAME_CHARACTERS]} is not a site of experiment {experiment.name}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)


def _refused(what: str, by: Who, error: FederationError, experiment: str) -> None:
    about = {"experiment": experiment[:NAME_CHARACTERS], **by.fields}
    logger.warning("refused: %s to %s: %s", what, by, error, extra=about)


def _process(context: Any) -> str:
    return str(get_headers(context).get(PROCESS, ""))


def _in_hand(context: Any) -> frozenset[str]:
    """The experiments that an envoy says it has.

    Raises:
        ValueError: it says something else.
    """
    said = json.loads(get_headers(context).get(IN_HAND, b"[]"))
    if not isinstance(said, list) or not all(isinstance(name, str) for name in said):
        raise ValueError(f"{IN_HAND} is not a list of names")
    return frozenset(said)


def _slots(context: Any) -> int:
    """How many experiments a site says that it runs at a time."""
    said = str(get_headers(context).get(SLOTS, "1"))
    return min(max(int(said), 1), MOST_SLOTS) if said.isascii() and said.isdigit() else 1


def _taken(site: str) -> str:
    return (
        f"another envoy named {site} is connected to this director; stop that one, or give this one another name in "
        f"its envoy.yaml"
    )


async def serve(settings: DirectorSettings) -> None:
    """Run a director until it is cancelled."""
    raise_file_limit()
    with tempfile.TemporaryDirectory(prefix="director-") as folder, _locked(settings, Path(folder, "state")) as root:
        server = DirectorServer(
            director_cls=Director,
            state_root=root,
            tls=settings.certificates.tls,
            sample_shape=list(settings.sample_shape),
            target_shape=list(settings.target_shape),
            listen_host=settings.listen_host,
            listen_port=settings.listen_port,
            envoy_health_check_period=settings.envoy_health_check_period,
            **settings.certificates.as_strings(),
        )
        server.guards = guards(settings)
        server.root_dir = Path(folder)  # submitted archives
        door = Door(root, server.director)
        await door.open()
        experiments = asyncio.create_task(server.director.start_experiment_execution_loop())
        try:
            await server._run_server()
        finally:
            door.close()
            experiments.cancel()
            server.director.leave()
            await server.server.stop(grace=1)  # time enough to tell the readers
            await server.director.gone()  # before another one may have the folder


@contextmanager
def _locked(settings: DirectorSettings, temporary: Path) -> Iterator[Path]:
    """The director's state folder, which is this process's alone for the block.

    Raises:
        FederationError: another director uses it, or it cannot be used.
    """
    root = settings.state or temporary
    try:
        files.ensure_folder(root)
    except OSError as error:
        raise FederationError(f"state: {root} cannot be used ({error}); name another folder") from error
    with locked(root, DIRECTOR) as elsewhere:
        if elsewhere:
            logger.warning(
                "state: %s was used by a %s, which has not given it back; if that one still runs, stop one of the two",
                root, elsewhere,
            )  # fmt: skip
        try:
            clear_leftovers(root)
        except OSError as error:
            raise FederationError(f"state: {root} cannot be used ({error}); name another folder") from error
        yield root
