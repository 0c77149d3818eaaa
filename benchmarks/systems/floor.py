"""The floor: the least that any federation with one server has to do for the job.

One server and a process for each site; a round is each model once down and once up over loopback gRPC in chunks of
2 MiB, one weighted mean taken in place as the chunks arrive, and one plain write to disk. No checks, no names, no
restarts, no security: nobody could use it, and nothing in Python over gRPC is much faster.
"""

import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from addition import Job, SiteModel

CHUNK = 2 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVICE = "floor.Floor"


class Server(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Holds the model and the running sum of the next one, both flat."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.model = job.initial()
        self.sum = np.zeros_like(self.model)
        self.round = 1
        self.reported = 0
        self.turn = threading.Condition()
        self.locks = [threading.Lock() for _ in range(0, self.model.nbytes, CHUNK)]
        self.left = threading.Semaphore(0)

    def service(self, details: Any) -> Any:
        """The handler of a call (gRPC's interface)."""
        if details.method.endswith("Down"):
            return grpc.unary_stream_rpc_method_handler(self.down)
        return grpc.stream_unary_rpc_method_handler(self.up)

    def down(self, request: bytes, context: Any) -> Iterator[bytes]:
        """The model of a round, as soon as it is there; nothing when the rounds are over."""
        wanted = int(request)
        with self.turn:
            self.turn.wait_for(lambda: self.round >= wanted)
        if wanted > self.job.rounds:
            self.left.release()
            return
        yield from chunks(self.model)

    def up(self, parts: Iterator[bytes], context: Any) -> bytes:
        """One site's model, added to the sum as it comes; the last site's ends the round."""
        weight = np.float32(int(next(parts)))
        at = 0
        for number, part in enumerate(parts):
            values = np.frombuffer(part, np.float32) * weight
            with self.locks[number]:
                self.sum[at : at + values.size] += values
            at += values.size
        with self.turn:
            self.reported += 1
            if self.reported == self.job.sites:
                self.end_round()
        return b""

    def end_round(self) -> None:
        """Make the sum the model, write it, and let the sites go on."""
        self.sum /= np.float32(sum(self.job.weight(site) for site in range(1, self.job.sites + 1)))
        self.model, self.sum = self.sum, self.model
        self.sum.fill(0)
        self.job.checkpoint(self.job.split(self.model))
        self.reported = 0
        self.round += 1
        self.turn.notify_all()


def chunks(flat: np.ndarray) -> Iterator[bytes]:
    """The bytes of an array, in order."""
    view = flat.data.cast("B")
    for start in range(0, len(view), CHUNK):
        yield bytes(view[start : start + CHUNK])


def serve(job: Job) -> None:
    """Run the server to the end of the job, and check the model."""
    handler = Server(job)
    server = grpc.server(ThreadPoolExecutor(job.sites + 1), handlers=[handler], options=OPTIONS)
    print(f"listening on {server.add_insecure_port('localhost:0')}", flush=True)
    server.start()
    for _ in range(job.sites):
        handler.left.acquire()
    server.stop(grace=1).wait()


def take_part(job: Job, site: int, port: int) -> None:
    """Do one site's part of every round."""
    model = SiteModel(job)
    flat = np.empty(job.parameters, np.float32)
    model.tensors = job.split(flat)
    with grpc.insecure_channel(f"localhost:{port}", OPTIONS) as channel:
        down, up = channel.unary_stream(f"/{SERVICE}/Down"), channel.stream_unary(f"/{SERVICE}/Up")
        for number in range(1, job.rounds + 2):
            at = 0
            for part in down(str(number).encode()):
                values = np.frombuffer(part, np.float32)
                flat[at : at + values.size] = values
                at += values.size
            if at:
                model.train(site, number)
                up(weighted(job.weight(site), flat))


def weighted(weight: int, flat: np.ndarray) -> Iterator[bytes]:
    """What a site sends: its weight, then its model."""
    yield str(weight).encode()
    yield from chunks(flat)


def run(job: Job) -> None:
    """Start the server and the sites, and wait for the end."""
    from measure import Tagged

    with Tagged(Path(job.folder)) as processes:
        processes.start("server", sys.executable, __file__)
        port = processes.wait_for("server", r"listening on (\d+)")[1]
        for site in range(1, job.sites + 1):
            processes.start(f"site{site}", sys.executable, __file__, str(site), port)
        processes.finish("server")


if __name__ == "__main__":
    if len(sys.argv) == 1:
        serve(Job.from_environment())
    else:
        take_part(Job.from_environment(), int(sys.argv[1]), int(sys.argv[2]))
