"""The envoy's connection to its director.

Mends transport/grpc/director_client.py:26: the engine's client does not say which process is calling, so that the
director cannot tell two envoys of one name apart; and an envoy at work does not hear that its experiment is over.
"""

import uuid

import grpc
from openfl.protocols import director_pb2, director_pb2_grpc, interceptors
from openfl.transport.grpc.director_client import ShardDirectorClient
from openfl.transport.grpc.grpc_channel_options import channel_options

from federation.settings import EnvoySettings

PROCESS = "envoy-process"
"""Metadata: an id of the calling envoy process."""
INSTEAD_OF = "instead-of-bin"
"""Metadata of WaitExperiment: the experiment that the envoy works on; it asks what to do when that is over."""

RECONNECT = [("grpc.initial_reconnect_backoff_ms", 500), ("grpc.max_reconnect_backoff_ms", 2000)]
"""A director that is back is found within seconds; gRPC's own pause grows to two minutes."""


class SiteClient(ShardDirectorClient):  # type: ignore[misc]
    """The engine's client that says which process it is, on one channel."""

    def __init__(self, settings: EnvoySettings) -> None:
        self.shard_name = settings.name
        address = f"{settings.director_host}:{settings.director_port}"
        options = [*channel_options, *RECONNECT]
        files = settings.certificates
        if files.root_certificate and files.private_key and files.certificate:
            credentials = grpc.ssl_channel_credentials(
                files.root_certificate.read_bytes(), files.private_key.read_bytes(), files.certificate.read_bytes()
            )
            channel = grpc.secure_channel(address, credentials, options=options)
        else:
            channel = grpc.insecure_channel(address, options=options)
        named = interceptors.headers_adder({PROCESS: uuid.uuid4().hex})
        self.stub = director_pb2_grpc.DirectorStub(grpc.intercept_channel(channel, named))

    def wait_experiment(self, instead_of: str = "") -> str:
        """The experiment to work on, as soon as it is another one than `instead_of`; "" when there is none.

        Raises:
            grpc.RpcError: no word from the director, or it refuses.
        """
        request = director_pb2.WaitExperimentRequest(collaborator_name=self.shard_name)
        reply = self.stub.WaitExperiment(request, metadata=((INSTEAD_OF, instead_of.encode()),))
        return str(reply.experiment_name)

    def attempt_failed(self, experiment_name: str, reason: str) -> None:
        """Tell the director that a trainer died and is started once more; not an end, so the error code is 0."""
        self.set_experiment_failed(experiment_name, error_code=0, error_description=reason)
