"""FedYogi: ``v ← v - (1-β₂) Δ² sign(v - Δ²)`` (arXiv 2003.00295, Algorithm 2); see :mod:`tasks.strategies.adaptive`."""

from __future__ import annotations

from torch import Tensor

from tasks.spec.strategies import FedYogiSpec
from tasks.strategies.adaptive import Adaptive


class FedYogi(Adaptive[FedYogiSpec]):
    """The second moment moves towards the squared change by a part of that square, so it cannot jump."""

    def second_moment(self, moment: Tensor, square: Tensor) -> Tensor:
        return moment - (square * (1 - self.spec.beta2)) * (moment - square).sign()


METHOD = FedYogi
