"""Where an envoy unpacks experiments: a folder of its own among the temporary ones, which the next one clears.

A process that is killed leaves its folder behind. The folder's owner holds a lock on a file in it as long as it lives,
so that the next envoy of the name knows which folders nobody works in any more.
"""

import fcntl
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = ".envoy"


class WorkFolder:
    """A new folder for this process's experiments; what ended processes of the same site have left is removed."""

    def __init__(self, site: str) -> None:
        clear(site)
        self.path = Path(tempfile.mkdtemp(prefix=f"{site}-"))
        self._lock = _locked(self.path)
        assert self._lock is not None, "a folder that was made this moment is nobody else's"

    def make(self) -> Path:
        """An empty folder in it."""
        return Path(tempfile.mkdtemp(dir=self.path))

    def remove(self) -> None:
        """Remove it with all that is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock:
            self._lock.close()


def clear(site: str) -> list[Path]:
    """Remove what ended envoys of this site have left in the temporary folder: this user's folders with a lock."""
    removed = []
    for folder in Path(tempfile.gettempdir()).glob(f"{site}-*"):
        if not (folder / LOCK).is_file() or folder.is_symlink() or folder.stat().st_uid != os.getuid():
            continue
        if lock := _locked(folder):
            with lock:
                shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed


def _locked(folder: Path) -> IO[bytes] | None:
    """The lock of a folder, or None where another process has it."""
    with suppress(OSError):
        file = os.fdopen(os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
        else:
            return file
    return None
