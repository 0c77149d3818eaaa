"""Audio files to waveforms: decode, mix to mono, resample, fix the length."""

import io
import math
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

SAMPLE_RATE = 16_000  # Hz
CLIP_SAMPLES = 16_000  # one second


class AudioError(ValueError):
    """An audio file cannot be used; the message names the file and what to do."""


def read_clip(
    path: Path | str,
    start: int = 0,
    num_samples: int = CLIP_SAMPLES,
    sample_rate: int = SAMPLE_RATE,
    row: int | None = None,
) -> npt.NDArray[np.float32]:
    """Waveform of one clip: float32 (num_samples,), in [-1, 1], at `sample_rate` Hz.

    `start` is the clip's first sample, counted at `sample_rate`. Channels are averaged, another
    rate is resampled, a short clip is padded with zeros on the right and a long one is cut.
    With `row`, `path` is an Arrow file of Hugging Face `datasets`, and that row of it holds the audio file.
    AudioError for a file that is missing, unreadable, without samples or with non-finite ones.
    """
    where = str(path) if row is None else f"{path}, row {row}"
    if start < 0 or num_samples < 1:
        raise AudioError(f"{where}: start {start} must be >= 0 and num_samples {num_samples} >= 1")
    source = os.fspath(path) if row is None else io.BytesIO(_arrow_bytes(os.fspath(path), row))
    try:
        with soundfile.SoundFile(source) as file:
            rate = file.samplerate
            first = start * rate // sample_rate  # rounded down, so that the last sample is within the file
            if file.frames == 0:
                raise AudioError(f"{where} holds no samples; record it again or remove it")
            if first >= file.frames:
                raise AudioError(
                    f"{where} lasts {file.frames / rate:.2f} s, but the clip starts at "
                    f"{start / sample_rate:.2f} s; was the file replaced by a shorter one?"
                )
            file.seek(first)
            frames = math.ceil(num_samples * rate / sample_rate)
            waveform = file.read(frames, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, OSError) as error:
        if not os.path.isfile(path):
            raise AudioError(f"{path} is not a file; was it moved after the listing?") from error
        problem = getattr(error, "error_string", error)  # without the file, which is named already
        raise AudioError(f"{where} cannot be read as audio ({problem}); replace the file or remove it") from error
    if not np.isfinite(waveform).all():
        raise AudioError(f"{where} holds samples that are not finite; replace the file or remove it")
    if rate != sample_rate:
        waveform = soxr.resample(waveform, rate, sample_rate)
    clip = np.zeros(num_samples, dtype=np.float32)
    length = min(num_samples, len(waveform))
    np.clip(waveform[:length], -1.0, 1.0, out=clip[:length])
    return clip


def _arrow_bytes(path: str, row: int) -> Any:
    """The audio file in one row of an Arrow file, as a buffer over the file. AudioError."""
    rows = arrow_rows(path)
    if not 0 <= row < len(rows):
        raise AudioError(f"{path} has {len(rows)} rows, and no row {row}; was the file replaced after the listing?")
    if not (content := rows[row]).is_valid:
        raise AudioError(f"{path}, row {row} holds no audio file; was the file replaced after the listing?")
    return content.as_buffer()


@lru_cache(maxsize=64)  # a large set has some dozens of files; they are mapped, not read
def arrow_rows(path: str) -> Any:
    """The audio files in an Arrow file: a chunked array of bytes, a row each. AudioError."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        table = pa.ipc.open_stream(pa.memory_map(path)).read_all()
        (column,) = audio_columns(table.schema)
    except (OSError, ValueError) as error:
        if not os.path.isfile(path):
            raise AudioError(f"{path} is not a file; was it moved after the listing?") from error
        raise AudioError(
            f"{path} cannot be read as an Arrow file with one column of audio ({error}); save the data set again"
        ) from error
    return pc.struct_field(table[column], "bytes")


def audio_columns(schema: Any) -> list[str]:
    """Names of the columns that hold whole files (structs of bytes and path) in a pyarrow schema."""
    import pyarrow as pa

    return [
        field.name for field in schema if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0
    ]
