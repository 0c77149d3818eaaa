"""How models travel: one stream of a safetensors file each way, beside the engine's services on the same port.

The engine asks for each tensor by a call of its own (component/collaborator/collaborator.py:428) and sends all tensors
of a task as one message that must fit into memory several times over (transport/grpc/aggregator_client.py:485). Here a
model is streamed from disk to disk in chunks, and a transfer that was cut goes on where it stopped.

Four calls, with a line of JSON (`Address`) as the first message of the caller:

- Round: the model that a round starts with, to a site.
- Update: what a site has trained, to the director; the rest of it when the director's headers have come. Received: how
  many bytes of it have arrived.
- Trained: the best or the last model, to a notebook.
"""

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc

from federation.errors import FederationError
from federation.wire.channels import CONNECTION_LOST
from federation.wire.models import ModelFile, ModelParts, Packed

logger = logging.getLogger(__name__)

SERVICE = "federation.Models"

GIVE_UP_AFTER = 600.0
"""Seconds without any connection after which a site or a notebook gives up."""


class RoundOver(FederationError):
    """The round that a site works on has been closed without it."""


class UpdateLost(FederationError):
    """The director has not got what a site says that it has trained: it was started again since that came."""


UPDATE_LOST = grpc.StatusCode.DATA_LOSS
"""What the director then answers."""


@dataclass(frozen=True)
class Address:
    """Which model a call is about, and where a transfer goes on.

    federation: the id of the experiment's federation. round: the engine's number of a round. held: the round whose
    model the site still has, or -1. upload: an id of the very bytes that are sent. offset, size: in bytes.
    experiment, kind: for a notebook, a name, and "best" or "last".
    """

    federation: str = ""
    site: str = ""
    round: int = 0
    held: int = -1
    upload: str = ""
    offset: int = 0
    size: int = 0
    experiment: str = ""
    kind: str = ""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is not type(getattr(Address, name)):
                raise ValueError(f"{name} is {value!r:.100}")
        if self.offset < 0:
            raise ValueError(f"offset is {self.offset}; at least 0")
        if self.upload and not (self.upload.isalnum() and self.upload.isascii() and len(self.upload) <= 64):
            raise ValueError("upload is not an id")

    def to_bytes(self) -> bytes:
        """One line of JSON."""
        return json.dumps(vars(self)).encode()

    @classmethod
    def from_bytes(cls, content: bytes) -> "Address":
        """The address in a message.

        Raises:
            ValueError: it is none.
        """
        try:
            return cls(**json.loads(content))
        except (TypeError, RecursionError) as error:
            raise ValueError(f"not an address: {error}") from None


class SiteTransfers:
    """A site's side: models of rounds into a folder, updates to the aggregator; each goes on where it was cut."""

    def __init__(self, channel: grpc.Channel, federation: str, site: str, folder: Path) -> None:
        self._round = channel.unary_stream(f"/{SERVICE}/Round")
        self._update = channel.stream_unary(f"/{SERVICE}/Update")
        self._received = channel.unary_unary(f"/{SERVICE}/Received")
        self._address = Address(federation=federation, site=site)
        self._folder = folder
        self._model = ModelParts({})
        self._held = -1
        self.received_bytes = 0
        """Of the file with which the model came that was fetched last."""
        self.best: int | None = None
        """The rounds of training of the best model so far, as the director has told with the last one."""

    def model(self, round_number: int) -> ModelParts:
        """The model that a round starts with; fetched once.

        Raises:
            RoundOver: the round has been closed.
            FederationError: the director refuses, or is gone for `GIVE_UP_AFTER` seconds.
        """
        if round_number != self._held:
            path = self._folder / f"round-{round_number}.safetensors"
            path.unlink(missing_ok=True)
            with path.open("ab") as file:

                def fetch() -> None:
                    address = self._about(round=round_number, held=self._held, offset=file.tell())
                    for chunk in self._round(address.to_bytes()):
                        file.write(chunk)

                keep_trying(fetch, progress=file.tell)
            self.received_bytes = path.stat().st_size
            received = ModelFile(path)
            unchanged = json.loads(received.metadata.get("unchanged", "[]"))
            told = received.metadata.get("best", "")
            self.best = int(told) if told.isdecimal() else None
            before = self._model
            self._model = ModelParts(dict.fromkeys(received, received) | {n: before.files[n] for n in unchanged})
            for path in before.paths() - self._model.paths():
                path.unlink(missing_ok=True)
            self._held = round_number
        return self._model

    def send(self, round_number: int, packed: Packed) -> None:
        """Send what was trained in a round.

        Raises:
            RoundOver: the round has been closed.
            FederationError: the director refuses it, or is gone for `GIVE_UP_AFTER` seconds.
        """
        address = self._about(round=round_number, upload=uuid.uuid4().hex, size=packed.size)
        arrived = cut = 0

        def send() -> None:
            nonlocal arrived, cut
            if cut:
                arrived = int(self._received(address.to_bytes()))
            cut += 1
            Sending(self._update, replace(address, offset=arrived), packed).result()

        keep_trying(send, progress=lambda: arrived)

    def _about(self, **values: Any) -> Address:
        return replace(self._address, **values)


class Sending:
    """One call that sends an update: its address, and the rest when the director says that it is its turn.

    The director says so by the headers of its answer. (Whatever is sent before would lie in its memory until then.)
    """

    def __init__(self, update: Any, address: Address, packed: Packed) -> None:
        self._begun = threading.Event()
        self._call = update.future(self._messages(address, packed))
        self._begun.set()

    def result(self) -> None:
        """Return when the director has it.

        Raises:
            grpc.RpcError: it refuses it, or the connection is lost.
        """
        self._call.result()

    def _messages(self, address: Address, packed: Packed) -> Iterator[bytes]:
        yield address.to_bytes()
        self._begun.wait()
        self._call.initial_metadata()  # which waits for it, or for the end of the call
        if not self._call.done():
            yield from packed.chunks(address.offset)


def fetch_trained(
    channel: grpc.Channel, experiment: str, kind: str, path: Path, give_up_after: float = 10.0
) -> ModelFile | None:
    """The best or the last model of an experiment as the file `path`; None when there is none yet."""
    call = channel.unary_stream(f"/{SERVICE}/Trained")

    def fetch() -> bool:
        try:
            with path.open("wb") as file:
                for chunk in call(Address(experiment=experiment, kind=kind).to_bytes()):
                    file.write(chunk)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            raise
        return True

    return ModelFile(path) if keep_trying(fetch, give_up_after=give_up_after) else None


def keep_trying(
    attempt: Callable[[], Any], progress: Callable[[], int] = lambda: 0, give_up_after: float = GIVE_UP_AFTER
) -> Any:
    """Make a call, again every second while the connection is down.

    progress: bytes that have arrived so far; as long as they grow, nobody gives up.

    Raises:
        RoundOver, UpdateLost: the director says so.
        FederationError: any other answer, or no connection for `give_up_after` seconds.
    """
    lost_since: float | None = None
    reached = progress()
    while True:
        try:
            return attempt()
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise RoundOver(error.details()) from None
            if error.code() is UPDATE_LOST:
                raise UpdateLost(error.details()) from None
            now = time.monotonic()
            if progress() > reached:
                reached, lost_since = progress(), None
            if error.code() not in CONNECTION_LOST:
                raise FederationError(f"the director answered: {error.details()}") from error
            if lost_since is not None and now > lost_since + give_up_after:
                told = f"no word from the director for {give_up_after:.0f} s ({error.details()})"
                raise FederationError(f"{told}; try again when it is back") from error
            if lost_since is None:
                lost_since = now
                logger.warning("the director is out of reach (%s); trying again", error.details())
            time.sleep(1.0)
