"""One port for everything: the director's server answers the collaborators of every experiment.

The engine opens a second server per experiment, on every interface (transport/grpc/aggregator_server.py:74) and on a
port taken from a hash of the plan (federated/plan/plan.py:309), so that identical plans on one host met each other's
aggregator. Here a message finds its experiment by the federation's id in its header. The engine joins the parts of a
message by adding each to what came before (protocols/utils.py:310), which is quadratic; here they are joined once.
"""

import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc

from federation.director.conductor import Conductor
from federation.director.results import joined, read
from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL
from federation.wire.metadata import AGGREGATOR
from federation.wire.transfer import UPDATE_LOST, UpdateLost

logger = logging.getLogger(__name__)

TASKS = {
    TRAIN: aggregator_pb2.Task(name=TRAIN, function_name="train", task_type="train"),
    VALIDATE_LOCAL: aggregator_pb2.Task(
        name=VALIDATE_LOCAL, function_name="validate", task_type="validate", apply_local=True
    ),
    VALIDATE_AGGREGATED: aggregator_pb2.Task(name=VALIDATE_AGGREGATED, function_name="validate", task_type="validate"),
}


class AggregatorRouter(aggregator_pb2_grpc.AggregatorServicer):  # type: ignore[misc]
    """Hands each collaborator's message to the conductor of its experiment.

    conductor_of: the conductor of the experiment with this id, or None. caller: the name in the certificate behind a
    call, or None in plain mode.
    """

    def __init__(
        self,
        conductor_of: Callable[[str], Conductor | None],
        caller: Callable[[Any], str | None] = lambda context: None,
    ) -> None:
        self._conductor_of, self._caller = conductor_of, caller

    async def GetTasks(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What the collaborator should do now, as soon as there is something."""
        conductor = await self._find(request, context)
        assigned = await conductor.assignment(request.header.sender)
        return aggregator_pb2.GetTasksResponse(
            header=_header(request),
            round_number=assigned.round,
            tasks=[TASKS[name] for name in assigned.tasks],
            sleep_time=assigned.pause,
            quit=assigned.over,
        )

    async def GetAggregatedTensor(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not here: models have streams of their own."""
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "models travel by federation.Models")

    async def SendLocalTaskResults(self, request: AsyncIterator[Any], context: Any) -> Any:  # noqa: N802
        """Metrics of one finished task."""
        message = await joined(request)
        conductor = await self._find(message, context)
        try:
            conductor.take(read(message))
        except ValueError as error:
            about = {"site": message.header.sender, "experiment": conductor.name}
            logger.error("site %s: its results were refused: %s", message.header.sender, error, extra=about)
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000])
        except UpdateLost as error:
            about = {"site": message.header.sender, "experiment": conductor.name}
            logger.info("site %s: %s; it is asked for it again", message.header.sender, error, extra=about)
            await context.abort(UPDATE_LOST, str(error))
        return aggregator_pb2.SendLocalTaskResultsResponse(header=_header(message))

    async def _find(self, message: Any, context: Any) -> Conductor:
        site, name = message.header.sender, self._caller(context)
        if name is not None and name != site:
            reason = f"this certificate is for {name!r}, not for {site!r:.100}; use the site's own certificate"
            logger.warning("refused: name %s: %s", name, reason)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
        conductor = self._conductor_of(message.header.federation_uuid)
        if conductor is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this director runs no such experiment")
            raise AssertionError
        if site not in conductor.sites:
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"site {site!r:.100} has no part in this experiment")
        conductor.heard(site)
        return conductor


def _header(message: Any) -> Any:
    """Of an answer to a message."""
    header = message.header
    return aggregator_pb2.MessageHeader(
        sender=AGGREGATOR,
        receiver=header.sender,
        federation_uuid=header.federation_uuid,
        single_col_cert_common_name=header.single_col_cert_common_name,
    )
