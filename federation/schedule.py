"""Which task runs in which round.

The engine validates the aggregated model of round n in round n + 1, so the final model is never validated
(interface/interactive_api/experiment.py:406). One more round without training mends it.
"""

VALIDATE_AGGREGATED = "aggregated_model_validate"
TRAIN = "train"
VALIDATE_LOCAL = "locally_tuned_model_validate"

TASK_NAMES = {
    TRAIN: "train",
    VALIDATE_LOCAL: "validate_local",
    VALIDATE_AGGREGATED: "validate_global",
    "round": "round",
}
"""The engine's task names and those that people are shown."""

NOTICE = "notice"
"""The task name of a line among the metrics that is none: the director tells the notebook something of a site."""


def finished_rounds(task_name: str, engine_round: int) -> int:
    """The round of a task as people are shown it: how many rounds of training the measured model has had.

    >>> finished_rounds(TRAIN, 0), finished_rounds(VALIDATE_AGGREGATED, 0)
    (1, 0)
    """
    return engine_round if task_name == VALIDATE_AGGREGATED else engine_round + 1


def tasks_of(engine_round: int, rounds: int) -> tuple[str, ...]:
    """The tasks of one engine round, in their order, of an experiment with so many rounds of training.

    Engine round n (from 0) starts with the model that n rounds of training made, so its first task measures
    round n; round 0 is the initial model. The last engine round, number `rounds`, only measures.

    >>> tasks_of(0, 1), tasks_of(1, 1)
    (('aggregated_model_validate', 'train', 'locally_tuned_model_validate'), ('aggregated_model_validate',))
    """
    return (VALIDATE_AGGREGATED, TRAIN, VALIDATE_LOCAL) if engine_round < rounds else (VALIDATE_AGGREGATED,)
