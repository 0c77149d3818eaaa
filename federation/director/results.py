"""What a site says of a task that it has done: the engine's message, read and held to what may be in it."""

import math
import struct
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from openfl.protocols import aggregator_pb2

from federation.schedule import TASK_NAMES, finished_rounds
from rules.exact import MOST_WEIGHT
from rules.scores import MOST_METRICS, refusal

RESULTS_BYTES = 2**20
"""The largest message about one task."""

_NUMBERS = {4: "<f", 8: "<d"}


@dataclass(frozen=True)
class Results:
    """The metrics of one task of one site, and the number of examples that weighs them."""

    site: str
    round: int
    task: str
    examples: int
    metrics: dict[str, float]

    @property
    def problem(self) -> str | None:
        """Why they cannot be taken, or None; names the site and the metric."""
        if not 1 <= self.examples <= MOST_WEIGHT:
            return f"site {self.site}, {self.where}: done on {self.examples} examples; allowed: 1 to {MOST_WEIGHT}"
        return refusal(self.site, self.where, self.metrics)

    @property
    def where(self) -> str:
        """Round and task as people are shown them."""
        return f"{TASK_NAMES.get(self.task, self.task[:60])} of round {finished_rounds(self.task, self.round)}"


async def joined(messages: AsyncIterator[Any]) -> Any:
    """The engine's message out of the parts in which it comes.

    Raises:
        ValueError: it has too many bytes.
        google.protobuf.message.DecodeError: it cannot be read.
    """
    parts, size = [], 0
    async for part in messages:
        parts.append(part.npbytes)
        size += len(part.npbytes)
        if size > RESULTS_BYTES:
            raise ValueError(f"a task's results have more than {RESULTS_BYTES} bytes")
    message = aggregator_pb2.TaskResults()
    message.ParseFromString(b"".join(parts))
    return message


def read(message: Any) -> Results:
    """The results in the engine's message.

    Raises:
        ValueError: there is something else than metrics in it, or a metric twice.
    """
    if len(message.tensors) > MOST_METRICS:
        raise ValueError(f"{len(message.tensors)} metrics; allowed: {MOST_METRICS}")
    metrics: dict[str, float] = {}
    for tensor in message.tensors:
        if "metric" not in tensor.tags:
            raise ValueError("only metrics travel with a task's results; models have a stream of their own")
        if tensor.name in metrics:
            raise ValueError(f"metric {tensor.name[:60]!r} is there twice")
        metrics[tensor.name] = _number(tensor)
    return Results(message.header.sender, message.round_number, message.task_name, message.data_size, metrics)


def _number(tensor: Any) -> float:
    form = _NUMBERS.get(len(tensor.data_bytes))
    counts = [count for each in tensor.transformer_metadata for count in each.int_list]
    if form is None or math.prod(counts) != 1:
        raise ValueError(f"metric {tensor.name[:60]!r} is not one number")
    return float(struct.unpack(form, tensor.data_bytes)[0])
