"""``x ← x + Δ · min(1, C / ‖Δ‖)``, with ``Δ = Σ p_i Δ_i`` over all parameters and ``C`` the field ``max_norm``."""

from __future__ import annotations

import math

from fedbench_example.spec import ClippedFedAvgSpec
from tasks.strategies.base import ServerResult, ServerRound, Strategy, stepped
from tasks.strategies.sums import Sums


class ClippedFedAvg(Strategy[ClippedFedAvgSpec]):
    """FedAvg with a clipped step. A step that is short enough has the bits of FedAvg."""

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        mean = sums.take()
        squares = [
            float((mean[name] - round.start[name].float()).double().square().sum())
            for name, role in round.roles.items()
            if role.kind == "parameter"
        ]
        norm = math.sqrt(math.fsum(squares))
        factor = min(1.0, self.spec.max_norm / norm) if norm else 1.0
        return ServerResult(stepped(mean, round, lambda name, change: change * factor))
