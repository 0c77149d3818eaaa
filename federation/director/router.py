"""One port for everything: the director's server answers the collaborators of every experiment.

The engine opens a second server per experiment, on every interface (transport/grpc/aggregator_server.py:74) and on a
port taken from a hash of the plan (federated/plan/plan.py:309), so that identical plans on one host met each other's
aggregator. Here a message finds its experiment by the federation's id in its header.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import grpc
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc
from openfl.transport import AggregatorGRPCServer

from federation.director.edge import RESULTS_BYTES, bounded

logger = logging.getLogger(__name__)

MALFORMED = (ValueError, AssertionError, LookupError, TypeError)
"""What the engine's reading of a message raises when something in it is missing, or is of another kind."""


class AggregatorRouter(aggregator_pb2_grpc.AggregatorServicer):  # type: ignore[misc]
    """Hands each collaborator's message to the aggregator of its experiment.

    `aggregator_of` returns the aggregator with a federation id, or None; `heard` is told which site has sent a message.
    """

    def __init__(
        self, aggregator_of: Callable[[str], Any], tls: bool, heard: Callable[[str], None] = lambda site: None
    ) -> None:
        self._aggregator_of = aggregator_of
        self._heard = heard
        self._tls = tls

    def GetTasks(self, request: Any, context: Any) -> Any:  # noqa: N802
        """What the collaborator should do now."""
        return self._server(request, context).GetTasks(request, context)

    def GetAggregatedTensor(self, request: Any, context: Any) -> Any:  # noqa: N802
        """Not here: models have streams of their own."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "models travel by federation.Models")

    def SendLocalTaskResults(self, request: Iterator[Any], context: Any) -> Any:  # noqa: N802
        """Metrics of one finished task.

        Joins the chunks once; the engine adds each to what came before (protocols/utils.py:310), which is quadratic.
        """
        results = aggregator_pb2.TaskResults()
        results.ParseFromString(b"".join(chunk.npbytes for chunk in bounded(request, RESULTS_BYTES)))
        server = self._server(results, context)
        server.validate_collaborator(results, context)
        server.check_request(results)
        try:
            server.aggregator.send_local_task_results(
                results.header.sender, results.round_number, results.task_name, results.data_size, results.tensors
            )
        except MALFORMED as error:
            about = {"site": results.header.sender, "experiment": server.aggregator.experiment}
            logger.error("site %s: its results were refused: %s", about["site"], error, extra=about)
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return aggregator_pb2.SendLocalTaskResultsResponse(header=server.get_header(results.header.sender))

    def _server(self, message: Any, context: Any) -> AggregatorGRPCServer:
        aggregator = self._aggregator_of(message.header.federation_uuid)
        if aggregator is None:
            context.abort(grpc.StatusCode.NOT_FOUND, "this director runs no such experiment")
        self._heard(message.header.sender)
        return AggregatorGRPCServer(aggregator=aggregator, agg_port=0, tls=self._tls)
