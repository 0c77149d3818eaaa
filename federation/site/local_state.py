"""What a site keeps of a running experiment on its own disk: the state of training that does not travel.

The engine keeps the optimizer in the memory of the process that trains: after a restart a site goes on with fresh
moments, and the weights are no longer those of an undisturbed run. Here a trainer saves that state after each round of
training, and one that takes over reads it.

What belongs to it only the framework adapter knows. One with state has two more static methods:

    save_local_state(model, optimizer, path)            writes one file
    load_local_state(model, optimizer, path, device)    restores it; `device` as in `set_tensor_dict`

It never leaves the site, and is removed with the experiment.

Tensors that are a site's own, such as a head that does not travel, are the exception: without them the experiment's
model is of no use there. An adapter that has some says so by `own_tensors(model)`, which gives arrays by name. They are
kept as files `round-N.safetensors`, with N the rounds of training of the first model that they go with: the last three,
and those of the best round, as far as the director has told of it. They stay when the experiment is over
(`own_folder`); the site's owner removes them.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

import numpy as np

from federation.wire.models import save

OWN = "own.tensors"
"""The folder of sites' own tensors, beside those of sites: a name that no site has."""
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


def own_folder(state: Path, experiment: str) -> Path:
    """Where the own tensors of a site with this state folder stay, for an experiment of this name.

    >>> own_folder(Path("state/north/0123456789abcdef"), "my run")
    PosixPath('state/own.tensors/north/my%20run-01234567')
    """
    site, number = state.parent.name, state.name
    return state.parents[1] / OWN / site / f"{quote(experiment, safe='')}-{number[:8]}"


class LocalState:
    """States of one site in one experiment, by the engine round whose training they follow.

    own: the folder for the site's own tensors; None: none are kept after the end.
    """

    def __init__(self, folder: Path, own: Path | None = None) -> None:
        self._folder, self._own = folder, own

    def keep_own(self, rounds: int, tensors: Mapping[str, np.ndarray], best: int | None) -> None:
        """Keep the own tensors that go with the model after so many rounds; `best`: those of the best one so far.

        Raises:
            OSError: the disk does not take it; what was kept is as it was.
        """
        if self._own is None or not tensors:
            return
        self._own.mkdir(parents=True, exist_ok=True)
        save(self._own / f"round-{rounds}.safetensors", tensors)
        there = {int(path.stem.removeprefix("round-")): path for path in self._own.glob("round-*.safetensors")}
        past = sorted(each for each in there if each <= rounds)
        of_best = [each for each in past if best is not None and each <= best][
            -1:
        ]  # it may not have trained each round
        kept = {*of_best, *past[-KEPT:]}
        for each in there.keys() - kept:
            there[each].unlink(missing_ok=True)

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
