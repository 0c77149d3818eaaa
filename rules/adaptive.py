"""Optimizers at the director that give every weight a rate of its own: FedAdagrad, FedYogi, FedAdam."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rules.contract import Averaging, Floats, State, Tensors, together
from rules.numbers import number


@dataclass(frozen=True)
class _Adaptive(Averaging):
    """With d = mean - x: m = beta1 m + (1 - beta1) d, v as below, x = x + server_learning_rate m / (sqrt(v) + tau).

    Reddi et al. 2021, "Adaptive federated optimization", algorithm 2: m begins at 0, v at tau^2, and, as there, nothing
    makes up for that in the first rounds (no bias correction). `tau` is how much the rates may differ: the smaller, the
    more.
    """

    server_learning_rate: float = number(0.01, above=0)
    beta1: float = number(0.9, least=0, below=1)
    tau: float = number(1e-3, above=0)

    def second(self, v: Floats, squared: Floats) -> Floats:
        """The next v, of the last one and d^2."""
        raise NotImplementedError

    def __call__(self, state: State, updates: Sequence[Tensors], weights: Sequence[int]) -> tuple[State, Tensors]:
        """Keeps m and v, two numbers for each of the model's."""
        (mean,) = updates
        first, second = state.kept("m"), state.kept("v", self.tau**2)

        rate, beta, tau = (np.float32(each) for each in (self.server_learning_rate, self.beta1, self.tau))

        def step(name: str, place: slice) -> tuple[Floats, Floats, Floats]:
            x = state.model.read(name, place)
            d = mean.read(name, place) - x
            m: Floats = beta * first(name, place) + (1 - beta) * d
            v = self.second(second(name, place), d * d)
            return np.asarray(x + rate * (m / (np.sqrt(v) + tau)), np.float32), m, v

        arrays, model = together(state.model.shapes, ("m", "v"), step)
        return State(state.model, arrays), model


@dataclass(frozen=True)
class FedAdagrad(_Adaptive):
    """v = v + d^2; rates only ever fall. In the paper's experiments beta1 is 0 here."""

    beta1: float = number(0.0, least=0, below=1)

    def second(self, v: Floats, squared: Floats) -> Floats:
        """The next v."""
        return v + squared


@dataclass(frozen=True)
class FedYogi(_Adaptive):
    """v = v - (1 - beta2) d^2 sign(v - d^2): moves at the same speed whichever of the two is the larger."""

    beta2: float = number(0.99, least=0, below=1)

    def second(self, v: Floats, squared: Floats) -> Floats:
        """The next v."""
        new: Floats = v - np.float32(1 - self.beta2) * squared * np.sign(v - squared)
        return new


@dataclass(frozen=True)
class FedAdam(_Adaptive):
    """v = beta2 v + (1 - beta2) d^2."""

    beta2: float = number(0.99, least=0, below=1)

    def second(self, v: Floats, squared: Floats) -> Floats:
        """The next v."""
        return np.float32(self.beta2) * v + np.float32(1 - self.beta2) * squared
