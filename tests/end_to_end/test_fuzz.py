"""Malformed messages at a real director, over real gRPC: it answers each within seconds, and works on.

A new service joins with a line in `METHODS`; a message class that is no protobuf message joins with a generator.
"""

import json
import logging
import random
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import yaml
from google.protobuf.message import Message
from openfl.protocols import aggregator_pb2, base_pb2, director_pb2
from processes import PYTHON, TOYS, Processes, ToyFederation, certificate_lines
from test_federation import submit

from federation import authority as certificates
from federation.notebook.handle import FederationHandle
from federation.site.client import INSTEAD_OF, PROCESS
from federation.wire import archives
from federation.wire.channels import MESSAGE_BYTES
from federation.wire.metadata import AGGREGATOR
from federation.wire.transfer import SERVICE, Address

PLAIN_CALLS, TLS_CALLS = 2000, 400
SECONDS = 4.0
"""Within which every call is answered."""
LONG = ("WaitExperiment", "GetMetricStream", "GetTasks")
"""Methods whose answer may be worth waiting for."""
ENDING = ("SetExperimentFailed", "RemoveExperimentData")
"""Methods that end the experiment at which the other calls are aimed."""
FAULTS = ("a fault in the director", "Unexpected", "Exception calling application", "Exception iterating responses")
"""What an error that nobody has thought of would say."""

Words = dict[str, list[str]]
"""By field: text that means something there to this director."""
Messages = Callable[[random.Random, Words], list[bytes]]


@pytest.fixture(autouse=True)
def quiet_client() -> Iterator[None]:
    """Without the client's own words about every stream that a test breaks off."""
    logger = logging.getLogger("grpc._channel")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@dataclass(frozen=True)
class Method:
    """`messages` makes those of one call, out of words that mean something to this director."""

    path: str
    messages: Messages
    streams_in: bool = False
    streams_out: bool = False


def fuzzed(kind: type[Message], most: int = 1) -> Messages:
    """Up to `most` messages of this class with odd values in it, or with broken bytes."""

    def messages(generator: random.Random, words: Words) -> list[bytes]:
        count = 1 if most == 1 else generator.randrange(most + 1)
        return [damaged(filled(kind(), generator, words).SerializeToString(), generator) for _ in range(count)]

    return messages


def task_results(generator: random.Random, words: Words) -> list[bytes]:
    """A task's results, cut into chunks as the engine sends them."""
    whole = filled(aggregator_pb2.TaskResults(), generator, words).SerializeToString()
    if generator.random() < 0.3:
        whole = damaged(whole, generator)
    cut = generator.randrange(len(whole) + 1)
    parts = whole[:cut], whole[cut:]
    return [base_pb2.DataStream(size=len(part), npbytes=part).SerializeToString() for part in parts]


def services(*modules: object) -> Iterator[Method]:
    """Every method of the engine's services."""
    for module in modules:
        for service in module.DESCRIPTOR.services_by_name.values():
            for each in service.methods:
                make = fuzzed(each.input_type._concrete_class, most=4 if each.client_streaming else 1)
                if each.name == "SendLocalTaskResults":
                    make = task_results
                path = f"/{service.full_name}/{each.name}"
                yield Method(path, make, each.client_streaming, each.server_streaming)


ODD = ["", "..", ".", "../../etc/passwd", "\x00", "new\nline", "n" * 10_000, "é" * 300, "\U0001f3a4", "%s%n", "nobody"]


def addresses(generator: random.Random, words: Words) -> list[bytes]:
    """What begins a call about a model: an address with odd values in it, or what is none; then parts of a model."""
    named = {"federation": "federation_uuid", "site": "sender", "experiment": "experiment_name"}
    told: dict[str, object] = {}
    for each in fields(Address):
        if generator.random() < 0.9:
            text = generator.choice(words.get(named.get(each.name, each.name)) or ["best", "last", "abc"])
            number = generator.choice([0, 1, 1, 50, -1, 2**40])
            right, wrong = (text, number) if isinstance(each.default, str) else (number, text)
            told[each.name] = right if generator.random() < 0.9 else generator.choice([wrong, None, [], *ODD])
    first = damaged(json.dumps(told).encode(), generator) if generator.random() < 0.2 else json.dumps(told).encode()
    return [first, *(generator.randbytes(generator.choice([0, 1, 50])) for _ in range(generator.randrange(4)))]


def one_address(generator: random.Random, words: Words) -> list[bytes]:
    """The first of them alone."""
    return addresses(generator, words)[:1]


METHODS = [
    *services(director_pb2, aggregator_pb2),
    Method(f"/{SERVICE}/Round", one_address, streams_out=True),
    Method(f"/{SERVICE}/Received", one_address),
    Method(f"/{SERVICE}/Trained", one_address, streams_out=True),
    Method(f"/{SERVICE}/Update", addresses, streams_in=True),
]


def filled(message: Message, generator: random.Random, words: Words) -> Message:
    """The message with odd values in most of its fields."""
    for field in message.DESCRIPTOR.fields:
        is_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if is_map or generator.random() < 0.15:
            continue
        repeated = field.label == field.LABEL_REPEATED
        for _ in range(generator.randrange(4) if repeated else 1):
            if field.type == field.TYPE_MESSAGE:
                target = getattr(message, field.name)
                filled(target.add() if repeated else target, generator, words)
                continue
            value = odd_value(field, generator, words)
            if repeated:
                getattr(message, field.name).append(value)
            else:
                setattr(message, field.name, value)
    return message


def odd_value(field: object, generator: random.Random, words: Words) -> object:
    if field.type == field.TYPE_STRING:
        known = words.get(field.name) or [text for texts in words.values() for text in texts]
        return generator.choice(known if generator.random() < 0.7 else ODD)
    if field.type == field.TYPE_BYTES:
        return generator.randbytes(generator.choice([0, 1, 16, 5000]))
    if field.type == field.TYPE_BOOL:
        return generator.random() < 0.5
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return generator.choice([0.0, -1.0, float("nan"), float("inf")])
    if field.type == field.TYPE_ENUM:
        return generator.choice([0, 1, 2, 99])
    unsigned = field.type in (field.TYPE_UINT32, field.TYPE_UINT64)
    return generator.choice([0, 1, 2, 2**31 - 1] if unsigned else [0, 1, -1, 2**31 - 1, -(2**31)])


def damaged(data: bytes, generator: random.Random) -> bytes:
    """The bytes as they are, cut, changed here and there (so that text is no longer UTF-8), or others altogether."""
    kind = generator.randrange(8)
    if kind == 0:
        return data[: generator.randrange(len(data) + 1)]
    if kind == 1 and data:
        changed = bytearray(data)
        for _ in range(1 + len(data) // 20):
            changed[generator.randrange(len(data))] = generator.randrange(128, 256)
        return bytes(changed)
    if kind == 2:
        return generator.randbytes(generator.choice([0, 1, 10, 1000]))
    return data


def call(channel: grpc.Channel, method: Method, generator: random.Random, words: Words) -> str:
    """Make one call; returns the name of its status.

    Raises:
        AssertionError: the answer took too long, or shows an error that nobody has thought of.
    """
    messages = method.messages(generator, words)
    metadata = [(PROCESS, generator.choice(["", "x", "y" * 1000])), (INSTEAD_OF, generator.randbytes(5))]
    metadata = generator.choice([[], metadata, [("client_id", generator.choice(["", "experimenter", "z" * 5000]))]])
    kind = "_".join("stream" if many else "unary" for many in (method.streams_in, method.streams_out))
    send = getattr(channel, kind)(method.path)
    request = unfinished(messages, generator) if method.streams_in else messages[0]
    timeout = 0.2 if method.path.endswith(LONG) else SECONDS
    started = time.monotonic()
    try:
        reply = send(request, timeout=timeout, metadata=metadata)
        if method.streams_out:
            list(reply)
        status, told = "OK", ""
    except grpc.RpcError as error:
        status, told = error.code().name, str(error.details())
    took = time.monotonic() - started
    what = f"{method.path} answered {status} ({told[:300]}) after {took:.1f} s to {messages!r:.500}"
    assert took < SECONDS + 1, what
    assert status != "DEADLINE_EXCEEDED" or method.path.endswith(LONG), what
    assert not any(words in told for words in FAULTS), what
    return status


def unfinished(messages: list[bytes], generator: random.Random) -> Iterator[bytes]:
    """A stream that now and then breaks off."""
    yield from messages
    if generator.random() < 0.2:
        raise ConnectionError("the test breaks off the stream")


def fuzz(
    connect: Callable[[], grpc.Channel], words: Words, calls: int, seed: int, methods: list[Method] = METHODS
) -> Counter:
    """Make so many calls from eight threads; returns how often each status came."""

    def work(number: int) -> Counter:
        generator = random.Random(seed + number)
        with connect() as channel:
            return Counter(call(channel, generator.choice(methods), generator, words) for _ in range(calls // 8))

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(work, range(8)), Counter())


def memory(process: psutil.Process) -> float:
    return process.memory_info().rss / 2**20


def garbage_on_the_port(port: int, generator: random.Random) -> None:
    """Bytes that are not gRPC, and connections that end in the middle."""
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for start in (b"", preface, preface[:10], b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00") * 4:
        with socket.create_connection(("localhost", port), timeout=5) as connection:
            connection.sendall(start + generator.randbytes(generator.choice([0, 10, 5000])))


def test_a_director_survives_what_is_not_meant_for_it(tmp_path: Path) -> None:
    seed = random.randrange(10**9)
    print("seed", seed)
    generator = random.Random(seed)
    toys = ToyFederation(tmp_path)
    try:
        target = submit(toys, "target", sleep_on=1.0, in_round=0, seconds=120)
        toys.wait_for("site1", "round 1, task train: starts")
        shipped = archives.read(tmp_path / "state" / "target" / "experiment.zip")
        sites = ["site1", "site2", "stranger"]
        words = {
            "federation_uuid": [archives.describe(shipped).id], "receiver": [AGGREGATOR], "sender": sites,
            "name": [*sites, "target", "vector", "loss"], "collaborator_name": sites, "collaborator_names": sites,
            "experiment_name": ["target"], "sample_shape": ["4"], "target_shape": ["1"], "tensor_name": ["vector"],
            "task_name": ["train", "aggregated_model_validate"], "single_col_cert_common_name": [""],
            "tags": ["model", "trained", "metric", "compressed", "validate_agg"],
        }  # fmt: skip
        director = psutil.Process(toys.running["director"].pid)
        before = memory(director)

        connect = lambda: grpc.insecure_channel(f"localhost:{toys.port}")  # noqa: E731
        harmless = [method for method in METHODS if not method.path.endswith(ENDING)]
        statuses = fuzz(connect, words, PLAIN_CALLS, seed, harmless)
        assert {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "PERMISSION_DENIED", "ALREADY_EXISTS"} <= statuses.keys(), (
            statuses
        )
        statuses += fuzz(connect, words, PLAIN_CALLS // 2, seed + 8)
        garbage_on_the_port(toys.port, generator)
        with grpc.insecure_channel(f"localhost:{toys.port}", [("grpc.max_send_message_length", -1)]) as channel:
            for method in METHODS:
                send = (channel.stream_unary if method.streams_in else channel.unary_stream)(method.path)
                huge = bytes(MESSAGE_BYTES + 1)
                with pytest.raises(grpc.RpcError) as error:
                    list(send(huge, timeout=10)) if not method.streams_in else send(iter([huge]), timeout=10)
                assert error.value.code() in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.UNIMPLEMENTED)

        grown = memory(director) - before
        print(statuses, f"director {before:.0f} MiB, grown by {grown:.0f} MiB")
        assert grown < 100
        target.cancel()
        federation = FederationHandle("localhost", toys.port)
        deadline = time.monotonic() + 15  # names that were made up are not online for long
        while [site.name for site in federation.sites() if site.online] != ["site1", "site2"]:
            assert time.monotonic() < deadline, federation.sites()
            time.sleep(0.2)
        experiment = submit(toys, "after all that", rounds=2)
        assert len(list(experiment.metrics())) > 0
        np.testing.assert_allclose(experiment.last_weights()["vector"], 3.0)
        assert "Traceback" not in toys.log("director")
    finally:
        toys.stop()


def test_an_envoys_certificate_opens_no_other_door(processes: Processes, tmp_path: Path) -> None:
    authority = tmp_path / "authority"
    certificates.init(authority)
    certificates.issue(authority, "director", "director", ["localhost"])
    certificates.issue(authority, "envoy", "site1")
    config = tmp_path / "director.yaml"
    settings = {"sample_shape": ["4"], "target_shape": ["1"], "envoy_health_check_period": 1}
    config.write_text(yaml.safe_dump({"settings": settings} | certificate_lines(authority, "director")))
    env = {"PYTHONPATH": str(TOYS)}
    processes.start("director", PYTHON, "-m", "federation.director", "--config", config, "--port", "0", env=env)
    port = int(processes.wait_for("director", r"listening on .*:(\d+)")[1])
    files = [(authority / name).read_bytes() for name in ("root_ca.crt", "site1.key", "site1.crt")]
    credentials = grpc.ssl_channel_credentials(*files)
    seed = random.randrange(10**9)
    print("seed", seed)
    words = {"name": ["site1", "site2"], "collaborator_name": ["site1", "site2"], "sender": ["site1", "site2"]}
    statuses = fuzz(lambda: grpc.secure_channel(f"localhost:{port}", credentials), words, TLS_CALLS, seed)
    print(statuses)
    assert statuses["PERMISSION_DENIED"] > TLS_CALLS / 4
    garbage_on_the_port(port, random.Random())
    assert processes.running["director"].poll() is None
    assert "Traceback" not in processes.log("director")
