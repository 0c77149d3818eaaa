"""Small real recordings for the tests of the sources."""

import io
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import soundfile
from datasets import Audio, ClassLabel, Features, Value

RATE = 16_000
FILES = {"bytes": Value("binary"), "path": Value("string")}


def sound(number: int, samples: int = RATE) -> npt.NDArray[np.int16]:
    """Noise that no other number has."""
    return np.random.default_rng(number).integers(-20_000, 20_000, samples, dtype=np.int16)


def write(path: Path, samples: npt.NDArray[np.int16], rate: int = RATE, subtype: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, samples, rate, subtype=subtype)
    return path


def as_float(samples: npt.NDArray[np.int16]) -> npt.NDArray[np.float32]:
    return samples.astype(np.float32) / np.float32(32768)


def file_bytes(samples: npt.NDArray[np.int16], rate: int = RATE, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind)
    return file.getvalue()


def speech_folder(root: Path, speakers: int = 20, labels: tuple[str, ...] = ("yes", "no")) -> Path:
    """<label>/<speaker>_<number>.wav; the sound of file i, counted by speaker, then by label, is sound(i)."""
    for i in range(speakers * len(labels)):
        write(root / labels[i % len(labels)] / f"s{i // len(labels)}_0.wav", sound(i))
    return root


def data_set(
    numbers: range, names: tuple[str, ...] | None = ("no", "yes"), rate: int = RATE, **more: list[object]
) -> datasets.Dataset:
    """A set that holds its files: row i is sound(numbers[i]), of speaker numbers[i] // 2 and label numbers[i] % 2."""
    columns = {
        "audio": [{"bytes": file_bytes(sound(i), rate), "path": f"{i}.wav"} for i in numbers],
        "label": [i % 2 for i in numbers],
        "speaker_id": [f"s{i // 2}" for i in numbers],
        **more,
    }
    plain = datasets.Dataset.from_dict(columns)
    features = Features(
        {**plain.features, "audio": FILES, **({"label": ClassLabel(names=list(names))} if names else {})}
    )
    # Audio itself would want torchcodec for writing.
    return datasets.Dataset.from_dict(columns, features=features).cast_column("audio", Audio(decode=False))
