"""A site's channel to its director, whose messages are in the audit log before they leave."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc

from federation.site.audit import AuditLog


def noted(channel: grpc.Channel, log: AuditLog) -> grpc.Channel:
    """The channel with a line in the log for each message; without a log, the channel."""
    return grpc.intercept_channel(channel, _Noted(log.message)) if log.kept else channel


class _Noted(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor, grpc.StreamUnaryClientInterceptor):  # type: ignore[misc]
    """Writes down every call before it is made (gRPC's interface); of a stream its first message."""

    def __init__(self, note: Callable[[str, bytes], None]) -> None:
        self._note = note

    def intercept_unary_unary(self, continuation: Any, details: Any, request: Any) -> Any:
        """A question."""
        self._note(details.method.rpartition("/")[2], _bytes(request))
        return continuation(details, request)

    intercept_unary_stream = intercept_unary_unary

    def intercept_stream_unary(self, continuation: Any, details: Any, messages: Iterator[Any]) -> Any:
        """A stream of the site's."""
        first = next(messages)
        self._note(details.method.rpartition("/")[2], _bytes(first))

        def all_messages() -> Iterator[Any]:
            yield first
            yield from messages

        return continuation(details, all_messages())


def _bytes(message: Any) -> bytes:
    return message if isinstance(message, bytes) else message.SerializeToString()
