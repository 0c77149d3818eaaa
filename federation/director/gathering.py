"""What the sites send in one round, and the next model that is made of it.

Of a rule that needs no more than the mean only a few updates lie on disk at a time (`rules.running`); of the others all
of them do, until the round is over.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from federation.director.results import Results
from federation.director.room import Room
from federation.director.uploads import Run, Uploads
from federation.wire.models import CHUNK, ModelFile, Writing, round_path, rule_path, updates_folder, write_together
from federation.wire.updates import Update
from rules.bounded import Bounded, bounded
from rules.contract import Rule, State, Tensors, places
from rules.contract import Update as Given
from rules.running import MeanOfUpdates, RunningMean
from rules.scores import Score, merge


@dataclass(frozen=True)
class Outgoing:
    """A round's model as it travels, without the tensors that a site still has."""

    file: ModelFile
    left_out: frozenset[str]
    metadata: Mapping[str, str]

    def chunks(self, offset: int) -> Iterator[bytes]:
        """Its bytes from there on."""
        return self.file.chunks(offset, self.left_out, self.metadata)

    @cached_property
    def size(self) -> int:
        """Bytes of its tensors."""
        return sum(entry.size for name, entry in self.file.entries.items() if name not in self.left_out)

    @cached_property
    def bytes(self) -> bytes | None:
        """All of it, where that is a chunk at most: read once, however many sites ask."""
        return b"".join(self.chunks(0)) if self.size <= CHUNK else None


class Gathering:
    """What has come in a round.

    Args:
        folder: the experiment's; the round's model is there, and what it has sent goes into a folder within.
        number: the engine's, of the round. trained: how many rounds of training its model has had.
        tasks: of the round.
        rule: makes the next model.
        unchanged: the tensors that the round before has left as they were.
        run, room, idle_seconds: see `Uploads`.
        best: the rounds of training of the best model so far; sites with tensors of their own keep those of it.
    """

    def __init__(
        self,
        folder: Path,
        number: int,
        trained: int,
        tasks: Sequence[str],
        rule: Rule,
        unchanged: frozenset[str],
        run: Run,
        room: Room,
        idle_seconds: float,
        best: int | None = None,
    ) -> None:
        self.model = ModelFile(round_path(folder, trained))
        self.folder = updates_folder(folder) / str(number)
        self.folder.mkdir(parents=True)
        self.uploads = Uploads(self.folder, self.model, run, room, idle_seconds)
        self.metrics: dict[str, dict[str, dict[str, float]]] = {task: {} for task in tasks}
        self.examples: dict[str, dict[str, int]] = {task: {} for task in tasks}
        self._next = trained + 1, folder
        self._rule, self._unchanged = rule, unchanged
        self._told = {} if best is None else {"best": str(best)}
        self._updates: dict[str, Given] = {}
        self._count = 0
        self._mean = RunningMean(self.model, self.folder)
        self._outgoing: dict[frozenset[str], Outgoing] = {}

    def outgoing(self, has_the_last: bool) -> Outgoing:
        """The round's model for a site, which may have that of the round before."""
        known = self._unchanged if has_the_last else frozenset()
        if known not in self._outgoing:
            told = {"unchanged": json.dumps(sorted(known))} | self._told
            self._outgoing[known] = Outgoing(self.model, known, told)
        return self._outgoing[known]

    def take(self, results: Results) -> None:
        """Count a task's metrics."""
        self.metrics[results.task][results.site] = results.metrics
        self.examples[results.task][results.site] = results.examples

    def merged(self, task: str, scores: Mapping[str, Score]) -> dict[str, float]:
        """What the sites have measured together."""
        return merge(self.metrics[task], self.examples[task], scores)

    def add(self, update: Update, site: str, weight: int) -> None:
        """Count what a site has trained.

        Raises:
            OSError: the disk does not take it.
        """
        self._count += 1
        given = bounded(self._rule, self.model, update)
        if not self._rule.of_the_mean:
            self._updates[site] = given
            return
        for added in self._mean.add(given, self._rule.weight(weight)):
            file = added.update if isinstance(added, Bounded) else added
            assert isinstance(file, Update)
            file.path.unlink(missing_ok=True)

    def next_model(self, task: str, sites: Sequence[str], before: ModelFile | None) -> tuple[frozenset[str], bool]:
        """Write the next round's model, and beside it what the rule keeps.

        Args:
            task: by whose examples the sites are weighed.
            sites: all of the experiment's, in the order in which a rule that needs every update is given them.
            before: what the rule has kept of the round before.

        Returns:
            The tensors that are as they were, and whether the rule keeps something.

        Raises:
            OSError: the disk does not take it.
            ValueError: what the rule has made is no such model.
        """
        state = State(self.model, share=self._count / len(sites))
        if before is not None:
            state = replace(state, arrays=before, numbers=json.loads(before.metadata.get("numbers", "{}")))
        given: Sequence[MeanOfUpdates] | Sequence[Given]
        if self._rule.of_the_mean:
            given, weights = [self._mean.mean()], [self._mean.weight]
        else:
            there = [site for site in sites if site in self._updates]
            given = [self._updates[site] for site in there]
            weights = [self._rule.weight(self.examples[task][site]) for site in there]
        kept, model = self._rule(state, given, weights)
        if dict(model.shapes) != self.model.shapes:  # one that the operator has installed is not ours
            raise ValueError("its model has tensors of other names or shapes than the one that the sites were sent")
        number, folder = self._next
        writings = [Writing(round_path(folder, number), model)]
        keeps = bool(kept.arrays.shapes or kept.numbers)
        if keeps:
            told = {"numbers": json.dumps(dict(kept.numbers))}
            writings.append(Writing(rule_path(folder, number), kept.arrays, told))
        written = write_together(writings)[0]
        untouched = frozenset.intersection(*(update.unchanged for update in given))
        unchanged = frozenset(name for name in untouched if _equal(written, self.model, name))
        self._mean.close()
        return unchanged, keeps


def _equal(written: Tensors, before: Tensors, name: str) -> bool:
    return all(
        np.array_equal(written.read(name, place), before.read(name, place)) for place in places(before.shapes[name])
    )
