"""Models as files: what is on disk is what travels.

A model is a safetensors file (https://huggingface.co/docs/safetensors, "Format"): eight bytes with the length of a JSON
header, the header with dtype, shape and place of every tensor, then the tensors' bytes. It is written and read in
blocks, so that no process but the one that trains holds a whole model in memory. (The engine keeps every tensor of
every site in memory, several times over: with wav2vec2-base its director needed 6.9 GB.)
"""

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from safetensors import SafetensorError, safe_open

from federation.wire import files
from rules.contract import BLOCK, Tensors, places

CHUNK = 2 * 2**20
"""Bytes of a model that travel in one message."""

MAPPED = 4 * 2**20
"""Bytes of a file up to which it is mapped into memory: many small tensors are read without a call for each."""

NUMPY_TYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I8": np.int8}
"""The types that models and updates use, by safetensors' names; numpy has no bfloat16."""

ITEM_SIZES = {name: np.dtype(kind).itemsize for name, kind in NUMPY_TYPES.items()}
"""Bytes of an element."""


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies in a file: type, shape, first byte in the file, number of bytes."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Piece:
    """A tensor to be sent: safetensors' name of its type, its shape, and its bytes."""

    dtype: str
    shape: tuple[int, ...]
    content: memoryview

    @classmethod
    def of(cls, array: np.ndarray, dtype: str = "F32") -> "Piece":
        """The piece of an array; float arrays of another width become float32, the array itself is not copied."""
        whole = np.ascontiguousarray(array, dtype=np.float32 if dtype == "F32" else None)
        return cls(dtype, tuple(array.shape), memoryview(whole.reshape(-1).view(np.uint8).data))


class Packed:
    """A model or an update that is ready to be written or sent."""

    def __init__(self, pieces: Mapping[str, Piece], metadata: Mapping[str, str] | None = None) -> None:
        self.pieces = pieces
        entries = {name: (piece.dtype, piece.shape, len(piece.content)) for name, piece in pieces.items()}
        self._segments = [memoryview(header(entries, metadata or {})), *(piece.content for piece in pieces.values())]
        self.size = sum(len(segment) for segment in self._segments)

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """The file's bytes from `offset` on, in chunks of at most `CHUNK` bytes."""
        waiting = bytearray()
        for segment in self._segments:
            skipped = min(offset, len(segment))
            offset -= skipped
            position = skipped
            while position < len(segment):
                taken = segment[position : position + CHUNK - len(waiting)]
                position += len(taken)
                if not waiting and len(taken) == CHUNK:
                    yield bytes(taken)
                    continue
                waiting += taken
                if len(waiting) == CHUNK:
                    yield bytes(waiting)
                    waiting.clear()
        if waiting:
            yield bytes(waiting)


class ModelFile(Mapping[str, np.ndarray]):
    """A model on disk; a tensor is read when it is asked for.

    Raises:
        ValueError: the file is not a safetensors file, or holds a type that no model here has.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mapped: np.ndarray | None = None
        try:
            with safe_open(path, "numpy"):  # the library checks lengths, overlaps and gaps
                pass
            with path.open("rb") as file:
                self.data_start = 8 + int.from_bytes(file.read(8), "little")
                told = json.loads(file.read(self.data_start - 8))
        except (SafetensorError, ValueError) as error:
            raise ValueError(f"{path.name} is not a safetensors file: {error}") from None
        self.metadata: dict[str, str] = told.pop("__metadata__", {})
        self.entries: dict[str, Entry] = {}
        for name, tensor in sorted(told.items(), key=lambda item: item[1]["data_offsets"]):
            if tensor["dtype"] not in ITEM_SIZES:
                raise ValueError(f"{name} is of type {tensor['dtype']}; allowed: {', '.join(ITEM_SIZES)}")
            start, stop = tensor["data_offsets"]
            self.entries[name] = Entry(tensor["dtype"], tuple(tensor["shape"]), self.data_start + start, stop - start)

    def __getitem__(self, name: str) -> np.ndarray:
        shape = self.entries[name].shape
        whole = self.read(name, slice(0, math.prod(shape))).reshape(shape)
        return whole if whole.flags.writeable else whole.copy()

    def __iter__(self) -> Iterator[str]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def __repr__(self) -> str:
        return f"ModelFile({self.path.name}: {len(self)} tensors)"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, name: str, place: slice) -> np.ndarray:
        """The elements of a tensor from `place.start` to `place.stop`, flat; not to be changed; bfloat16 as bits."""
        entry = self.entries[name]
        start, count = entry.start + place.start * ITEM_SIZES[entry.dtype], place.stop - place.start
        return self._read(NUMPY_TYPES[entry.dtype], start, count)

    def blocks(self) -> Iterator[np.ndarray]:
        """All float32 values of a file that has no others, in blocks without regard to tensors."""
        start, end = self.data_start, max((entry.start + entry.size for entry in self.entries.values()), default=0)
        for first in range(start, end, 4 * BLOCK):
            yield self._read(np.float32, first, (min(first + 4 * BLOCK, end) - first) // 4)

    def chunks(
        self, offset: int = 0, without: Iterable[str] = (), metadata: Mapping[str, str] | None = None
    ) -> Iterator[bytes]:
        """The bytes of a file with these tensors, from `offset` on, in chunks; `without` names tensors to leave out.

        The file is opened at once: it may be deleted while it is being sent.
        """
        left_out = set(without)
        kept = {name: entry for name, entry in self.entries.items() if name not in left_out}
        told = header({name: (entry.dtype, entry.shape, entry.size) for name, entry in kept.items()}, metadata or {})
        return _read(self.path.open("rb"), told, [(entry.start, entry.size) for entry in kept.values()], offset)

    def _read(self, kind: type, start: int, count: int) -> np.ndarray:
        if self._mapped is None and self.path.stat().st_size > MAPPED:
            return np.fromfile(self.path, kind, count, offset=start)
        if self._mapped is None:
            self._mapped = np.memmap(self.path, np.uint8, mode="r")
        part: np.ndarray = self._mapped[start : start + count * np.dtype(kind).itemsize].view(kind, np.ndarray)
        return part


class ModelParts(Mapping[str, np.ndarray]):
    """A model whose tensors lie in several files: those that changed came later than the others."""

    def __init__(self, files: Mapping[str, ModelFile]) -> None:
        self.files = files

    def __getitem__(self, name: str) -> np.ndarray:
        return self.files[name][name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)

    def read(self, name: str, place: slice) -> np.ndarray:
        """The elements of a tensor from `place.start` to `place.stop`, flat."""
        return self.files[name].read(name, place)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor."""
        return {name: file.entries[name].shape for name, file in self.files.items()}

    def paths(self) -> set[Path]:
        """The files that are needed."""
        return {file.path for file in self.files.values()}


def header(tensors: Mapping[str, tuple[str, tuple[int, ...], int]], metadata: Mapping[str, str]) -> bytes:
    """A safetensors header for tensors (type, shape, bytes) that lie one after the other."""
    told: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, (dtype, shape, size) in tensors.items():
        told[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(told, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def round_path(folder: Path, round_number: int) -> Path:
    """The model of an experiment after so many rounds of training."""
    return folder / f"round-{round_number}.safetensors"


def best_path(folder: Path, round_number: int | None) -> Path:
    """The best model of an experiment, by the round of training that made it."""
    return folder / f"best-{round_number}.safetensors"


def rule_path(folder: Path, round_number: int) -> Path:
    """What the aggregation rule has kept with the model of that round."""
    return folder / f"rule-{round_number}.safetensors"


def updates_folder(folder: Path) -> Path:
    """What the sites of an experiment have sent in the running round."""
    return folder / "updates"


def save(path: Path, tensors: Mapping[str, np.ndarray]) -> ModelFile:
    """Write a model in one step: the file is whole or not there. It is synced with the round that it belongs to."""
    packed = Packed({name: Piece.of(array) for name, array in tensors.items()})
    with files.replacing(path, synced=False) as file:
        for chunk in packed.chunks():
            file.write(chunk)
    return ModelFile(path)


def write(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> ModelFile:
    """Write tensors as a model in one step, block by block as they are made. It is synced with its round."""
    entries = {name: ("F32", shape, 4 * math.prod(shape)) for name, shape in tensors.shapes.items()}
    with files.replacing(path, synced=False) as file:
        file.write(header(entries, metadata or {}))
        for name, shape in tensors.shapes.items():
            for place in places(shape):
                file.write(np.ascontiguousarray(tensors.read(name, place), np.float32).data)
    return ModelFile(path)


@dataclass(frozen=True)
class Writing:
    """Tensors that are to be a file."""

    path: Path
    tensors: Tensors
    metadata: Mapping[str, str] = field(default_factory=dict)


def write_together(writings: Sequence[Writing]) -> list[ModelFile]:
    """As `write`, several files: block by block of the first one's tensors, in each file what belongs to them.

    A tensor `name` of the first and `kind/name` of the others belong together, where they have the same shape.
    """
    first, *others = writings
    partners: dict[str, list[tuple[int, str]]] = {name: [] for name in first.tensors.shapes}
    alone: list[tuple[int, str]] = []
    for number, each in enumerate(others, 1):
        for name, shape in each.tensors.shapes.items():
            whose = name.partition("/")[2]
            found = first.tensors.shapes.get(whose) == shape
            (partners[whose] if found else alone).append((number, name))
    with ExitStack() as stack:
        opened = [stack.enter_context(files.replacing(each.path, synced=False)) for each in writings]
        starts = [_begin(file, each) for file, each in zip(opened, writings, strict=True)]

        def copy(number: int, name: str, place: slice) -> None:
            block = np.ascontiguousarray(writings[number].tensors.read(name, place), np.float32)
            opened[number].seek(starts[number][name] + 4 * place.start)
            opened[number].write(block.data)

        for name, shape in first.tensors.shapes.items():
            for place in places(shape):
                for number, other in [(0, name), *partners[name]]:
                    copy(number, other, place)
        for number, name in alone:
            for place in places(writings[number].tensors.shapes[name]):
                copy(number, name, place)
    return [ModelFile(each.path) for each in writings]


def _begin(file: files.NewFile, writing: Writing) -> dict[str, int]:
    """Write the header; where each tensor begins."""
    entries = {name: ("F32", shape, 4 * math.prod(shape)) for name, shape in writing.tensors.shapes.items()}
    told = header(entries, writing.metadata)
    file.write(told)
    starts, start = {}, len(told)
    for name, (_, _, size) in entries.items():
        starts[name], start = start, start + size
    return starts


def _read(file: BinaryIO, told: bytes, ranges: Sequence[tuple[int, int]], offset: int) -> Iterator[bytes]:
    with file:
        if told[offset:]:
            yield told[offset:]
        offset = max(0, offset - len(told))
        for start, size in _joined(ranges):
            skipped = min(offset, size)
            offset -= skipped
            file.seek(start + skipped)
            for left in range(size - skipped, 0, -CHUNK):
                yield file.read(min(CHUNK, left))


def _joined(ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The same ranges with neighbours made one."""
    begin = end = 0
    for start, size in ranges:
        if start != end:
            if end > begin:
                yield begin, end - begin
            begin = start
        end = start + size
    if end > begin:
        yield begin, end - begin
