"""What a site sends after training, and how it is read beside the model that the site had received.

An update is a safetensors file (`federation.wire.models`) with the trained tensors. A tensor that training has not
changed is only named. With a format other than float32 the difference to the received model is sent in fewer bits, and
what the rounding lost is added to the next round's difference (error feedback; Seide et al., "1-bit stochastic gradient
descent", Interspeech 2014; Karimireddy et al., "Error feedback fixes SignSGD", ICML 2019).
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from federation.wire.models import ModelFile, ModelParts, Packed, Piece
from rules.contract import places

FORMATS = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
"""How a site may send what it has trained, and safetensors' name of the type."""


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


def norm_of_change(trained: Mapping[str, np.ndarray], received: ModelFile | ModelParts) -> float:
    """The Euclidean length of what training has changed, over all tensors (float32, those of the received model)."""
    squares = 0.0
    for name, array in trained.items():
        flat = array.reshape(-1)
        for place in places(array.shape):
            change = np.subtract(flat[place], received.read(name, place), dtype=np.float64)
            squares += float(change @ change)
    return math.sqrt(squares)


class Update:
    """An update that has arrived, beside the model that the site had received.

    Raises:
        ValueError: names, shapes or types are not the model's, or values are not finite; says which tensor.
    """

    def __init__(self, path: Path, model: ModelFile) -> None:
        self._file, self._model = ModelFile(path), model
        try:
            self.unchanged = frozenset(json.loads(self._told("unchanged", "[]")))
            self._scales = {name: float(scale) for name, scale in json.loads(self._told("scales", "{}")).items()}
        except (ValueError, TypeError, AttributeError, RecursionError):
            raise ValueError("the update's metadata cannot be read") from None
        if self.unchanged | self._file.keys() != model.keys() or self.unchanged & self._file.keys():
            differing = sorted((self.unchanged | self._file.keys()) ^ model.keys())
            raise ValueError(f"the trained tensors are not the model's; they differ in {differing}")
        for name, entry in self._file.entries.items():
            if entry.shape != model.shapes[name]:
                raise ValueError(f"tensor {name} has shape {entry.shape}; the model's is {model.shapes[name]}")
            if entry.dtype != "F32" and not math.isfinite(self._scales.get(name, math.nan)):
                raise ValueError(f"tensor {name} of type {entry.dtype} has no scale that is a finite number")
        if not self._all_finite():
            raise ValueError(f"tensor {self._not_finite()} holds values that are not finite numbers")

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor, those that were not changed included."""
        return self._model.shapes

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

    def _told(self, key: str, otherwise: str) -> str:
        return self._file.metadata.get(key, otherwise)

    def _all_finite(self) -> bool:
        if any(entry.dtype != "F32" for entry in self._file.entries.values()):
            return self._not_finite() is None
        return all(np.isfinite(block).all() for block in self._file.blocks())

    def _not_finite(self) -> str | None:
        """The first tensor with values that are not finite."""
        for name in self._file:
            if not all(np.isfinite(self.read(name, place)).all() for place in places(self._model.shapes[name])):
                return name
        return None


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
