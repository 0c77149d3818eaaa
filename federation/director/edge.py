"""What may come in at the director's port: sizes, names, and errors that are answers.

The engine takes messages of 1 GiB and metadata of 32 MiB from everyone (transport/grpc/grpc_channel_options.py), any
name for a site or an experiment, and answers what it cannot read with "Unknown" and a traceback in its own log. Here
the limits are those of what is really sent, names have rules (`federation.wire.names`), and a caller is told what is
wrong with its call.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
from google.protobuf.message import DecodeError

from federation.settings import RESERVED_NAMES
from federation.wire.names import site_name_problem

logger = logging.getLogger(__name__)

Behaviour = Callable[..., Any]
DESCRIPTION_CHARACTERS = 100_000
SITES = 1_000
"""Sites that may register at one director: a bound for its memory."""


def shard_problem(info: Any) -> str | None:
    """What is wrong with what an envoy tells of its shard (a ShardInfo message), or None."""
    if problem := site_name_problem(info.node_info.name):
        return problem
    if info.node_info.name in RESERVED_NAMES:
        return f"{info.node_info.name!r} is no site's name: it is reserved for results that belong to no site"
    if len(info.shard_description) > DESCRIPTION_CHARACTERS:
        return f"the shard's description has more than {DESCRIPTION_CHARACTERS} characters; shorten dataset_description"
    if len(info.node_info.cuda_devices) > 64 or len(info.sample_shape) > 16 or len(info.target_shape) > 16:
        return "more than 64 devices, or a shape of more than 16 dimensions"
    return None


class Edge(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Makes an answer of every error of a handler; the outermost of a server's interceptors.

    What is wrong with a message (a ValueError says it, or that it cannot be read), the caller is told. Anything else is
    a fault of the director: the caller is told so, and the log has the traceback. Every handler is a coroutine or an
    asynchronous generator; the generated classes' plain functions are of methods that nobody answers.
    """

    def __init__(self) -> None:
        self._handlers: dict[str, Any] = {}

    async def intercept_service(self, continuation: Callable[[Any], Awaitable[Any]], call: Any) -> Any:
        """The method's handler with answers for errors (gRPC's interface)."""
        if made := self._handlers.get(call.method):
            return made
        handler = await continuation(call)
        if handler is None:  # gRPC answers that there is no such method
            return None
        unread = handler._replace(request_deserializer=None)  # a message that cannot be read gets an answer, too
        made = wrapped(unread, lambda behaviour: self._answering(behaviour, call.method, handler))
        self._handlers[call.method] = made
        return made

    def _answering(self, behaviour: Behaviour, method: str, handler: Any) -> Behaviour:
        """The handler for messages that are not yet read, as a coroutine or an asynchronous generator."""
        if not inspect.isasyncgenfunction(behaviour) and not inspect.iscoroutinefunction(behaviour):
            behaviour = _none_streams if handler.response_streaming else _none_answers
        read = handler.request_deserializer

        async def each(stream: AsyncIterator[bytes]) -> AsyncIterator[Any]:
            async for data in stream:
                yield read(data)

        def taken(request: Any) -> Any:
            if read is None:  # models travel as plain bytes
                return request
            return each(request) if handler.request_streaming else read(request)

        async def answer(request: Any, context: Any) -> Any:
            try:
                return await behaviour(taken(request), context)
            except grpc.aio.BaseError:  # the call has its answer, or its caller has gone
                raise
            except Exception as error:
                await context.abort(*_answer(error, method, context))

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            try:
                async for reply in behaviour(taken(request), context):
                    yield reply
            except grpc.aio.BaseError:  # the call has its answer, or its caller has gone
                raise
            except Exception as error:
                await context.abort(*_answer(error, method, context))

        return stream if handler.response_streaming else answer


def wrapped(handler: Any, wrap: Callable[[Behaviour], Behaviour]) -> Any:
    """A gRPC method handler with `wrap` around its function."""
    kind = "_".join("stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming))
    return handler._replace(**{kind: wrap(getattr(handler, kind))})


async def _none_answers(request: Any, context: Any) -> Any:
    raise NotImplementedError


async def _none_streams(request: Any, context: Any) -> AsyncIterator[Any]:
    raise NotImplementedError
    yield


def _answer(error: Exception, method: str, context: Any) -> tuple[grpc.StatusCode, str]:
    name, peer = method.rpartition("/")[2], unquote(context.peer())
    if isinstance(error, NotImplementedError):
        return grpc.StatusCode.UNIMPLEMENTED, f"this director does not answer {name}"
    if isinstance(error, (ValueError, DecodeError)):
        logger.warning("%s from %s refused: %s", name, peer, str(error)[:300])
        return grpc.StatusCode.INVALID_ARGUMENT, str(error)[:1000]
    logger.error("%s from %s", name, peer, exc_info=error)
    return grpc.StatusCode.INTERNAL, f"a fault in the director ({type(error).__name__}); its log tells more"
