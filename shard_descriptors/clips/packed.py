"""Samples in one file: written once, checked when it is opened, mapped into memory, cleared away when long unused."""

import errno
import hashlib
import logging
import mmap
import os
import shutil
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
from filelock import FileLock, Timeout

from shard_descriptors.clips.cache import made_once

logger = logging.getLogger(__name__)

Samples = npt.NDArray[np.int16]

SUFFIX = ".int16"
KEPT_BYTES = 8 * 10**9
"""What a folder keeps beside the file that is being made: some four times the whole of Speech Commands."""

CHUNK = 2**20
DIGEST_BYTES = hashlib.sha256().digest_size


def packed(path: Path, blocks: Callable[[], Iterable[Samples]]) -> Samples:
    """All samples of `blocks()`, one block after the other: int16, read-only, mapped from the file at `path`.

    The file is made when it is not there, a block at a time; its last 32 bytes are the SHA-256 of the others. A damaged
    one is made again, with a warning. Its time says when it was last opened; when another is made in the same folder,
    those opened longest ago go as soon as all together exceed `KEPT_BYTES`. Who still maps one keeps it.

    OSError when the file cannot be written or read, and whatever `blocks` raises; neither leaves anything behind.
    """
    for _ in range(2):
        made_once(path, lambda partial: _write(partial, path, blocks()))
        if (samples := _checked(path)) is not None:
            return samples
        logger.warning("%s is damaged and made again", path)
        path.unlink(missing_ok=True)
    raise OSError(errno.EIO, "does not keep what is written to it", os.fspath(path))


def _write(partial: Path, path: Path, blocks: Iterable[Samples]) -> None:
    _clear_away(path)
    digest = hashlib.sha256()
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # nobody else's recordings
        for block in blocks:
            file.write(block.data)
            digest.update(block.data)
        file.write(digest.digest())


def _checked(path: Path) -> Samples | None:
    """The samples in the file; None when it is damaged or has just been cleared away."""
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
    return np.frombuffer(mapped, dtype=np.int16, count=end // 2)


def _clear_away(path: Path) -> None:
    """Remove from the folder of `path` what killed processes have left, and what was opened longest ago."""
    for left_over in path.parent.glob(f"*{SUFFIX}.partial-*"):
        target = left_over.name.partition(".partial-")[0]
        if target != path.name:
            with suppress(Timeout, OSError), FileLock(path.parent / f"{target}.lock", timeout=0):
                shutil.rmtree(left_over)
    with suppress(OSError):  # another process clears away as well
        kept = 0
        files = {file: file.stat() for file in path.parent.glob(f"*{SUFFIX}")}
        for file, found in sorted(files.items(), key=lambda item: -item[1].st_mtime_ns):
            kept += found.st_size
            if kept > KEPT_BYTES:
                file.unlink()
                file.with_name(f"{file.name}.lock").unlink(missing_ok=True)
