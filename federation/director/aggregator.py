"""The aggregator of one experiment: collects what the sites trained, averages it, remembers the best model.

Named in the plan (`aggregator.template`), so the engine builds it itself. Mends, with the engine's file and line:

- component/aggregator/aggregator.py:938: "best" compares every metric and takes the larger, so a loss of 5.0 beats
  an accuracy of 0.9. Here one named metric with a direction decides.
- aggregator.py:314 and aggregator.py:487: idle collaborators sleep 10 s, missing tensors are polled every 5 s. Here a
  collaborator's question waits until there is an answer.
- aggregator.py:805: the average is turned into a delta and added back, which costs time and changes the last bits.
  Here the next round starts from the average itself.
- aggregator.py:646: what a site sends is averaged as it comes, NaN and all. Here names, shapes and values are checked.
- The sites' metrics are averaged, which is no macro F1. Here scores are made of their added counts
  (`rules.scores`).
- aggregator.py:775: every site's tensors are held in memory and stacked to be averaged. Here they are files
  (`federation.wire.models`), averaged block by block.
- aggregator.py:678: when the time of a round is up and too few sites are done, it goes on waiting. Here the experiment
  fails and says who is missing; and every round says who took part in it.
- aggregator.py:298: an experiment is over when every site has been told so, hence never when one is gone. Here it is
  over when its last round is.
- databases/tensor_db.py:143: see `federation.wire.tensors`.
"""

import json
import logging
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from openfl.component import Aggregator as EngineAggregator
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.utilities import LocalTensor, TaskResultKey

from federation.director.state import Progress
from federation.errors import disk_problem
from federation.schedule import TASK_NAMES, TRAIN, VALIDATE_AGGREGATED
from federation.wire.models import ModelFile, best_path, round_path, updates_folder
from federation.wire.tensors import TensorStore
from federation.wire.transfer import Address, RoundOver
from federation.wire.updates import Update, average
from rules.scores import is_sum, merge, read, refusal

logger = logging.getLogger(__name__)

TURN_TIMEOUT = 20.0
"""Longest wait for work, in seconds, before a collaborator has to ask again; keeps dead peers from holding a thread."""


class RoundAggregator(EngineAggregator):  # type: ignore[misc]
    """The engine's aggregator with one meaning of "best" and no sleeping.

    `best_metric` is a metric of the aggregated validation; `best_direction` is "max" or "min". `scores` are those that
    are made of the sites' sums, by name (`rules.scores.read`). `minimum_sites` and `gone_seconds` are those of
    `federation.policy.RoundPolicy`.
    """

    def __init__(
        self,
        *,
        best_metric: str = "accuracy",
        best_direction: str = "max",
        scores: Mapping[str, Mapping[str, Any]] | None = None,
        minimum_sites: int = 1,
        gone_seconds: float = math.inf,
        **settings: Any,
    ) -> None:
        if best_direction not in ("max", "min"):
            raise ValueError(f"best_direction: {best_direction!r}; allowed: 'max', 'min'")
        self._best_metric = best_metric
        self._best_sign = 1.0 if best_direction == "max" else -1.0
        self._scores = read(scores or {})
        self._sent: dict[TaskResultKey, dict[str, float]] = {}
        self.minimum_sites = minimum_sites
        self.gone_seconds = gone_seconds
        self.authorized_cols: list[str] = []
        self.experiment: str | None = None
        self._turn = threading.Condition()
        self._questions: dict[str, object] = {}
        self._stopped = False
        self.best_model_score: float | None = None
        self._released = False
        self._finished = False
        self.best_round: int | None = None
        self.last_round = 0
        self.on_round: Callable[[], None] = lambda: None
        self.on_change: Callable[[], None] = lambda: None
        self.on_failure: Callable[[str], None] = lambda reason: None
        self.model_file: ModelFile | None = None
        self._updates: dict[str, Update] = {}
        self._unchanged: frozenset[str] = frozenset()
        super().__init__(**settings)
        self.tensor_db = TensorStore()
        self.sites = tuple(self.authorized_cols)

    @property
    def finished(self) -> bool:
        """Whether every round, the last validation included, is done and kept."""
        return self._finished

    def get_tasks(self, collaborator_name: str) -> tuple[Any, int, int, bool]:
        """Tasks, round, seconds to sleep (always 0), quit; waits while there is nothing to do.

        One question of a site waits at a time: an earlier one is of a connection that has broken, and holds a thread.
        """
        deadline = time.monotonic() + TURN_TIMEOUT
        with self._turn:
            question = self._questions[collaborator_name] = object()
            self._turn.notify_all()
            while True:
                tasks, round_number, _, quit_now = super().get_tasks(collaborator_name)
                late = time.monotonic() >= deadline or self._questions[collaborator_name] is not question
                if tasks or quit_now or late:
                    return tasks, round_number, 0, quit_now
                if self._released:
                    return None, round_number, 1, False  # the director is leaving: ask again, until it is back
                self._turn.wait(deadline - time.monotonic())

    def model_for(self, round_number: int, held: int, offset: int) -> Iterator[bytes]:
        """The model that a round starts with, from a byte on, without the tensors that `held`'s model had already.

        Raises:
            RoundOver: it is another round's turn.
        """
        with self.lock:
            self._expect(round_number)
            assert self.model_file is not None
            known = self._unchanged if held == round_number - 1 else frozenset()
            return self.model_file.chunks(offset, known, {"unchanged": json.dumps(sorted(known))})

    def received(self, address: Address) -> int:
        """How many bytes of an update have arrived.

        Raises:
            RoundOver: it is another round's turn.
        """
        self._expect(address.round)
        path = self._update_path(address)
        return path.stat().st_size if path.exists() else 0

    def receive(self, address: Address, chunks: Iterator[bytes]) -> None:
        """Keep an update, which may come in several parts, and check it when it is whole.

        Raises:
            RoundOver: it is another round's turn.
            ValueError: it is not an update of this model; says which tensor.
            OSError: it cannot be kept.
        """
        self._expect(address.round)
        path, model = self._update_path(address), self.model_file
        assert model is not None
        limit = model.path.stat().st_size + 2**20
        if not 0 < address.size <= limit:
            raise ValueError(f"the update has {address.size} bytes; this model's have at most {limit}")
        try:
            self._write(address, path, chunks)
        except OSError as error:
            self.on_failure(disk_problem(f"round {address.round + 1} of {self.experiment}", error))
            raise
        try:
            update = Update(path, model)
        except ValueError as error:
            path.unlink()
            logger.error("site %s: its update was refused: %s", address.site, error, extra=self._about(address.site))
            raise
        with self.lock:
            self._expect(address.round)
            self._updates[address.site] = update

    def _write(self, address: Address, path: Path, chunks: Iterator[bytes]) -> None:
        """Write a part of an update, up to its end, where it belongs."""
        for other in path.parent.glob(f"*{path.suffix}"):
            if other != path and other.stem.rpartition("-")[0] == path.stem.rpartition("-")[0]:
                other.unlink(missing_ok=True)  # of a trainer that has gone
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0) as file:
            if address.offset > file.seek(0, os.SEEK_END):
                raise ValueError(f"offset {address.offset} lies behind what has arrived")
            file.seek(address.offset)  # the same bytes come again, so two calls that overlap do no harm
            for chunk in chunks:
                self._expect(address.round)
                if file.tell() + len(chunk) > address.size:
                    raise ValueError(f"the update has more than the {address.size} bytes that it was to have")
                left = memoryview(chunk)
                while left:
                    left = left[file.write(left) :]  # a disk that fills up takes a part first, then raises
            if file.tell() < address.size:
                raise ValueError(f"the update ended after {file.tell()} of {address.size} bytes")

    def send_local_task_results(
        self, collaborator_name: str, round_number: int, task_name: str, data_size: int, named_tensors: Any
    ) -> None:
        """Take the metrics of one site's task; what it has trained has come before, through `receive`.

        Raises:
            ValueError: there are other tensors than metrics, one is no number, or the trained model has not come.
        """
        if data_size < 1:
            raise ValueError(f"task {task_name} was done on {data_size} samples; at least 1 is needed for a mean")
        if any("metric" not in each.tags for each in named_tensors):
            raise ValueError("only metrics travel with a task's results; models have a stream of their own")
        if task_name == TRAIN and round_number == self.round_number and collaborator_name not in self._updates:
            raise ValueError("the trained model has not arrived")
        sent = {each.name: _number(each) for each in named_tensors}
        if reason := refusal(collaborator_name, TASK_NAMES.get(task_name, task_name), sent):
            raise ValueError(reason)
        key = TaskResultKey(task_name, collaborator_name, round_number)
        awaited = round_number == self.round_number and collaborator_name not in self.stragglers
        if awaited and not self._time_to_quit() and self._sent.setdefault(key, sent) is sent:
            for name, value in merge({collaborator_name: sent}, {collaborator_name: data_size}, self._scores).items():
                if not is_sum(name):
                    self._record(task_name, name, value, origin=collaborator_name)
        super().send_local_task_results(collaborator_name, round_number, task_name, data_size, [])

    def open(self, folder: Path, progress: Progress) -> None:
        """Work in an experiment's folder, from the round that comes next; its model is there."""
        self._folder = folder
        shutil.rmtree(self._updates_folder, ignore_errors=True)
        self._updates_folder.mkdir()
        self.round_number, self.last_round = progress.next_round, progress.last_round
        self.best_round, self.best_model_score = progress.best_round, progress.best_score
        self._finished = self._time_to_quit()  # stopped between the last round and the end
        self.model_file = ModelFile(round_path(folder, self.last_round))

    def release(self) -> None:
        """Let every collaborator go that waits for work, without telling it to quit."""
        with self._turn:
            self._released = True
            self._turn.notify_all()

    def leave_out(self, site: str, reason: str) -> None:
        """Go on without a site, or fail when too few remain; the round closes if it was the only one missing."""
        with self.lock:
            if site not in self.authorized_cols or self.finished:
                return
            remaining = [each for each in self.authorized_cols if each != site]
            if len(remaining) < self.minimum_sites:
                self.on_failure(reason)
                return
            logger.warning("round %d: goes on without site %s", self.round_number + 1, site, extra=self._about(site))
            self.authorized_cols = remaining
            if site in self.collaborators_done:
                self.collaborators_done.remove(site)
            if self.collaborators_done:
                self._end_of_round_with_stragglers_check()

    def readmit(self, site: str) -> None:
        """Count on a site again that was left out and is back."""
        with self.lock:
            logger.info("round %d: site %s is back", self.round_number + 1, site, extra=self._about(site))
            self.authorized_cols = [*self.authorized_cols, site]

    def stop(self, failed_collaborator: str | None = None) -> None:
        """End the experiment early: every collaborator that asks is told to quit."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
        self.on_change()

    def _about(self, site: str | None = None) -> dict[str, Any]:
        """What a log line belongs to; the round as people count."""
        return {"experiment": self.experiment, "round": self.round_number + 1, "site": site}

    def _time_to_quit(self) -> bool:
        return bool(self._stopped or self.round_number >= self.rounds_to_train)

    def _expect(self, round_number: int) -> None:
        if round_number != self.round_number or self._time_to_quit():
            raise RoundOver(f"round {round_number + 1} is over")

    @property
    def _updates_folder(self) -> Path:
        return updates_folder(self._folder)

    def _update_path(self, address: Address) -> Path:
        return self._updates_folder / f"{address.round}-{quote(address.site, safe='')}-{address.upload}.safetensors"

    def _straggler_cutoff_time_elapsed(self) -> None:
        """The time of the round is up: close it with those that are done, or fail when they are too few."""
        policy = self.straggler_handling_policy
        with self.lock:
            if not hasattr(policy, "timer") or time.time() - policy.round_start_time < policy.straggler_cutoff_time / 2:
                return  # that round has closed while the timer waited for the lock
            self.stragglers = [site for site in self.authorized_cols if site not in self.collaborators_done]
            if len(self.collaborators_done) >= self.minimum_sites:
                missing = ", ".join(self.stragglers)
                logger.warning("round %d: closes without %s", self.round_number + 1, missing, extra=self._about())
                self._end_of_round_check()
            else:
                self.on_failure(
                    f"round {self.round_number + 1}: after {policy.straggler_cutoff_time:.0f} s only "
                    f"{len(self.collaborators_done)} of at least {self.minimum_sites} sites were done; missing: "
                    f"{', '.join(self.stragglers)}"
                )

    def _end_of_round_check(self) -> None:
        for site in self.sites if self.round_number < self.rounds_to_train - 1 else ():
            self._record("round", "took_part", float(site in self.collaborators_done), origin=site)
        try:
            super()._end_of_round_check()
        except OSError as error:
            self.on_failure(disk_problem(f"round {self.round_number + 1}", error))
            return
        except Exception as error:  # in the thread of whichever site was last, which is not to blame
            logger.exception("round %d cannot be closed", self.round_number + 1)
            self.on_failure(f"round {self.round_number + 1}: the sites' results do not go together: {error!r}")
            return
        self.model_file = ModelFile(round_path(self._folder, self.last_round))
        self._updates, self._sent = {}, {}
        for path in self._updates_folder.iterdir():
            path.unlink()
        self.on_round()
        self._finished = bool(self.round_number >= self.rounds_to_train)
        with self._turn:
            self._turn.notify_all()
        self.on_change()

    def _compute_validation_related_task_metrics(self, task_name: str) -> None:
        """Aggregate one task's tensors and metrics over the sites that finished the round."""
        assigned = self.assigner.get_collaborators_for_task(task_name, self.round_number)
        keys = {s: TaskResultKey(task_name, s, self.round_number) for s in assigned if s in self.collaborators_done}
        sizes = {site: self.collaborator_task_weight[key] for site, key in keys.items()}
        merged = merge({site: self._sent[key] for site, key in keys.items()}, sizes, self._scores)
        for name, value in merged.items():
            if not is_sum(name) or task_name == VALIDATE_AGGREGATED:
                self._record(task_name, name, value)
        if task_name == VALIDATE_AGGREGATED:
            if self._best_metric not in merged:
                there = ", ".join(name for name in merged if not is_sum(name)) or "none"
                raise ValueError(f"the best model is chosen by {self._best_metric}; the sites' metrics are: {there}")
            self._keep_if_best(merged[self._best_metric])
        if task_name == TRAIN:
            self._average({site: size / sum(sizes.values()) for site, size in sizes.items()})

    def _average(self, weights: dict[str, float]) -> None:
        """Make the next round's model of the sites' updates."""
        assert self.model_file is not None
        self._unchanged = average(
            round_path(self._folder, self.round_number + 1),
            self.model_file,
            [self._updates[site] for site in weights],
            list(weights.values()),
            self._rule(list(weights)),
        )
        self.last_round = self.round_number + 1

    def _rule(self, sites: Sequence[str]) -> Callable[..., np.ndarray] | None:
        """The plan's aggregation function, if it is not the mean, as `federation.wire.updates.average` calls it."""
        function = self.assigner.get_aggregation_type_for_task(TRAIN)
        if function is None or isinstance(function, WeightedAverage):
            return None

        def rule(name: str, arrays: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
            assert self.model_file is not None
            local = [LocalTensor(*each) for each in zip(sites, arrays, weights, strict=True)]
            row = {
                "round": self.round_number,
                "nparray": self.model_file[name],
                "tensor_name": name,
                "tags": ("model",),
            }
            return np.asarray(function(local, iter([row]), name, self.round_number, ("trained",)))

        return rule

    def _record(self, task_name: str, metric: str, value: float, origin: str = "aggregator") -> None:
        self.metric_queue.put(
            {
                "metric_origin": origin,
                "task_name": task_name,
                "metric_name": metric,
                "metric_value": value,
                "round": self.round_number,
            }
        )

    def _keep_if_best(self, score: float) -> None:
        """Of equal scores the later one counts, since that model has learned longer."""
        if self.best_model_score is None or self._best_sign * score >= self._best_sign * self.best_model_score:
            assert self.model_file is not None
            path = best_path(self._folder, self.round_number)
            unfinished = path.with_name(f".{path.name}")
            unfinished.unlink(missing_ok=True)
            try:
                unfinished.hardlink_to(self.model_file.path)
            except OSError:  # a file system without hard links
                shutil.copyfile(self.model_file.path, unfinished)
            unfinished.replace(path)
            self.best_model_score, self.best_round = score, self.round_number

    def _save_model(self, round_number: int, file_path: str) -> None:
        """Nothing is left to save: the average is written where it is kept."""


def _number(named_tensor: Any) -> float:
    """The value of a metric, as the engine's messages have it: one number of single precision.

    Raises:
        ValueError: it is none.
    """
    values = np.frombuffer(named_tensor.data_bytes, np.float32)
    if len(values) != 1:
        raise ValueError(f"the metric {named_tensor.name[:60]!r} has {len(values)} values; needed is one")
    return float(values[0])
