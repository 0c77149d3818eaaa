"""Handlers that are plain functions, beside an event loop.

`grpc.aio` runs them in threads and gives them the call's context. A caller that gives up frees the call, and a thread
that then asks for the peer or the certificate (the engine's aggregator server does) brings the process
down with a segmentation fault (grpc 1.85). A plain function that streams is even called in the event loop itself, and
blocks it for ever when it aborts the call. Here a handler in a thread gets a context that was read in the event loop,
and touches nothing of gRPC.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import Executor
from typing import Any

import grpc

Behaviour = Callable[..., Any]
_END = object()


class Aborted(Exception):
    """A handler in a thread ends its call."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(details)
        self.code, self.details = code, details


class ThreadContext:
    """What a handler in a thread may know of its call; gRPC's names."""

    def __init__(self, context: Any) -> None:
        self._peer = context.peer()
        self._auth_context = context.auth_context()
        self._metadata = context.invocation_metadata()

    def peer(self) -> str:
        """The caller's address."""
        return str(self._peer)

    def auth_context(self) -> Any:
        """What the caller's certificate says."""
        return self._auth_context

    def invocation_metadata(self) -> Any:
        """The call's metadata."""
        return self._metadata

    def abort(self, code: grpc.StatusCode, details: str) -> None:
        """End the call with an error.

        Raises:
            Aborted: always.
        """
        raise Aborted(code, details)

    def set_code(self, code: grpc.StatusCode) -> None:
        """For the generated classes, whose methods raise NotImplementedError next."""

    def set_details(self, details: str) -> None:
        """For the generated classes, whose methods raise NotImplementedError next."""


def in_threads(behaviour: Behaviour, handler: Any, pool: Executor) -> Behaviour:
    """An asynchronous form of a plain function (or generator) that handles calls of this gRPC method handler."""

    def prepared(request: Any, context: Any) -> tuple[Callable[..., Awaitable[Any]], Any, ThreadContext]:
        loop = asyncio.get_running_loop()
        messages = _pulled(request, loop) if handler.request_streaming else request
        return lambda *call: loop.run_in_executor(pool, *call), messages, ThreadContext(context)

    if handler.response_streaming:

        async def stream(request: Any, context: Any) -> AsyncIterator[Any]:
            run, messages, facts = prepared(request, context)
            replies = await run(lambda: iter(behaviour(messages, facts)))
            while (reply := await run(next, replies, _END)) is not _END:
                yield reply

        return stream

    async def answer(request: Any, context: Any) -> Any:
        run, messages, facts = prepared(request, context)
        return await run(behaviour, messages, facts)

    return answer


def _pulled(stream: AsyncIterator[Any], loop: asyncio.AbstractEventLoop) -> Iterator[Any]:
    """What comes in at the event loop, for a thread."""

    async def following() -> Any:
        return await anext(stream, _END)

    while (message := asyncio.run_coroutine_threadsafe(following(), loop).result()) is not _END:
        yield message
