"""File operations that survive a power cut.

What was written is on disk only when the file was synced, and a name, new or removed, only when its folder was
(`man 2 fsync`; Pillai et al., "All File Systems Are Not Created Equal", OSDI 2014). What must be there afterwards goes
through here: a file is written under a name beginning with a dot, synced, renamed, and its folder synced, so that under
its own name it is whole or not there. Every change is a call of `os` that is made in this module, which lets a test
record them and replay any beginning of them (`tests/federation/power.py`).
"""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

Content = bytes | bytearray | memoryview
_BLOCK = 2**20


class NewFile:
    """A file that is being written."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def write(self, content: Content) -> int:
        """Write all of it; how many bytes that is.

        Raises:
            OSError: the disk takes no more.
        """
        view = memoryview(content)
        left = view.cast("B") if view.nbytes else b""
        while left:
            left = left[os.write(self._descriptor, left) :]  # a disk that fills up takes a part first
        return view.nbytes

    def seek(self, place: int) -> None:
        """Write at that byte next."""
        os.lseek(self._descriptor, place, os.SEEK_SET)


@contextmanager
def replacing(path: Path, synced: bool = True) -> Iterator[NewFile]:
    """A file that takes its place in one step when the block ends; after an error nothing has changed.

    synced: whether file and folder are synced, too; without, whoever relies on the file does that (`sync`).
    """
    unfinished = path.with_name(f".{path.name}")
    try:
        with _opened(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as descriptor:
            yield NewFile(descriptor)
            if synced:
                os.fsync(descriptor)
        os.replace(unfinished, path)
        if synced:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise


def write(path: Path, content: Content) -> None:
    """Write a file in one step, synced."""
    with replacing(path) as file:
        file.write(content)


def adopt(source: Path, target: Path) -> None:
    """Move a file of a temporary folder, which may be another disk, to where it is kept, synced."""
    sync(source)
    try:
        rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy(source, target)
        source.unlink()


def append(path: Path, content: Content) -> None:
    """Add to the end of a file: all of it, or nothing. Not synced: see `sync`."""
    with _opened(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND) as descriptor:
        end = os.fstat(descriptor).st_size
        try:
            NewFile(descriptor).write(content)
        except OSError:
            os.ftruncate(descriptor, end)
            raise


def cut(path: Path, size: int) -> None:
    """Drop what a file holds beyond so many bytes, synced."""
    with _opened(path, os.O_WRONLY) as descriptor:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)


def sync(path: Path) -> None:
    """Put on disk what was written to a file, by whomever; its name is another matter (`sync_folder`)."""
    with _opened(path, os.O_RDONLY) as descriptor:
        os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Put on disk which names a folder holds; does nothing where a file system cannot be asked to."""
    with _opened(folder, os.O_RDONLY | os.O_DIRECTORY) as descriptor:
        try:
            os.fsync(descriptor)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.ENOTSUP):
                raise


def make_folder(folder: Path) -> None:
    """Make a new folder; its name is synced with what is put into it (`rename`) or by `sync_folder` of its parent."""
    os.mkdir(folder)


def ensure_folder(folder: Path) -> None:
    """Make a folder, and those above it, unless they are there; synced."""
    if not folder.is_dir():
        ensure_folder(folder.parent)
        os.mkdir(folder)
        sync_folder(folder.parent)


def rename(source: Path, target: Path) -> None:
    """Give a synced file, or a folder, another name, synced."""
    os.replace(source, target)
    sync_folder(target.parent)


def link(source: Path, target: Path) -> None:
    """Keep a synced file under a second name as well; replaces what had that name. The name is not synced."""
    unfinished = target.with_name(f".{target.name}")
    with suppress(FileNotFoundError):
        os.unlink(unfinished)
    try:
        os.link(source, unfinished)
    except OSError:  # a file system without hard links
        _copy(source, target)
        return
    os.replace(unfinished, target)


def remove(path: Path) -> None:
    """Remove a file, if it is there. Not synced: after a power cut it may be there again."""
    with suppress(FileNotFoundError):
        os.unlink(path)


def clear(folder: Path) -> None:
    """Remove a folder with all that is in it, if it is there. Not synced."""
    with suppress(FileNotFoundError):
        for entry in sorted(folder.iterdir()):
            if entry.is_dir() and not entry.is_symlink():
                clear(entry)
            else:
                remove(entry)
        os.rmdir(folder)


def _copy(source: Path, target: Path) -> None:
    with replacing(target) as file, source.open("rb") as opened:
        while block := opened.read(_BLOCK):
            file.write(block)


@contextmanager
def _opened(path: Path, flags: int) -> Iterator[int]:
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
