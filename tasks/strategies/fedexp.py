"""FedExP: ``x ← x + η_g · mean Δ`` with ``η_g = max(1, Σ‖Δ_i‖² / (2 n (‖mean Δ‖² + ε)))``.

Jhunjhunwala et al., *FedExP: Speeding Up Federated Averaging via Extrapolation*, arXiv 2301.09604, Algorithm 1. The
norms are over the parameters, in double precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from torch import Tensor

from tasks.detectors.roles import Roles
from tasks.spec.strategies import FedExPSpec
from tasks.strategies.base import (
    LocalTurn,
    Planned,
    ServerResult,
    ServerRound,
    Strategy,
    Tensors,
    check_figure,
    stepped,
    turn_roles,
)
from tasks.strategies.sums import Counted, Sums
from tasks.training.local import TrainingResult

SQUARED_NORM = "squared_norm"
# So many values are summed by one thread, so that the sum does not depend on the number of threads.
_STEP = 1 << 14


def squared_norm(changes: Iterable[Tensor]) -> float:
    """Return the sum of the squares of all values, in double precision."""
    return math.fsum(
        float(part.double().square_().sum()) for change in changes for part in change.reshape(-1).split(_STEP)
    )


def _of_change(start: Tensors, end: Tensors, roles: Roles) -> float:
    return squared_norm(end[name] - start[name] for name, role in roles.items() if role.kind == "parameter")


class FedExP(Strategy[FedExPSpec]):
    """The server goes further than the mean where the clients' changes disagree, never less far."""

    figures = (SQUARED_NORM,)

    def figures_of(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> dict[str, float]:
        return {SQUARED_NORM: _of_change(turn.model, state, turn_roles(turn))}

    def check_figures(self, client: Counted, planned: Planned) -> None:
        if planned.update is not None:
            check_figure(client, SQUARED_NORM, _of_change(planned.start, planned.update, planned.roles_of()))

    def server_lr(self, clients: Iterable[Counted], squared_norm_of_mean: float) -> float:
        """Return ``η_g``."""
        squares = [client.figures[SQUARED_NORM] for client in clients]
        divisor = 2 * len(squares) * (squared_norm_of_mean + self.spec.epsilon)
        return max(1.0, math.fsum(squares) / divisor) if divisor else 1.0

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        mean = sums.take()
        changes = (
            mean[name] - round.start[name].float() for name, role in round.roles.items() if role.kind == "parameter"
        )
        rate = self.server_lr(sums.counted, squared_norm(changes))
        return ServerResult(stepped(mean, round, lambda name, change: change * rate))


METHOD = FedExP
