"""FedProx: each local gradient gets the proximal term ``μ (w - x)``; the server averages as in FedAvg.

Li et al., *Federated Optimization in Heterogeneous Networks*, arXiv 1812.06127, Algorithm 2: the local loss is
``F_i(w) + μ/2 ‖w - x‖²``. The term is part of the gradient, so clipping and the optimiser apply to it too.
"""

from __future__ import annotations

from torch import nn

from tasks.spec.strategies import FedProxSpec
from tasks.strategies.base import LocalTurn, Strategy
from tasks.training.rules import LocalRule, add_to_gradient, trained_parameters


class Proximal(LocalRule):
    """Adds ``μ (w - x)`` to the gradient."""

    def __init__(self, mu: float) -> None:
        self.mu = mu

    def begin(self, model: nn.Module) -> None:
        # Copies: a reference to the live parameters would make the term 0 in every step.
        self.parameters = [(parameter, parameter.detach().clone()) for parameter in trained_parameters(model).values()]

    def correct_gradient(self) -> None:
        for parameter, start in self.parameters:
            add_to_gradient(parameter, (parameter.detach() - start).mul_(self.mu))


class FedProx(Strategy[FedProxSpec]):
    """FedAvg with a proximal term. ``mu`` 0 has the bits of FedAvg."""

    def rule(self, turn: LocalTurn) -> LocalRule:
        return Proximal(self.spec.mu) if self.spec.mu else LocalRule()


METHOD = FedProx
