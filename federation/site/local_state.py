"""What a site keeps of a running experiment on its own disk: the state of training that does not travel.

The engine keeps the optimizer in the memory of the process that trains: after a restart a site goes on with fresh
moments, and the weights are no longer those of an undisturbed run. Here a trainer saves that state after each round of
training, and one that takes over reads it.

What belongs to it only the framework adapter knows. One with state has two more static methods:

    save_local_state(model, optimizer, path)            writes one file
    load_local_state(model, optimizer, path, device)    restores it; `device` as in `set_tensor_dict`

It never leaves the site, and is removed with the experiment.
"""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

KEPT = 3
"""States kept: of the last round, of the one before, for a round that has to be trained again, and of the one before
that: a director whose newest model is damaged goes back one round, and the site may have trained the next one."""


def state_folder(root: Path, site: str, experiment_id: str, slots: int = 1) -> Path:
    """The folder for a site's state of an experiment, made if need be.

    A site works on as many experiments at a time as it has slots; of the others the newest so many are kept, and what
    is left of older ones is removed.
    """
    own = root / site / experiment_id
    own.mkdir(parents=True, exist_ok=True)
    others = [folder for folder in own.parent.iterdir() if folder != own and folder.is_dir()]
    others.sort(key=lambda folder: folder.stat().st_mtime, reverse=True)
    for folder in others[slots - 1 :]:
        shutil.rmtree(folder, ignore_errors=True)
    return own


class LocalState:
    """States of one site in one experiment, by the engine round whose training they follow."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def save(self, round_number: int, write: Callable[[Path], None]) -> None:
        """Keep what `write` puts into the file that it is given: all of it, or nothing.

        Raises:
            OSError: the disk does not take it; earlier states are as they were.
        """
        unfinished = self._folder / "unfinished"
        try:
            write(unfinished)
            with unfinished.open("rb") as file:
                os.fsync(file.fileno())
            unfinished.replace(self._path(round_number))
        finally:
            unfinished.unlink(missing_ok=True)
        rounds = self._rounds()
        for old in [*(each for each in rounds if each > round_number), *rounds[:-KEPT]]:
            self._path(old).unlink(missing_ok=True)

    def before(self, round_number: int) -> Path | None:
        """The newest state from before a round; None if there is none."""
        earlier = [each for each in self._rounds() if each < round_number]
        return self._path(earlier[-1]) if earlier else None

    def _rounds(self) -> list[int]:
        return sorted(int(path.stem) for path in self._folder.glob("*.state"))

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{round_number}.state"
