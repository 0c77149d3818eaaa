from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from federation.wire.models import CHUNK, MAPPED, ModelFile, Packed, Piece, Writing, save, write, write_together
from rules.contract import BLOCK, Computed, InMemory

SHAPES = st.dictionaries(
    st.text(min_size=1, max_size=8).filter(lambda name: name != "__metadata__"),
    st.lists(st.integers(0, 5), max_size=3).map(tuple),
    max_size=6,
)


def model(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    return {
        name: np.random.default_rng(number).random(shape, np.float32)
        for number, (name, shape) in enumerate(shapes.items())
    }


@given(SHAPES)
def test_what_is_saved_is_read_here_and_by_the_library(tmp_path_factory: pytest.TempPathFactory, shapes: dict) -> None:
    path = tmp_path_factory.mktemp("model") / "m.safetensors"
    wanted = model(shapes)
    file = save(path, wanted)
    for found in (file, load_file(path)):
        assert found.keys() == wanted.keys()
        for name, array in wanted.items():
            np.testing.assert_array_equal(found[name], array)
    assert file.shapes == {name: array.shape for name, array in wanted.items()}


@given(SHAPES, st.data())
def test_a_stream_may_go_on_anywhere(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("model")
    file = save(folder / "m.safetensors", model(shapes))
    without = data.draw(st.sets(st.sampled_from(sorted(shapes)))) if shapes else set()
    whole = b"".join(file.chunks(without=without, metadata={"a": "b"}))
    offset = data.draw(st.integers(0, len(whole)))
    assert b"".join(file.chunks(offset, without, {"a": "b"})) == whole[offset:]
    (folder / "part").write_bytes(whole)
    part = ModelFile(folder / "part")
    assert set(part) == set(shapes) - without
    assert all(np.array_equal(part[name], file[name]) for name in part)
    packed = Packed({name: Piece.of(file[name]) for name in part}, {"a": "b"})
    assert packed.size == len(whole)
    assert b"".join(packed.chunks(offset)) == whole[offset:]


def test_chunks_are_large_and_bounded(tmp_path: Path) -> None:
    arrays = {str(number): np.ones(size, np.float32) for number, size in enumerate([10] * 200 + [CHUNK, 3])}
    packed = Packed({name: Piece.of(array) for name, array in arrays.items()})
    sizes = [len(chunk) for chunk in packed.chunks()]
    assert sum(sizes) == packed.size
    assert max(sizes) == CHUNK
    assert len(sizes) == -(-packed.size // CHUNK)
    file = save(tmp_path / "m", arrays)
    assert max(len(chunk) for chunk in file.chunks()) == CHUNK


def test_tensors_are_written_as_they_are_made(tmp_path: Path) -> None:
    shapes = {"large": (BLOCK + 3, 2), "none": (0, 4), "scalar": ()}
    asked: list[tuple[str, slice]] = []

    def block(name: str, place: slice) -> np.ndarray:
        asked.append((name, place))
        return np.arange(place.start, place.stop, dtype=np.float64) / 2

    file = write(tmp_path / "m", Computed(shapes, block), {"a": "b"})
    assert (file.shapes, file.metadata) == (shapes, {"a": "b"})
    np.testing.assert_array_equal(file["large"].reshape(-1), np.arange(2 * BLOCK + 6, dtype=np.float32) / 2)
    assert max(place.stop - place.start for _, place in asked) == BLOCK
    assert load_file(tmp_path / "m").keys() == shapes.keys()
    assert [path.name for path in tmp_path.iterdir()] == ["m"]


@pytest.mark.parametrize("size", [10, MAPPED // 4 + 1])
def test_what_is_read_may_be_changed_and_changes_no_file(size: int, tmp_path: Path) -> None:
    file = save(tmp_path / "m", {"a": np.zeros(size, np.float32)})
    file["a"][0] = 1
    assert file["a"][0] == 0
    assert file.read("a", slice(0, 1))[0] == 0
    assert sum(block.size for block in file.blocks()) == size


def test_a_file_that_is_deleted_is_sent_to_its_end(tmp_path: Path) -> None:
    file = save(tmp_path / "m", model({"a": (4, 4)}))
    whole = file.path.read_bytes()
    chunks = file.chunks()
    file.path.unlink()
    assert b"".join(chunks) == whole


def test_files_that_are_no_models(tmp_path: Path) -> None:
    (tmp_path / "empty").write_bytes(b"")
    with pytest.raises(ValueError, match="empty is not a safetensors file"):
        ModelFile(tmp_path / "empty")
    save_file({"a": np.zeros(2, np.int64)}, tmp_path / "integers")
    with pytest.raises(ValueError, match="a is of type I64; allowed: F32, F16, BF16, I8"):
        ModelFile(tmp_path / "integers")


def test_files_that_are_written_together_are_those_that_are_written_alone(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    shapes = {"a": (3, BLOCK), "empty": (0, 2), "b": (5,)}
    model = InMemory({name: generator.normal(size=shape).astype(np.float32) for name, shape in shapes.items()})
    kept = InMemory({f"{kind}/{name}": array * 2 for kind in ("m", "v") for name, array in model.items()})
    kept |= {"v/c": np.ones(3, np.float32), "m/b": np.ones((5, 1), np.float32)}
    read: list[tuple[str, slice]] = []

    class Noting(InMemory):
        def read(self, name: str, place: slice) -> np.ndarray:
            read.append((name, place))
            return super().read(name, place)

    writings = [Writing(tmp_path / "model", Noting(model)), Writing(tmp_path / "kept", Noting(kept), {"numbers": "{}"})]
    one, other = write_together(writings)
    assert write(tmp_path / "alone", model).path.read_bytes() == one.path.read_bytes()
    assert write(tmp_path / "alone", kept, {"numbers": "{}"}).path.read_bytes() == other.path.read_bytes()
    first = [(name, slice(0, BLOCK)) for name in ("a", "m/a", "v/a")]
    assert read[:3] == first  # what belongs together comes together
    assert len(read) == len(set(map(repr, read)))
