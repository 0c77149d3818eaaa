"""What a site says of a task, as the engine's message."""

import asyncio
import struct
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from openfl.protocols import aggregator_pb2, base_pb2
from rounds import messages

from federation.director.results import RESULTS_BYTES, Results, joined, read
from federation.schedule import TRAIN, VALIDATE_AGGREGATED
from rules.scores import MOST_METRICS


def metric(name: str, content: bytes, tags: tuple[str, ...] = ("metric",), counts: tuple[int, ...] = ()) -> Any:
    metadata = [base_pb2.MetadataProto(int_list=counts)]
    return base_pb2.NamedTensor(name=name, data_bytes=content, tags=tags, transformer_metadata=metadata)


def message(*tensors: Any) -> Any:
    header = aggregator_pb2.MessageHeader(sender="north")
    return aggregator_pb2.TaskResults(header=header, round_number=1, task_name=TRAIN, data_size=7, tensors=tensors)


def parts(content: bytes, size: int) -> Any:
    cut = [content[start : start + size] for start in range(0, len(content), size)]
    return messages([base_pb2.DataStream(npbytes=part) for part in cut])


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.floats(width=32, allow_nan=False), max_size=5))
def test_numbers_come_as_they_were_sent(metrics: dict[str, float]) -> None:
    whole = message(*(metric(name, struct.pack("<f", value)) for name, value in metrics.items()))
    again = asyncio.run(joined(parts(whole.SerializeToString(), 3)))
    assert read(again) == Results("north", 1, TRAIN, 7, metrics)


def test_numbers_of_either_width() -> None:
    sent = read(message(metric("a", struct.pack("<d", 0.1)), metric("b", struct.pack("<f", 0.5), counts=(1, 1))))
    assert sent.metrics == {"a": 0.1, "b": 0.5}


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ([metric("w", bytes(4), tags=("trained",))], "only metrics travel with a task's results"),
        ([metric("a", bytes(4)), metric("a", bytes(4))], "metric 'a' is there twice"),
        ([metric("a", bytes(16), counts=(4,))], "metric 'a' is not one number"),
        ([metric("a", bytes(4), counts=(0,))], "metric 'a' is not one number"),
        ([metric("a", b"")], "metric 'a' is not one number"),
        ([metric(str(n), bytes(4)) for n in range(MOST_METRICS + 1)], f"allowed: {MOST_METRICS}"),
    ],
)
def test_what_is_no_metric(tensors: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read(message(*tensors))


def test_a_message_has_a_limit_and_has_to_be_one() -> None:
    with pytest.raises(ValueError, match=f"more than {RESULTS_BYTES} bytes"):
        asyncio.run(joined(parts(bytes(RESULTS_BYTES + 1), 2**16)))
    with pytest.raises(DecodeError):
        asyncio.run(joined(parts(b"\xff" * 10, 5)))


def test_where_it_belongs_as_people_count() -> None:
    assert Results("a", 0, TRAIN, 1, {}).where == "train of round 1"
    assert Results("a", 0, VALIDATE_AGGREGATED, 1, {}).where == "validate_global of round 0"
    assert Results("a", 0, TRAIN, 1, {}).problem is None
