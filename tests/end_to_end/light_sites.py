"""Many sites in one process that speak the real protocol and train nothing: `python light_sites.py PORT FIRST COUNT`.

Each has two connections, as a site has for its envoy and its trainer. It registers, says every few seconds that it is
there, waits for experiments, fetches each experiment's archive, and does its tasks: the model comes down, one is added
to every parameter, and it goes up. Ends when its standard input does, and then prints as JSON how long the calls took
that the director should answer at once: for each kind, how many, and the longest.
"""

import asyncio
import io
import json
import os
import struct
import sys
import threading
import time
import traceback
import uuid
import zipfile
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Iterable
from typing import Any

import grpc
import numpy as np
from openfl.protocols import aggregator_pb2, aggregator_pb2_grpc, base_pb2, director_pb2, director_pb2_grpc

from federation.schedule import TRAIN
from federation.site.client import INSTEAD_OF, PROCESS
from federation.wire.channels import CLIENT_OPTIONS
from federation.wire.models import CHUNK
from federation.wire.transfer import SERVICE, Address

OPTIONS = [*CLIENT_OPTIONS, ("grpc.use_local_subchannel_pool", 1)]  # a connection for each channel
METRICS = ("loss", "accuracy", "seconds")


class LightSite:
    """A site without recordings; `calls` are the seconds of each call by its kind."""

    def __init__(self, name: str, port: int, calls: dict[str, list[float]]) -> None:
        self.name, self._calls = name, calls
        envoy, trainer = (grpc.aio.insecure_channel(f"localhost:{port}", options=OPTIONS) for _ in range(2))
        self._channels = envoy, trainer
        self._metadata = [(PROCESS, uuid.uuid4().hex)]
        self._director = director_pb2_grpc.DirectorStub(envoy)
        self._rounds = aggregator_pb2_grpc.AggregatorStub(trainer)
        self._round, self._update = (
            trainer.unary_stream(f"/{SERVICE}/Round"),
            trainer.stream_unary(f"/{SERVICE}/Update"),
        )

    async def register(self) -> None:
        info = director_pb2.ShardInfo(
            node_info=director_pb2.NodeInfo(name=self.name), sample_shape=["4"], target_shape=["1"]
        )
        request = director_pb2.UpdateShardInfoRequest(shard_info=info)
        await self._timed("register", self._director.UpdateShardInfo(request, metadata=self._metadata))

    async def live(self) -> None:
        """Be there, and work on whatever comes."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._say_so())
            tasks.create_task(self._work())

    async def _say_so(self) -> None:
        request = director_pb2.UpdateEnvoyStatusRequest(name=self.name)
        while True:
            reply = await self._timed("status", self._director.UpdateEnvoyStatus(request, metadata=self._metadata))
            await asyncio.sleep(reply.health_check_period.seconds)

    async def _work(self) -> None:
        request, work = director_pb2.WaitExperimentRequest(collaborator_name=self.name), ""
        while True:
            metadata = [*self._metadata, (INSTEAD_OF, work.encode())]
            work = (await self._director.WaitExperiment(request, metadata=metadata)).experiment_name
            if work:
                await self._take_part(await self._description(work))

    async def _description(self, experiment: str) -> str:
        """The experiment's id."""
        request = director_pb2.GetExperimentDataRequest(experiment_name=experiment, collaborator_name=self.name)
        parts = [part.npbytes async for part in self._director.GetExperimentData(request, metadata=self._metadata)]
        with zipfile.ZipFile(io.BytesIO(b"".join(parts))) as archive:
            return str(json.loads(archive.read("experiment.json"))["id"])

    async def _take_part(self, experiment: str) -> None:
        header = aggregator_pb2.MessageHeader(sender=self.name, receiver="aggregator", federation_uuid=experiment)
        request = aggregator_pb2.GetTasksRequest(header=header)
        about = Address(federation=experiment, site=self.name)
        while True:
            reply = await self._rounds.GetTasks(request)  # which waits for the others
            if reply.quit:
                return
            if not reply.tasks:
                await asyncio.sleep(reply.sleep_time)
                continue
            number = reply.round_number
            content = await self._timed("model", self._model(Address(**{**vars(about), "round": number})))
            for task in reply.tasks:
                if task.name == TRAIN:
                    await self._timed("update", self._send(Address(**{**vars(about), "round": number}), content))
                await self._timed("results", self._results(header, number, task.name))

    async def _model(self, address: Address) -> bytes:
        return b"".join([chunk async for chunk in self._round(address.to_bytes())])

    async def _send(self, address: Address, model: bytes) -> None:
        """The model, with one more in each place."""
        start = 8 + int.from_bytes(model[:8], "little")
        trained = model[:start] + (np.frombuffer(model, np.float32, offset=start) + np.float32(1)).tobytes()
        sent = Address(**{**vars(address), "upload": uuid.uuid4().hex, "size": len(trained)})
        call = self._update()
        await call.write(sent.to_bytes())
        await call.initial_metadata()  # its turn
        for at in range(0, len(trained), CHUNK):
            await call.write(trained[at : at + CHUNK])
        await call.done_writing()
        await call

    async def _results(self, header: Any, number: int, task: str) -> None:
        tensors = [
            base_pb2.NamedTensor(name=name, tags=["metric"], data_bytes=struct.pack("<f", 0.5)) for name in METRICS
        ]
        results = aggregator_pb2.TaskResults(
            header=header, round_number=number, task_name=task, data_size=1, tensors=tensors
        ).SerializeToString()
        await self._rounds.SendLocalTaskResults(_each([base_pb2.DataStream(size=len(results), npbytes=results)]))

    async def _timed(self, kind: str, call: Awaitable[Any]) -> Any:
        started = time.monotonic()
        reply = await call
        self._calls[kind].append(time.monotonic() - started)
        return reply


async def _each(parts: Iterable[Any]) -> AsyncIterator[Any]:
    for part in parts:
        yield part


async def main(port: int, first: int, count: int) -> None:
    calls: dict[str, list[float]] = defaultdict(list)
    sites = [LightSite(f"light{number}", port, calls) for number in range(first, first + count)]
    for start in range(0, count, 50):  # a thousand connections at once are refused by the kernel's queue
        await asyncio.gather(*(site.register() for site in sites[start : start + 50]))
    print("registered", file=sys.stderr, flush=True)
    living = asyncio.gather(*(site.live() for site in sites))
    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    threading.Thread(target=lambda: (sys.stdin.read(), loop.call_soon_threadsafe(over.set)), daemon=True).start()
    await asyncio.wait([asyncio.ensure_future(over.wait()), living], return_when="FIRST_COMPLETED")
    if living.done():
        living.result()
    told = {kind: {"calls": len(seconds), "longest": max(seconds)} for kind, seconds in calls.items()}
    print(json.dumps(told), flush=True)
    os._exit(0)  # to close two thousand connections in good order takes seconds


if __name__ == "__main__":
    try:
        asyncio.run(main(*map(int, sys.argv[1:])))
    finally:
        traceback.print_exc()
        os._exit(1)
