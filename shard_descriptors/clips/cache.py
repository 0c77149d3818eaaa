"""Things that are made once and kept in the user's cache: a synthetic corpus, unpacked archives, packed clips."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path


def cache_folder() -> Path:
    """The folder that the environment's KWS_CACHE names, else the user's own cache."""
    return Path(os.environ.get("KWS_CACHE") or user_cache_path("federated-keyword-spotting")).expanduser()


def made_once(target: Path, make: Callable[[Path], None]) -> Path:
    """`target`, a file or folder that `make(partial)` writes unless it is there already.

    Processes that ask at once wait for the one that makes it. One that is killed half-way leaves nothing that counts;
    the next one clears it away. OSError when it cannot be written, and whatever `make` raises.
    """
    if target.exists():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(target.parent / f"{target.name}.lock"):
        if not target.exists():
            for left_over in target.parent.glob(f"{target.name}.partial-*"):
                shutil.rmtree(left_over)
            with tempfile.TemporaryDirectory(
                dir=target.parent, prefix=f"{target.name}.partial-", ignore_cleanup_errors=True
            ) as partial:
                make(Path(partial) / target.name)
                os.rename(Path(partial) / target.name, target)
    return target
