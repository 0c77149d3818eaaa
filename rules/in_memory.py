"""A round of a rule where everything fits into memory: the simulation, and tests."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rules.bounded import bounded
from rules.contract import Floats, InMemory, Rule, State, Update
from rules.mean import Mean


@dataclass(frozen=True)
class StateInMemory(State):
    """What a rule begins a round with, in arrays."""

    model: InMemory
    arrays: InMemory = field(default_factory=InMemory)


def begin(model: Mapping[str, Floats]) -> StateInMemory:
    """What every rule begins with."""
    return StateInMemory(InMemory(model))


def next_state(
    rule: Rule,
    state: StateInMemory,
    updates: Sequence[Mapping[str, Floats]],
    weights: Sequence[int],
    share: float = 1.0,
) -> StateInMemory:
    """The state after one round; its model is what the sites get next.

    Args:
        rule: how it is made.
        state: what the round began with.
        updates: what each site has trained.
        weights: how many utterances each has.
        share: of the experiment's sites, those whose updates these are.

    Raises:
        ValueError: no updates; not as many weights; tensors that are not the model's; values that are not finite.
    """
    for update in updates:
        if {name: array.shape for name, array in update.items()} != state.model.shapes:
            raise ValueError("an update has tensors of other names or shapes than the model")
    given: Sequence[Update] = [bounded(rule, state.model, InMemory(update)) for update in updates]
    weights = [rule.weight(weight) for weight in weights]
    if rule.of_the_mean:
        _, mean = Mean()(state, given, weights)
        given, weights = [InMemory.of(mean)], [sum(weights)]
    kept, model = rule(State(state.model, state.arrays, state.numbers, share), given, weights)
    return StateInMemory(InMemory.of(model), InMemory.of(kept.arrays), dict(kept.numbers))
