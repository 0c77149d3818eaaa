"""The director's side of the models' streams (`federation.wire.transfer`): between gRPC's calls and the conductor."""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from federation.director.conductor import Conductor
from federation.director.room import Room
from federation.director.uploads import Cut, Replaced, Silent
from federation.errors import FederationError
from federation.wire.models import ModelFile
from federation.wire.transfer import SERVICE, Address, RoundOver

logger = logging.getLogger(__name__)

_END = object()


class ModelServer:
    """The director's side of the four calls.

    Args:
        conductor_of: the conductor of the experiment with this id, or None.
        trained: the file of an experiment's best or last model, for a caller; None when there is none yet, an error
            where the experiment is not this caller's.
        caller: the name in the certificate behind a call, or None in plain mode.
        run: calls a function in a thread, where it may wait for the disk.
        downloads: room for what is being sent.
    """

    def __init__(
        self,
        conductor_of: Callable[[str], Conductor | None],
        trained: Callable[[str, str, Any], ModelFile | None],
        caller: Callable[[Any], str | None],
        run: Callable[..., Awaitable[Any]],
        downloads: Room,
    ) -> None:
        self._conductor_of, self._trained, self._caller = conductor_of, trained, caller
        self._run, self._downloads = run, downloads

    def add_to(self, server: Any) -> None:
        """Serve the calls on a gRPC server."""
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, self.methods()),))

    def methods(self) -> dict[str, Any]:
        """The calls by name; bytes in, bytes out."""
        return {
            "Round": grpc.unary_stream_rpc_method_handler(self.round),
            "Update": grpc.stream_unary_rpc_method_handler(self.update),
            "Received": grpc.unary_unary_rpc_method_handler(self.received),
            "Trained": grpc.unary_stream_rpc_method_handler(self.trained),
        }

    async def round(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """The model of the current round, without the tensors that the site still has."""
        address, conductor = await self._find(request, context)
        async with _told(context):
            model = conductor.model_for(address.round, address.held)
            async with await self._downloads.take(model.size):
                if model.bytes is not None:
                    yield model.bytes[address.offset :]
                    return
                async for chunk in self._chunks(model.chunks(address.offset)):
                    yield chunk

    async def update(self, messages: AsyncIterator[bytes], context: Any) -> bytes:
        """Keep what a site has trained."""
        # gRPC's iterator keeps the last message, in a cycle of references. Closed, it lets go of it at once; else a
        # thousand sites leave one each before Python looks for cycles.
        async with aclosing(aiter(messages)) as parts:  # type: ignore[type-var]
            address, conductor = await self._find(await anext(parts, b""), context)
            async with _told(context):
                await conductor.receive(address, parts, lambda: context.send_initial_metadata(()))
        return b""

    async def received(self, request: bytes, context: Any) -> bytes:
        """How many bytes of an update have arrived, as text."""
        address, conductor = await self._find(request, context)
        async with _told(context):
            return str(conductor.received(address)).encode()

    async def trained(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        """The best or the last model of an experiment."""
        async with _told(context):
            address = Address.from_bytes(request)
            model = self._trained(address.experiment, address.kind, context)
            if model is None:
                await context.abort(grpc.StatusCode.NOT_FOUND, "there is no such model yet")
                return
            async with await self._downloads.take(model.path.stat().st_size):
                async for chunk in self._chunks(model.chunks()):
                    yield chunk

    async def _find(self, message: bytes, context: Any) -> tuple[Address, Conductor]:
        async with _told(context):
            address = Address.from_bytes(message)
        name = self._caller(context)
        if name is not None and name != address.site:
            reason = f"this certificate is for {name!r}, not for {address.site!r:.100}; use the site's own certificate"
            logger.warning("refused: name %s: %s", name, reason)
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
        conductor = self._conductor_of(address.federation)
        if conductor is None:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this director runs no such experiment")
            raise AssertionError
        if address.site not in conductor.sites:
            reason = f"site {address.site!r:.100} has no part in this experiment"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, reason)
        conductor.heard(address.site)
        return address, conductor

    async def _chunks(self, chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
        """Chunks that are read from the disk."""
        while (chunk := await self._run(next, chunks, _END)) is not _END:
            yield chunk


@asynccontextmanager
async def _told(context: Any) -> AsyncIterator[None]:
    """Ends the call, where the block raises, with a status that says who has to act."""
    try:
        yield
    except RoundOver as error:
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
    except Replaced as error:
        await context.abort(grpc.StatusCode.ABORTED, str(error))
    except (Cut, Silent) as error:  # an honest site whose line was down goes on where it stopped
        await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
    except (ValueError, FederationError) as error:
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
    except OSError as error:
        await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, f"the director cannot keep it: {error}")
