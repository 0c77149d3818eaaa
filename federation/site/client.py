"""The envoy's connection to its director.

The engine's client does not say which process is calling, so that the
director cannot tell two envoys of one name apart; and an envoy at work does not hear that its experiment is over.
"""

import uuid

import grpc
from openfl.protocols import director_pb2, director_pb2_grpc, interceptors
from openfl.transport.grpc.director_client import ShardDirectorClient

from federation.settings import EnvoySettings
from federation.wire.channels import connect
from federation.wire.metadata import AWAITING_APPROVAL, INSTEAD_OF, PROCESS


class SiteClient(ShardDirectorClient):  # type: ignore[misc]
    """The engine's client that says which process it is, on one channel."""

    def __init__(self, settings: EnvoySettings) -> None:
        self.shard_name = settings.name
        channel = connect(f"{settings.director_host}:{settings.director_port}", settings.certificates)
        named = interceptors.headers_adder({PROCESS: uuid.uuid4().hex})
        self.stub = director_pb2_grpc.DirectorStub(grpc.intercept_channel(channel, named))

    def wait_experiment(self, instead_of: str = "", awaiting: str | None = None) -> str:
        """The experiment to work on, as soon as it is another one than `instead_of`; "" when there is none.

        awaiting: the digest of the submission that waits for this site's owner, if one does.

        Raises:
            grpc.RpcError: no word from the director, or it refuses.
        """
        request = director_pb2.WaitExperimentRequest(collaborator_name=self.shard_name)
        metadata = [(INSTEAD_OF, instead_of.encode())] + ([(AWAITING_APPROVAL, awaiting)] if awaiting else [])
        reply = self.stub.WaitExperiment(request, metadata=metadata)
        return str(reply.experiment_name)

    def attempt_failed(self, experiment_name: str, reason: str) -> None:
        """Tell the director that a trainer died and is started once more; not an end, so the error code is 0."""
        self.set_experiment_failed(experiment_name, error_code=0, error_description=reason)
