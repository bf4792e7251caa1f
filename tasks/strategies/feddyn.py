"""FedDyn: the local loss gets ``- ⟨g_i, w⟩ + α/2 ‖w - x‖²``, whose linear term makes local and global optima agree.

Acar et al., *Federated Learning Based on Dynamic Regularization*, arXiv 2111.04263, Algorithm 1:

    g_i ← g_i - α Δ_i
    h   ← h - (α/N) Σ Δ_i
    x   ← mean of y_i - h/α

``g_i``, the client's state, and ``h``, the server's, start at 0. The server's memory holds two models: the
mean of the updates and ``h``.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tasks.spec.strategies import FedDynSpec
from tasks.strategies.base import (
    LocalTurn,
    ServerResult,
    ServerRound,
    State,
    Strategy,
    Tensors,
    stepped,
    turn_roles,
)
from tasks.strategies.sums import Sums
from tasks.training.local import TrainingResult
from tasks.training.rules import LocalRule, add_to_gradient, trained_parameters


class DynamicRegulariser(LocalRule):
    """Adds ``α (w - x) - g_i`` to the gradient."""

    def __init__(self, alpha: float, own: Tensors) -> None:
        self.alpha = alpha
        self._own = own

    def begin(self, model: nn.Module) -> None:
        self.parameters: list[tuple[nn.Parameter, Tensor, Tensor]] = []
        for name, parameter in trained_parameters(model).items():
            own = self._own[name].to(parameter.device) if name in self._own else torch.zeros_like(parameter)
            self.parameters.append((parameter, parameter.detach().clone(), own))

    def correct_gradient(self) -> None:
        for parameter, start, own in self.parameters:
            add_to_gradient(parameter, (parameter.detach() - start).mul_(self.alpha).sub_(own))


class FedDyn(Strategy[FedDynSpec]):
    """A dynamic regulariser. The server adds the mean of all drifts so far to the mean of the models."""

    client_state = True

    def rule(self, turn: LocalTurn) -> LocalRule:
        return DynamicRegulariser(self.spec.alpha, turn.own)

    def new_client_state(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> State:
        gradient: State = {}
        for name, role in turn_roles(turn).items():
            if role.trained:
                gradient[name] = (turn.model[name] - state[name]).mul_(self.spec.alpha)
                if name in turn.own:
                    gradient[name] += turn.own[name]
        return gradient

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        share, drift = len(sums.counted) / round.clients, State()

        def step(name: str, change: Tensor) -> Tensor:
            moved = change * (self.spec.alpha * share)
            drift[name] = -moved if name not in round.server else round.server[name] - moved
            return change - drift[name] / self.spec.alpha

        return ServerResult(stepped(sums.take(), round, step), server=drift)


METHOD = FedDyn
