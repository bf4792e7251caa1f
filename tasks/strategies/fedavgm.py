"""FedAvgM: ``m ← β m + Δ``, ``x ← x + η_g m``, with ``Δ = Σ p_i Δ_i``.

Hsu et al., *Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification*, arXiv
1909.06335, section 4.2. ``m`` starts at 0 and is the server's state, so its memory holds two models.
"""

from __future__ import annotations

from torch import Tensor

from tasks.spec.strategies import FedAvgMSpec
from tasks.strategies.base import ServerResult, ServerRound, State, Strategy, stepped
from tasks.strategies.sums import Sums


class FedAvgM(Strategy[FedAvgMSpec]):
    """Momentum at the server. ``momentum`` 0 with ``server_lr`` 1 has the bits of FedAvg."""

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        momentum: State = {}

        def step(name: str, change: Tensor) -> Tensor:
            new = change if name not in round.server else (round.server[name] * self.spec.momentum).add_(change)
            momentum[name] = new.clone() if new is change else new
            return new * self.spec.server_lr

        return ServerResult(stepped(sums.take(), round, step), server=momentum)


METHOD = FedAvgM
