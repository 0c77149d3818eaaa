"""What a site sends after training, and the average that the director makes of it.

An update is a safetensors file (`federation.wire.models`) with the trained tensors. A tensor that training has not
changed is only named. With a format other than float32 the difference to the received model is sent in fewer bits, and
what the rounding lost is added to the next round's difference (error feedback; Seide et al., "1-bit stochastic gradient
descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019).
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from federation.wire.models import BLOCK, ModelFile, ModelParts, Packed, Piece, header

FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
"""How a site may send what it has trained, and safetensors' name of the type."""

Average = Callable[[str, Sequence[np.ndarray], Sequence[float]], np.ndarray]
"""Makes one tensor of its name, the sites' tensors, and the sites' weights, which add up to 1."""


class Encoder:
    """A site's updates in one format; keeps what rounding has lost.

    Raises:
        ValueError: there is no such format.
    """

    def __init__(self, name: str = "float32") -> None:
        if name not in FORMATS:
            raise ValueError(f"update_format: {name!r}; allowed: {', '.join(FORMATS)}")
        self.format = name
        self._lost: dict[str, np.ndarray] = {}

    def encode(self, trained: Mapping[str, np.ndarray], received: ModelFile | ModelParts) -> Packed:
        """The update that leads from the received model to the trained one (float32 tensors).

        Raises:
            ValueError: their names or shapes differ.
        """
        shapes = {name: array.shape for name, array in trained.items()}
        if shapes != received.shapes:
            differing = sorted({name for name, _ in shapes.items() ^ received.shapes.items()})
            raise ValueError(f"the trained tensors are not the model's; they differ in {differing}")
        unchanged = [name for name, array in trained.items() if _same(array, received, name)]
        changed = {name: array for name, array in trained.items() if name not in set(unchanged)}
        metadata = {"unchanged": json.dumps(unchanged)}
        if self.format == "float32":
            return Packed({name: Piece.of(array) for name, array in changed.items()}, metadata)
        pieces, scales = {}, {}
        for name, array in changed.items():
            wanted = array - received[name] + self._lost.get(name, np.float32(0))
            coded, scales[name] = _code(wanted, self.format)
            self._lost[name] = wanted - _decoded(coded, self.format, scales[name])
            pieces[name] = Piece.of(coded, FORMATS[self.format])
        return Packed(pieces, metadata | {"scales": json.dumps(scales)})


class Update:
    """An update that has arrived, beside the model that the site had received.

    Raises:
        ValueError: names, shapes or types are not the model's, or values are not finite; says which tensor.
    """

    def __init__(self, path: Path, model: ModelFile) -> None:
        self._file, self._model = ModelFile(path), model
        try:
            self.unchanged = frozenset(json.loads(self._file.metadata.get("unchanged", "[]")))
            self._scales: dict[str, float] = json.loads(self._file.metadata.get("scales", "{}"))
        except (ValueError, TypeError):
            raise ValueError("the update's metadata cannot be read") from None
        if self.unchanged | self._file.keys() != model.keys() or self.unchanged & self._file.keys():
            differing = sorted((self.unchanged | self._file.keys()) ^ model.keys())
            raise ValueError(f"the trained tensors are not the model's; they differ in {differing}")
        for name, entry in self._file.entries.items():
            if entry.shape != model.shapes[name]:
                raise ValueError(f"tensor {name} has shape {entry.shape}; the model's is {model.shapes[name]}")
            if entry.dtype != "F32" and not math.isfinite(self._scales.get(name, math.nan)):
                raise ValueError(f"tensor {name} of type {entry.dtype} has no scale that is a finite number")
        for name, _, part in self.blocks():
            if not np.isfinite(part).all():
                raise ValueError(f"tensor {name} holds values that are not finite numbers")

    def blocks(self) -> Iterator[tuple[str, slice, np.ndarray]]:
        """The changed tensors in float32 blocks, each with its tensor's name and place."""
        for name in self._file:
            for place in _places(self._model.shapes[name]):
                yield name, place, self.read(name, place)

    def read(self, name: str, place: slice) -> np.ndarray:
        """One block of the trained tensor as float32, flat."""
        if name in self.unchanged:
            return self._model.read(name, place)
        stored: np.ndarray = self._file.read(name, place)
        dtype = self._file.entries[name].dtype
        if dtype == "F32":
            return stored
        form = next(form for form, kind in FORMATS.items() if kind == dtype)
        trained: np.ndarray = self._model.read(name, place) + _decoded(stored, form, self._scales[name])
        return trained


def average(
    path: Path, model: ModelFile, updates: Sequence[Update], weights: Sequence[float], rule: Average | None = None
) -> frozenset[str]:
    """Write the average of updates of `model` as the model `path`, in one step; the mean unless `rule` is given.

    Args:
        updates: one for each site, in an order that does not depend on who was first.
        weights: of the sites; they add up to 1.

    Returns:
        The names of the tensors that no site has changed.
    """
    unchanged = frozenset.intersection(*(update.unchanged for update in updates))
    unfinished = path.with_name(f".{path.name}")
    with unfinished.open("wb") as file:
        file.write(header({name: ("F32", entry.shape, entry.size) for name, entry in model.entries.items()}, {}))
        for name, shape in model.shapes.items():
            if rule and name not in unchanged:
                whole = slice(0, math.prod(shape))
                arrays = [update.read(name, whole).reshape(shape) for update in updates]
                file.write(np.ascontiguousarray(rule(name, arrays, weights), np.float32).reshape(-1).data)
                continue
            for place in _places(shape):
                if name in unchanged:
                    file.write(model.read(name, place).data)
                    continue
                mean = np.zeros(place.stop - place.start)  # in double precision: rounded once, whatever the order
                for update, weight in zip(updates, weights, strict=True):
                    mean += np.multiply(update.read(name, place), weight, dtype=np.float64)
                file.write(mean.astype(np.float32).data)
    unfinished.replace(path)
    return unchanged


def _places(shape: tuple[int, ...]) -> Iterator[slice]:
    count = math.prod(shape)
    for start in range(0, count, BLOCK):
        yield slice(start, min(start + BLOCK, count))


def _same(array: np.ndarray, received: ModelFile | ModelParts, name: str) -> bool:
    """Whether two tensors are the same; looks at one element first, which mostly decides."""
    first = slice(0, min(1, array.size))
    return np.array_equal(received.read(name, first), array.reshape(-1)[first]) and np.array_equal(
        array, received[name]
    )


def _code(wanted: np.ndarray, form: str) -> tuple[np.ndarray, float]:
    if form == "float16":
        return wanted.astype(np.float16), 1.0
    if form == "bfloat16":
        bits = wanted.astype(np.float32).view(np.uint32)
        rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))  # to the nearest, ties to even
        return ((bits + rounding) >> np.uint32(16)).astype(np.uint16), 1.0
    scale = float(np.abs(wanted).max(initial=0.0)) / 127 or 1.0
    return np.rint(wanted / np.float32(scale)).astype(np.int8), scale


def _decoded(coded: np.ndarray, form: str, scale: float) -> np.ndarray:
    if form == "float16":
        return coded.astype(np.float32)
    if form == "bfloat16":
        return (coded.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return coded.astype(np.float32) * np.float32(scale)
