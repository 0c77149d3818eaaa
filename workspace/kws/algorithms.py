"""A site's part of an algorithm: what of a model travels, what stays here, and what is added to each gradient."""

from collections.abc import Callable, Mapping

import numpy as np
import torch

from kws.batches import Heard
from kws.clips import Clips
from kws.config import Algorithm, Training
from kws.model import Classifier, packed, trained, unpack
from kws.training import train_round

CONTROL = "scaffold/"
"""What the names of SCAFFOLD's control variates begin with as they travel (`rules.scaffold`)."""

Tensors = dict[str, torch.Tensor]


class Local:
    """A model at a site, and what the site keeps of its own from round to round.

    FedProx (Li et al. 2020, "Federated optimization in heterogeneous networks", algorithm 2): adds mu (w - w of the
    round) to each gradient, that of the objective's mu/2 ||w - w of the round||^2.

    SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II): adds c - c_i to each gradient; after the round c_i
    becomes c_i - c + (x - y) / (sum of the steps' rates), with the weights x before it and y after it. c comes with
    the model, c plus the change of c_i goes back, c_i stays.

    FedPer (Arivazhagan et al. 2019): the head's tensors stay.
    """

    def __init__(self, model: Classifier, algorithm: Algorithm) -> None:
        self.model, self.algorithm = model, algorithm
        self._scaffold = algorithm.rule == "scaffold"
        self._own = _copies(self._head)
        self._first = self._own
        self._control, self._own_control = self._no_control(), self._no_control()

    @property
    def _head(self) -> Tensors:
        """What of the model is this site's own."""
        encoder = f"{self.model.family.encoder}."
        here = self.algorithm.personal == "head"
        return {name: tensor for name, tensor in trained(self.model).items() if here and not name.startswith(encoder)}

    @property
    def _shared(self) -> Tensors:
        own = self._head
        return {name: tensor for name, tensor in trained(self.model).items() if name not in own}

    def tensors(self) -> dict[str, np.ndarray]:
        """What travels, as `kws.model.packed`."""
        control = packed(self.model, self._control) if self._scaffold else {}
        return packed(self.model, self._shared) | {f"{CONTROL}{name}": array for name, array in control.items()}

    def load(self, tensors: Mapping[str, np.ndarray]) -> None:
        """Take what has come, beside what is this site's own.

        Raises:
            ModelError: names or shapes are not those of the model.
        """
        unpack(self.model, self._shared, tensors)
        if self._scaffold:
            self._control = self._no_control()
            unpack(self.model, self._control, tensors, CONTROL)
        self._put_own()

    def train(
        self, optimizer: torch.optim.Optimizer, clips: Clips | Heard, training: Training, done: int
    ) -> dict[str, float]:
        """One round, after `done` rounds; what it measures is said by `kws.training.train_round`."""
        if not training.keep_optimizer:
            optimizer.state.clear()
        begin = _copies(self._shared) if self._scaffold or self.algorithm.proximal else {}
        rates = dict.fromkeys(begin, 0.0)
        metrics = train_round(self.model, optimizer, clips, training, done, self._correction(optimizer, begin, rates))
        self._own = _copies(self._head)
        if self._scaffold:
            self._renew_control(begin, rates)
        return metrics

    def kept(self) -> dict[str, Tensors]:
        """What the site has to keep from round to round, beside its optimizer's state."""
        return {"own": dict(self._own), "control": dict(self._own_control)}

    def restore(self, kept: Mapping[str, Tensors] | None) -> None:
        """Go on with what was kept; None: begin anew."""
        self._own, self._own_control = (
            (self._first, self._no_control()) if kept is None else (dict(kept["own"]), dict(kept["control"]))
        )
        self._put_own()

    def own_tensors(self) -> dict[str, np.ndarray]:
        """What is this site's own and never travels."""
        return {name: tensor.cpu().numpy() for name, tensor in self._own.items()}

    def _no_control(self) -> Tensors:
        return {name: torch.zeros_like(tensor) for name, tensor in self._shared.items()} if self._scaffold else {}

    def _put_own(self) -> None:
        with torch.no_grad():
            for name, tensor in self._head.items():
                tensor.copy_(self._own[name])

    def _correction(
        self, optimizer: torch.optim.Optimizer, begin: Tensors, rates: dict[str, float]
    ) -> Callable[[], None]:
        """What is done to the gradients of each step; adds up the steps' rates."""
        names = {id(tensor): name for name, tensor in self._shared.items() if name in begin}
        pull, device = self.algorithm.proximal, next(self.model.parameters()).device
        push = {}
        if self._scaffold:
            push = {name: c - self._own_control[name].to(device) for name, c in self._control.items()}

        def correct() -> None:
            for group in optimizer.param_groups:
                for weights in group["params"]:
                    name = names.get(id(weights))
                    if name is None or weights.grad is None:
                        continue
                    rates[name] += group["lr"]
                    if pull:
                        weights.grad.add_(weights.detach() - begin[name], alpha=pull)
                    if push:
                        weights.grad.add_(push[name])

        return correct

    def _renew_control(self, begin: Tensors, rates: Mapping[str, float]) -> None:
        for name, after in self._shared.items():
            if rates[name] > 0:
                mean = (begin[name] - after.detach()) / rates[name]  # of the gradients, as they were corrected
                change = mean - self._control[name]
                self._own_control[name] = self._own_control[name].to(after.device) + change
                self._control[name] = self._control[name] + change


def _copies(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}
