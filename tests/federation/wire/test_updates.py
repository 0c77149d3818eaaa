from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from federation.wire.models import ModelFile, Packed, save
from federation.wire.updates import FORMATS, Encoder, Update, norm_of_change


def write(path: Path, packed: Packed) -> Path:
    path.write_bytes(b"".join(packed.chunks()))
    return path


def random(seed: int, size: int = 1000) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"a": rng.normal(size=(size, 2)).astype(np.float32), "b": rng.normal(size=()).astype(np.float32)}


def whole(update: Update, name: str, model: ModelFile) -> np.ndarray:
    return update.read(name, slice(0, model[name].size)).reshape(model[name].shape)


def test_what_has_not_changed_is_only_named(tmp_path: Path) -> None:
    start = random(0)
    model = save(tmp_path / "model", start)
    one = Update(write(tmp_path / "one", Encoder().encode({**start, "b": start["b"] + 1}, model)), model)
    two = Update(write(tmp_path / "two", Encoder().encode(start, model)), model)
    assert (one.unchanged, two.unchanged) == ({"a"}, {"a", "b"})
    assert (tmp_path / "one").stat().st_size < 200
    np.testing.assert_array_equal(whole(one, "a", model), start["a"])
    np.testing.assert_array_equal(whole(one, "b", model), start["b"] + 1)
    assert one.shapes == model.shapes


def test_the_norm_of_a_change_is_that_of_all_tensors_as_one_vector(tmp_path: Path) -> None:
    start, step = random(0, size=50_000), random(1, size=50_000)  # of more than one block
    model = save(tmp_path / "model", start)
    assert norm_of_change(start, model) == 0
    trained = {name: start[name] + step[name] for name in start}
    expected = np.linalg.norm(np.concatenate([(trained[name] - start[name]).ravel() for name in start]))
    assert norm_of_change(trained, model) == pytest.approx(expected, rel=1e-6)
    far = {**start, "b": np.float32(3e38)}
    assert norm_of_change(far, model) == pytest.approx(3e38), "a square of it has no place in single precision"


@pytest.mark.parametrize(("form", "share", "error"), [("float16", 2, 1e-3), ("bfloat16", 2, 1e-2), ("int8", 4, 1e-2)])
def test_fewer_bits_lose_little_and_are_made_up_for(form: str, share: int, error: float, tmp_path: Path) -> None:
    start = random(0)
    model = save(tmp_path / "model", start)
    encoder = Encoder(form)
    step = random(1)
    total = dict.fromkeys(start, np.float64(0))
    for number in range(20):  # the same step again and again: without feedback, so would be the error
        packed = encoder.encode({name: start[name] + step[name] for name in start}, model)
        update = Update(write(tmp_path / f"{number}", packed), model)
        got = {name: whole(update, name, model) - start[name] for name in start}
        assert np.abs(got["a"] - step["a"]).max() <= 2 * error * np.abs(step["a"]).max()
        total = {name: total[name] + got[name] for name in start}
    assert packed.size < start["a"].nbytes / share + 500
    drift = np.abs(total["a"] / 20 - step["a"]).max()
    assert drift <= error * np.abs(step["a"]).max() / 5


@given(st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=50))
def test_bfloat16_is_torchs(tmp_path_factory: pytest.TempPathFactory, values: list[float]) -> None:
    folder = tmp_path_factory.mktemp("bf16")
    model = save(folder / "model", {"a": np.zeros(len(values), np.float32)})
    trained = {"a": np.array(values, np.float32)}
    update = Update(write(folder / "update", Encoder("bfloat16").encode(trained, model)), model)
    wanted = torch.from_numpy(trained["a"]).to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(whole(update, "a", model), wanted)


def test_a_format_that_does_not_exist() -> None:
    with pytest.raises(ValueError, match=f"update_format: 'int4'; allowed: {', '.join(FORMATS)}"):
        Encoder("int4")


def test_training_that_makes_other_tensors(tmp_path: Path) -> None:
    model = save(tmp_path / "model", random(0))
    with pytest.raises(ValueError, match=r"not the model's; they differ in \['a'\]"):
        Encoder().encode({**random(0), "a": np.zeros(3, np.float32)}, model)


def test_scales_that_are_missing(tmp_path: Path) -> None:
    model = save(tmp_path / "model", random(0))
    packed = b"".join(Encoder("int8").encode(random(1), model).chunks()).replace(b"scales", b"scalez")
    (tmp_path / "update").write_bytes(packed)
    with pytest.raises(ValueError, match="type I8 has no scale"):
        Update(tmp_path / "update", model)


@pytest.mark.parametrize("size", [3, 2**21])
def test_values_that_are_not_finite_are_found_wherever_they_are(size: int, tmp_path: Path) -> None:
    """In a small file, which is mapped, and in one of several blocks."""
    start = {"a": np.zeros((size, 2), np.float32), "b": np.zeros((), np.float32), "c": np.ones(size, np.float32)}
    model = save(tmp_path / "model", start)
    for name, value in (("a", np.nan), ("b", np.inf), ("c", -np.inf)):
        trained = {each: np.asarray(array + np.float32(1)) for each, array in start.items()}
        trained[name].reshape(-1)[-1:] = value
        path = write(tmp_path / name, Encoder().encode(trained, model))
        with pytest.raises(ValueError, match=f"tensor {name} holds values that are not finite"):
            Update(path, model)


@pytest.mark.parametrize(
    "told", [{"unchanged": "3"}, {"unchanged": "[[]]"}, {"scales": "[1]"}, {"scales": '{"a": "x"}'}]
)
def test_metadata_that_are_none(told: dict[str, str], tmp_path: Path) -> None:
    model = save(tmp_path / "model", random(0))
    pieces = Encoder().encode(random(1), model).pieces
    with pytest.raises(ValueError, match="metadata cannot be read"):
        Update(write(tmp_path / "update", Packed(pieces, told)), model)
