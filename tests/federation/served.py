"""A director's server, or the rounds of one experiment, in this process, on a port of this machine."""

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import grpc
from openfl.protocols import aggregator_pb2_grpc
from rounds import Conducted, at_once

from federation.director.access import guards
from federation.director.director import Director
from federation.director.models import ModelServer
from federation.director.room import Room
from federation.director.router import AggregatorRouter
from federation.director.server import DirectorServer
from federation.director.state import ExperimentState
from federation.settings import Certificates, DirectorSettings
from federation.wire.channels import SERVER_OPTIONS

SHAPES = {"sample_shape": ["4"], "target_shape": ["1"]}
SECONDS = 20.0
"""Longest time that anything may take which ends by itself."""


async def within(seconds: float, condition: Callable[[], Any]) -> bool:
    """Whether it becomes true in time; the loop goes on meanwhile."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        await _pause(0.01)
    return bool(condition())


_pause = asyncio.sleep  # a test may shorten the engine's sleeps


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return int(taken.getsockname()[1])


class Running:
    """A director's server that answers on a port of this machine, in a thread."""

    def __init__(self, make: Callable[..., Any], **settings: Any) -> None:
        self.port = free_port()
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

        async def made() -> Any:
            place = {"listen_host": "localhost", "listen_port": self.port}
            return make(envoy_health_check_period=60, **place, **SHAPES, **settings)

        self.server = self.do(made())
        self._serving = asyncio.run_coroutine_threadsafe(self.server._run_server(), self.loop)
        self.do(within(SECONDS, lambda: self.listens() or self._serving.done()))

    @property
    def director(self) -> Any:
        """The director behind the server."""
        return self.server.director

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine in the server's loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def listens(self) -> bool:
        """Whether the port is open."""
        with socket.socket() as tried:
            return tried.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """Stop the server and its thread."""
        self.do(self.server.server.stop(None))
        self._serving.cancel()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(SECONDS)
        self.loop.close()


def our_server(folder: Path, **settings: Any) -> DirectorServer:
    server = DirectorServer(director_cls=Director, state_root=folder / "state", **{"tls": False, **settings})
    server.root_dir = folder
    if server.tls:
        paths = Certificates(server.root_certificate, server.private_key, server.certificate)
        server.guards = guards(DirectorSettings(certificates=paths))
    return server


class Calls(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Counts calls by method."""

    def __init__(self) -> None:
        self.made: list[str] = []

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        self.made.append(details.method.rpartition("/")[2])
        return await continuation(details)


class ServedRounds:
    """A conductor on a port of this machine; its event loop runs in a thread."""

    def __init__(self, rounds: Conducted) -> None:
        self.calls = Calls()
        self._listens, self._over = threading.Event(), asyncio.Event()
        self._rounds, self._loop = rounds, rounds.runner.get_loop()
        self._thread = threading.Thread(target=lambda: rounds.runner.run(self._serve(rounds)), daemon=True)
        self._thread.start()
        assert self._listens.wait(10)

    async def _serve(self, rounds: Conducted) -> None:
        server = grpc.aio.server(interceptors=[self.calls], options=SERVER_OPTIONS)
        found = lambda _: rounds.conductor  # noqa: E731
        aggregator_pb2_grpc.add_AggregatorServicer_to_server(AggregatorRouter(found), server)
        ModelServer(found, lambda *_: None, lambda _: None, at_once, Room()).add_to(server)
        self.port = server.add_insecure_port("localhost:0")
        await server.start()
        self._listens.set()
        await self._over.wait()
        await server.stop(None)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    def restart(self) -> None:
        """The director is killed, and started again on the same port before anybody notices."""

        async def again() -> None:
            self._rounds.state = ExperimentState(self._rounds.state.folder)
            self._rounds.state.resume()
            self._rounds.conductor = await self._rounds._made()

        asyncio.run_coroutine_threadsafe(again(), self._loop).result(10)
