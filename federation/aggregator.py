"""The aggregator of one experiment: collects what the sites trained, averages it, remembers the best model.

Named in the plan (`aggregator.template`), so the engine builds it itself. Mends, with the engine's file and line:

- component/aggregator/aggregator.py:938: "best" compares every metric and takes the larger, so a loss of 5.0 beats
  an accuracy of 0.9. Here one named metric with a direction decides.
- aggregator.py:314 and :487: idle collaborators sleep 10 s, missing tensors are polled every 5 s. Here a
  collaborator's question waits until there is an answer.
- aggregator.py:822: the average is turned into a delta and added back, which costs time and changes the last bits.
  Here the next round starts from the average itself.
- aggregator.py:570: what a site sends is averaged as it comes, NaN and all. Here names, shapes and values are checked.
- aggregator.py:429 `_straggler_cutoff_time_elapsed`: when the time of a round is up and too few sites are done, it goes
  on waiting. Here the experiment fails and says who is missing; and every round says who took part in it.
- databases/tensor_db.py:137: see `federation.tensors`.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from openfl.component import Aggregator as EngineAggregator
from openfl.interface.aggregation_functions import WeightedAverage
from openfl.utilities import TaskResultKey, TensorKey, change_tags

from federation.tensors import TensorStore

logger = logging.getLogger(__name__)

TURN_TIMEOUT = 20.0
"""Longest wait for work, in seconds, before a collaborator has to ask again; keeps dead peers from holding a thread."""


class Aggregator(EngineAggregator):  # type: ignore[misc]
    """The engine's aggregator with one meaning of "best" and no sleeping.

    `best_metric` is a metric of the aggregated validation; `best_direction` is "max" or "min". `minimum_sites` and
    `gone_seconds` are those of `federation.policy.RoundPolicy`.
    """

    def __init__(
        self,
        *,
        best_metric: str = "accuracy",
        best_direction: str = "max",
        minimum_sites: int = 1,
        gone_seconds: float = math.inf,
        **settings: Any,
    ) -> None:
        if best_direction not in ("max", "min"):
            raise ValueError(f"best_direction: {best_direction!r}; allowed: 'max', 'min'")
        self._best_metric = best_metric
        self._best_sign = 1.0 if best_direction == "max" else -1.0
        self.minimum_sites = minimum_sites
        self.gone_seconds = gone_seconds
        self.authorized_cols: list[str] = []
        self.tensor_db = TensorStore()
        self._shapes: dict[str, tuple[int, ...]] = {}
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
        super().__init__(**settings)
        self._sites = tuple(self.authorized_cols)

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

    def get_aggregated_tensor(
        self,
        collaborator_name: str,
        tensor_name: str,
        round_number: int,
        report: bool,
        tags: Any,
        require_lossless: bool,
    ) -> Any:
        """The named tensor as a protobuf message; raises at once when it does not exist."""
        key = TensorKey(tensor_name, self.uuid, round_number, report, tuple(tags))
        array = self.tensor_db.get_tensor_from_cache(key)
        if array is None:
            raise ValueError(
                f"no tensor {tensor_name} of round {round_number}; the current round is {self.round_number}"
            )
        return self._nparray_to_named_tensor(key, array, send_model_deltas=False, compress_lossless=True)

    def send_local_task_results(
        self, collaborator_name: str, round_number: int, task_name: str, data_size: int, named_tensors: Any
    ) -> None:
        """Take the tensors and metrics of one site's task.

        Raises:
            ValueError: a trained tensor has a name, a shape or a value that it must not have; says which.
        """
        if data_size < 1:
            raise ValueError(f"task {task_name} was done on {data_size} samples; at least 1 is needed for a mean")
        self._check(named_tensors)
        super().send_local_task_results(collaborator_name, round_number, task_name, data_size, named_tensors)

    def resume(self, next_round: int, best_round: int | None, best_score: float | None) -> None:
        """Go on with a later engine round than the first; the initial tensors are the model of that round."""
        if next_round == 0:
            return
        names = {name: TensorKey(name, self.uuid, 0, False, ("model",)) for name in self._shapes}
        model: dict[str, Any] = {name: self.tensor_db.get_tensor_from_cache(key) for name, key in names.items()}
        self.tensor_db = TensorStore()
        self.tensor_db.cache_tensor({key._replace(round_number=next_round): model[name] for name, key in names.items()})
        self.last_tensor_dict = model
        self.round_number = self.last_round = next_round
        self._finished = bool(next_round >= self.rounds_to_train)  # stopped between the last round and the end
        self.best_round, self.best_model_score = best_round, best_score

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
            logger.warning("round %d: goes on without site %s", self.round_number, site)
            self.authorized_cols = remaining
            if site in self.collaborators_done:
                self.collaborators_done.remove(site)
            if self.collaborators_done:
                self._end_of_round_with_stragglers_check()

    def readmit(self, site: str) -> None:
        """Count on a site again that was left out and is back."""
        with self.lock:
            logger.info("round %d: site %s is back", self.round_number, site)
            self.authorized_cols = [*self.authorized_cols, site]

    def stop(self, failed_collaborator: str | None = None) -> None:
        """End the experiment early: every collaborator that asks is told to quit."""
        with self._turn:
            self._stopped = True
            self._turn.notify_all()
        self.on_change()

    def _time_to_quit(self) -> bool:
        return bool(self._stopped or self.round_number >= self.rounds_to_train)

    def _check(self, named_tensors: Any) -> None:
        trained = [each for each in named_tensors if "trained" in each.tags and "metric" not in each.tags]
        if not trained:
            return
        names = {each.name for each in trained}
        if names != self._shapes.keys():
            raise ValueError(
                f"the trained tensors are not the model's; they differ in {sorted(names ^ self._shapes.keys())}"
            )
        for each in trained:
            shape = tuple(each.transformer_metadata[0].int_list)
            if shape != self._shapes[each.name] or len(each.data_bytes) != 4 * math.prod(shape):
                raise ValueError(f"tensor {each.name} has shape {shape}; the model's is {self._shapes[each.name]}")
            if not np.isfinite(np.frombuffer(each.data_bytes, np.float32)).all():
                raise ValueError(f"tensor {each.name} holds values that are not finite numbers")

    def _straggler_cutoff_time_elapsed(self) -> None:
        """The time of the round is up: close it with those that are done, or fail when they are too few."""
        policy = self.straggler_handling_policy
        with self.lock:
            if not hasattr(policy, "timer") or time.time() - policy.round_start_time < policy.straggler_cutoff_time / 2:
                return  # that round has closed while the timer waited for the lock
            self.stragglers = [site for site in self.authorized_cols if site not in self.collaborators_done]
            if len(self.collaborators_done) >= self.minimum_sites:
                logger.warning("round %d: closes without %s", self.round_number, ", ".join(self.stragglers))
                self._end_of_round_check()
            else:
                self.on_failure(
                    f"round {self.round_number + 1}: after {policy.straggler_cutoff_time:.0f} s only "
                    f"{len(self.collaborators_done)} of at least {self.minimum_sites} sites were done; missing: "
                    f"{', '.join(self.stragglers)}"
                )

    def _load_initial_tensors_from_dict(self, tensor_dict: dict[str, np.ndarray]) -> None:
        self.tensor_db = TensorStore()
        self._shapes = {name: tuple(array.shape) for name, array in tensor_dict.items()}
        super()._load_initial_tensors_from_dict(tensor_dict)

    def _end_of_round_check(self) -> None:
        for site in self._sites if self.round_number < self.rounds_to_train - 1 else ():
            self._record("round", "took_part", float(site in self.collaborators_done), origin=site)
        try:
            super()._end_of_round_check()
        except Exception as error:  # in the thread of whichever site was last, which is not to blame
            logger.exception("round %d cannot be closed", self.round_number)
            self.on_failure(f"round {self.round_number + 1}: the sites' results do not go together: {error!r}")
            return
        self.on_round()
        self._finished = bool(self.round_number >= self.rounds_to_train)
        with self._turn:
            self._turn.notify_all()
        self.on_change()

    def _compute_validation_related_task_metrics(self, task_name: str) -> None:
        """Aggregate one task's tensors and metrics over the sites that finished the round."""
        assigned = self.assigner.get_collaborators_for_task(task_name, self.round_number)
        sites = [site for site in assigned if site in self.collaborators_done]
        sizes = {
            site: self.collaborator_task_weight[TaskResultKey(task_name, site, self.round_number)] for site in sites
        }
        weights = {site: size / sum(sizes.values()) for site, size in sizes.items()}
        average = self.assigner.get_aggregation_type_for_task(task_name) or WeightedAverage()
        for sent in self.collaborator_tasks_results[TaskResultKey(task_name, sites[0], self.round_number)]:
            key = sent._replace(tags=change_tags(sent.tags, remove_field=sites[0]))
            is_metric = "metric" in key.tags
            value = self.tensor_db.get_aggregated_tensor(key, weights, WeightedAverage() if is_metric else average)
            if is_metric:
                self._record(task_name, key.tensor_name, float(value))
                if "validate_agg" in key.tags and key.tensor_name == self._best_metric:
                    self._keep_if_best(float(value))
            elif "trained" in key.tags:
                trained = TensorKey(key.tensor_name, self.uuid, self.round_number + 1, False, ("model",))
                self.tensor_db.cache_tensor({trained: value.astype(np.float32)})

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
            self.best_model_score, self.best_round = score, self.round_number
            self._save_model(self.round_number, self.best_state_path)

    def _save_model(self, round_number: int, file_path: str) -> None:
        """Keep the model of a round as the best or the last one; the round that only measures makes none."""
        keys = [TensorKey(name, self.uuid, round_number, False, ("model",)) for name in self._shapes]
        tensors = {key.tensor_name: self.tensor_db.get_tensor_from_cache(key) for key in keys}
        if any(array is None for array in tensors.values()):
            return
        if file_path == self.best_state_path:
            self.best_tensor_dict = tensors
        else:
            self.last_tensor_dict, self.last_round = tensors, round_number
