"""Arrays in one file: written once, checked when it is opened, mapped into memory, cleared away when long unused."""

import errno
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from shard_descriptors.clips.cache import made_once

logger = logging.getLogger(__name__)

Array = npt.NDArray[Any]

SUFFIXES = (".int16", ".float16")
"""What the files hold: samples of clips, and what a model has made of clips."""

KEPT_BYTES = 8 * 10**9
"""What a folder keeps beside the file that is being made: some four times the whole of Speech Commands."""

CHUNK = 2**20
DIGEST_BYTES = hashlib.sha256().digest_size


def kept(path: Path, blocks: Callable[[], Iterable[Array]], size: int, what: str, instead: str) -> Array | None:
    """As `packed`, in a folder that is made for this user alone; None and a warning where the file cannot be.

    The warning says that `what`, of some `size` bytes, cannot be kept, what is done `instead`, and how to change that.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds recordings
        return packed(path, blocks)
    except (OSError, NotImplementedError) as error:  # the latter: a file system without locks
        logger.warning(
            "%s cannot be kept in %s (%s): %s, which is slower. "
            "Set KWS_CACHE to a folder that can be written and has %.0f MB free.",
            what, path.parent, getattr(error, "strerror", None) or error, instead, 1 + size / 1e6,
        )  # fmt: skip
        return None


def packed(path: Path, blocks: Callable[[], Iterable[Array]]) -> Array:
    """All values of `blocks()`, one block after the other: of one dimension, read-only, mapped from the file at `path`.

    The path's suffix, one of `SUFFIXES`, names the kind of the values. The file is made when it is not there, a block
    at a time; its last 32 bytes are the SHA-256 of the others. A damaged one is made again, with a warning. Its time
    says when it was last opened; when another is made in the same folder, those opened longest ago go as soon as all
    together exceed `KEPT_BYTES`. Who still maps one keeps it.

    OSError when the file cannot be written or read, and whatever `blocks` raises; neither leaves anything behind.
    """
    for _ in range(2):
        made_once(path, lambda partial: _write(partial, path, blocks()))
        if (samples := _checked(path)) is not None:
            return samples
        logger.warning("%s is damaged and made again", path)
        path.unlink(missing_ok=True)
    raise OSError(errno.EIO, "does not keep what is written to it", os.fspath(path))


def _write(partial: Path, path: Path, blocks: Iterable[Array]) -> None:
    _clear_away(path)
    digest = hashlib.sha256()
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # nobody else's recordings
        for block in blocks:
            values = np.ascontiguousarray(block, dtype=path.suffix[1:]).data
            file.write(values)
            digest.update(values)
        file.write(digest.digest())


def _checked(path: Path) -> Array | None:
    """The values in the file; None when it is damaged or has just been cleared away."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        end = os.fstat(file.fileno()).st_size - DIGEST_BYTES
        if end <= 0:
            return None
        digest = hashlib.sha256()
        while left := end - file.tell():  # read, not mapped: pages that are seen once need not count as this process's
            digest.update(file.read(min(left, CHUNK)))
        if digest.digest() != file.read():
            return None
        mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    with suppress(OSError):  # another's file, or a file system that cannot be written: then it is not ours to keep
        os.utime(path)
    kind = np.dtype(path.suffix[1:])
    return np.frombuffer(mapped, dtype=kind, count=end // kind.itemsize)


def _clear_away(path: Path) -> None:
    """Remove from the folder of `path` what killed processes have left, and what was opened longest ago."""
    for left_over in _all(path.parent, ".partial-*"):
        target = left_over.name.partition(".partial-")[0]
        if target != path.name:
            with suppress(Timeout, OSError), FileLock(path.parent / f"{target}.lock", timeout=0):
                shutil.rmtree(left_over)
    with suppress(OSError):  # another process clears away as well
        total = 0
        files = {file: file.stat() for file in _all(path.parent)}
        for file, found in sorted(files.items(), key=lambda item: -item[1].st_mtime_ns):
            total += found.st_size
            if total > KEPT_BYTES:
                file.unlink()
                file.with_name(f"{file.name}.lock").unlink(missing_ok=True)


def _all(folder: Path, rest: str = "") -> list[Path]:
    return [file for suffix in SUFFIXES for file in folder.glob(f"*{suffix}{rest}")]
