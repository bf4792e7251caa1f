"""FedAdam: ``v ← β₂ v + (1-β₂) Δ²`` (arXiv 2003.00295, Algorithm 2); see :mod:`tasks.strategies.adaptive`."""

from __future__ import annotations

from torch import Tensor

from tasks.spec.strategies import FedAdamSpec
from tasks.strategies.adaptive import Adaptive


class FedAdam(Adaptive[FedAdamSpec]):
    """The second moment is a running mean of the squared changes."""

    def second_moment(self, moment: Tensor, square: Tensor) -> Tensor:
        return moment * self.spec.beta2 + square * (1 - self.spec.beta2)


METHOD = FedAdam
