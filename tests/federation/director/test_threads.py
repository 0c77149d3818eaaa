"""Plain functions as handlers of a real server in a process of its own, whose callers give up in the middle."""

import subprocess
import sys

SERVER = """
import asyncio, os, random, threading, time
from concurrent.futures import ThreadPoolExecutor
import grpc
from federation.director.edge import Edge

def unary(request, context):
    time.sleep(random.random() * 0.03)
    context.auth_context()
    context.abort(grpc.StatusCode.NOT_FOUND, context.peer())

def streaming(request, context):
    yield request
    unary(request, context)

def adding(requests, context):
    return b"".join(requests)

def refusing(requests, context):
    raise ValueError("not " + next(requests).decode())

def at_once(request, context):
    context.abort(grpc.StatusCode.ABORTED, "at once")

HANDLERS = {
    "/t/unary": grpc.unary_unary_rpc_method_handler(unary),
    "/t/streaming": grpc.unary_stream_rpc_method_handler(streaming),
    "/t/adding": grpc.stream_unary_rpc_method_handler(adding),
    "/t/refusing": grpc.stream_unary_rpc_method_handler(refusing),
    "/t/at_once": grpc.unary_stream_rpc_method_handler(at_once),
}

class Service(grpc.GenericRpcHandler):
    def service(self, call):
        handler = HANDLERS.get(call.method)
        return handler and handler._replace(request_deserializer=bytes)

def code(send, request, timeout):
    try:
        reply = send(request, timeout=timeout)
        return reply if isinstance(reply, bytes) else list(reply)
    except grpc.RpcError as error:
        return error.code().name, error.details().split(":")[0]

def give_up(port):
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        for number in range(200):
            code(channel.unary_unary("/t/unary"), b"", 0.015)
            code(channel.unary_stream("/t/streaming"), b"", 0.015)

def told(port):
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        print(code(channel.unary_unary("/t/unary"), b"", 5))
        print(code(channel.unary_stream("/t/streaming"), b"", 5))
        print(code(channel.stream_unary("/t/adding"), iter([b"a", b"b", b"c"]), 5))
        print(code(channel.stream_unary("/t/refusing"), iter([b"this"]), 5))
        print(code(channel.unary_stream("/t/at_once"), b"", 5))
        print(code(channel.unary_unary("/t/other"), b"", 5)[0])

async def main():
    server = grpc.aio.server(interceptors=(Edge(ThreadPoolExecutor(16)),))
    server.add_generic_rpc_handlers((Service(),))
    port = server.add_insecure_port("localhost:0")
    await server.start()
    await asyncio.gather(*(asyncio.to_thread(give_up, port) for _ in range(4)))
    await asyncio.to_thread(told, port)
    await server.stop(0)

asyncio.run(main())
"""


def test_callers_that_give_up_harm_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines() == [
        "('NOT_FOUND', 'ipv6')",
        "('NOT_FOUND', 'ipv6')",
        "b'abc'",
        "('INVALID_ARGUMENT', 'not this')",
        "('ABORTED', 'at once')",
        "UNIMPLEMENTED",
    ]
    assert "Traceback" not in done.stderr
