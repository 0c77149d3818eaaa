"""A site's words to its director: the envoy's (`SiteClient`) and a trainer's (`RoundClient`), each on one channel.

The engine's client does not say which process is calling, so that the director cannot tell two envoys of one name
apart; and an envoy at work does not hear that its experiment is over. Mends, with the engine's file and line:

- transport/grpc/aggregator_client.py:140: a new channel is opened for every tensor. Here one lasts.
- aggregator_client.py:161: an error of the aggregator is retried for ever, without a pause. Here only a connection that
  is down is retried, until `federation.wire.transfer.GIVE_UP_AFTER`; anything else is raised.
"""

import json
import uuid
from collections.abc import Iterable, Iterator, Mapping

import grpc
import numpy as np
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, base_pb2, director_pb2, director_pb2_grpc
from openfl.protocols.interceptors import headers_adder
from openfl.transport.grpc.director_client import ShardDirectorClient

from federation.schedule import TRAIN, VALIDATE_AGGREGATED, VALIDATE_LOCAL
from federation.settings import EnvoySettings
from federation.site.audit import AuditLog
from federation.site.noted import noted
from federation.wire.channels import connect
from federation.wire.metadata import (
    AGGREGATOR,
    AWAITING_APPROVAL,
    EXPERIMENTER,
    IN_HAND,
    INSTEAD_OF,
    PROCESS,
    RESTS,
    SLOTS,
)
from federation.wire.transfer import keep_trying

TAGS = {TRAIN: "trained", VALIDATE_LOCAL: "validate_local", VALIDATE_AGGREGATED: "validate_agg"}
"""The engine's word for the task whose metrics a message holds."""


class SiteClient(ShardDirectorClient):  # type: ignore[misc]
    """The engine's client that says which process it is, on one channel whose messages are in the site's log."""

    def __init__(self, settings: EnvoySettings, audit: AuditLog | None = None, slots: int = 1) -> None:
        self.shard_name = settings.name
        channel = connect(f"{settings.director_host}:{settings.director_port}", settings.certificates)
        named = headers_adder({PROCESS: uuid.uuid4().hex, SLOTS: str(slots)})
        self.stub = director_pb2_grpc.DirectorStub(noted(grpc.intercept_channel(channel, named), audit or AuditLog()))

    def next_experiment(self, in_hand: Iterable[str] = ()) -> grpc.Future:
        """The question for an experiment to work on that is none of those in hand; `name_in` reads the answer."""
        return self.stub.WaitExperiment.future(
            director_pb2.WaitExperimentRequest(collaborator_name=self.shard_name),
            metadata=[(IN_HAND, json.dumps(sorted(in_hand)).encode())],
        )

    def end_of(self, experiment: str, awaiting: str | None = None) -> grpc.Future:
        """The question whether an experiment that the site has in hand is over: answered as soon as it is.

        awaiting: the digest of its submission, if that waits for this site's owner.
        """
        return self.stub.WaitExperiment.future(
            director_pb2.WaitExperimentRequest(collaborator_name=self.shard_name),
            metadata=[
                (INSTEAD_OF, experiment.encode()),
                *([(AWAITING_APPROVAL, awaiting)] if awaiting else []),
            ],
        )

    def archive(self, experiment: str, limit: int) -> tuple[bytes, str]:
        """An experiment's archive, as far as one may be large, and who has submitted it, if the director says so.

        Raises:
            grpc.RpcError: no word from the director, or it refuses.
        """
        archive = bytearray()
        stream = self.get_experiment_data(experiment)
        told = dict(stream.initial_metadata() or ())
        for part in stream:
            archive += part.npbytes
            if len(archive) > limit:
                stream.cancel()
                break
        return bytes(archive), told.get(EXPERIMENTER, b"").decode(errors="replace")

    def attempt_failed(self, experiment_name: str, reason: str) -> None:
        """Tell the director that a trainer died and is started once more; not an end, so the error code is 0."""
        self.set_experiment_failed(experiment_name, error_code=0, error_description=reason)


class RoundClient:
    """What a trainer asks and tells about the rounds of one experiment, in the engine's messages.

    A connection that is down is tried again every second, at most `federation.wire.transfer.GIVE_UP_AFTER` seconds.
    """

    def __init__(self, channel: grpc.Channel, experiment_id: str, site: str) -> None:
        self._stub = aggregator_pb2_grpc.AggregatorStub(channel)
        self._header = aggregator_pb2.MessageHeader(sender=site, receiver=AGGREGATOR, federation_uuid=experiment_id)

    def get_tasks(self) -> tuple[list[str], int, int, bool]:
        """The names of the tasks that come next, the engine's round, seconds to wait where there are none, and whether
        the experiment is over.

        Raises:
            FederationError: the director refuses, or is gone.
        """
        request = aggregator_pb2.GetTasksRequest(header=self._header)
        reply = keep_trying(lambda: self._stub.GetTasks(request))
        return [task.name for task in reply.tasks], reply.round_number, reply.sleep_time, reply.quit

    def send_results(self, task: str, engine_round: int, examples: int, metrics: Mapping[str, float]) -> None:
        """Send the metrics of one task, and the number of examples that weighs them.

        Raises:
            UpdateLost: what was trained has to be sent again first.
            FederationError: the director refuses, or is gone.
        """
        tensors = [_named(name, value, engine_round, TAGS[task]) for name, value in metrics.items()]
        results = aggregator_pb2.TaskResults(
            header=self._header, round_number=engine_round, task_name=task, data_size=examples, tensors=tensors
        ).SerializeToString()

        def messages() -> Iterator[base_pb2.DataStream]:
            yield base_pb2.DataStream(size=len(results), npbytes=results)

        keep_trying(lambda: self._stub.SendLocalTaskResults(messages()))


def _named(name: str, value: float, engine_round: int, tag: str) -> base_pb2.NamedTensor:
    """A metric as the engine sends it: one float32."""
    return base_pb2.NamedTensor(
        name=name,
        round_number=engine_round,
        lossless=True,
        report=True,
        tags=sorted(("compressed", "metric", tag)),
        transformer_metadata=[base_pb2.MetadataProto()],
        data_bytes=np.float32(value).tobytes(),
    )


def rests(answer: grpc.Future) -> bool:
    """Whether an answer says that the experiment goes on without this site for a round or more."""
    return dict(answer.trailing_metadata() or ()).get(RESTS) == "yes"


def name_in(answer: grpc.Future) -> str:
    """The experiment that an answer names, as soon as it is there; "" for none.

    Raises:
        grpc.RpcError: no word from the director, or it refuses.
        grpc.FutureCancelledError: the question was taken back.
    """
    return str(answer.result().experiment_name)
