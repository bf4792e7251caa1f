"""FedAdagrad: ``v ← v + Δ²`` (arXiv 2003.00295, Algorithm 2); the rest is in :mod:`tasks.strategies.adaptive`."""

from __future__ import annotations

from torch import Tensor

from tasks.spec.strategies import FedAdagradSpec
from tasks.strategies.adaptive import Adaptive


class FedAdagrad(Adaptive[FedAdagradSpec]):
    """The second moment is the sum of all squared changes."""

    def second_moment(self, moment: Tensor, square: Tensor) -> Tensor:
        return moment + square


METHOD = FedAdagrad
