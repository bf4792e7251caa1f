"""FedNova: ``x ← x + τ_eff Σ p_i Δ_i / ‖a_i‖₁`` with ``τ_eff = Σ p_i ‖a_i‖₁``.

Wang et al., *Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization*, arXiv 2007.07481,
Algorithm 1. ``a_i`` holds the weight of each gradient of client ``i`` in ``Δ_i``: ``‖a_i‖₁`` is the number of steps for
plain SGD, and ``[K - ρ(1-ρ^K)/(1-ρ)] / (1-ρ)`` for ``K`` steps with momentum ``ρ`` at a constant rate. The
server's memory holds two models, both means of the updates.
"""

from __future__ import annotations

import math

from tasks.spec.strategies import FedNovaSpec
from tasks.spec.training import Sgd
from tasks.strategies.base import (
    LocalTurn,
    Planned,
    ServerResult,
    ServerRound,
    Strategy,
    Tensors,
    check_figure,
)
from tasks.strategies.sums import MODEL, Counted, Sums
from tasks.training.local import TrainingResult

NORM = "norm_of_steps"
NORMALISED = "normalised"


def norm_of_steps(rates: tuple[float, ...], lr: float, momentum: float) -> float:
    """Return ``‖a_i‖₁`` for SGD steps with these rates, each divided by ``lr``, the rate of the round.

    A step adds ``rate · buffer``, and the buffer holds the gradient of each step so far, times ``momentum`` for each
    step since.
    """
    total = buffer = 0.0
    for rate in rates:
        buffer = momentum * buffer + 1
        total += rate / lr * buffer
    return total


class FedNova(Strategy[FedNovaSpec]):
    """Clients count by their gradients' weight, not by how many steps they took. Buffers are averaged as in FedAvg."""

    means = (MODEL, NORMALISED)
    figures = (NORM,)

    def figures_of(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> dict[str, float]:
        return {NORM: norm_of_steps(result.rates, turn.learning_rate, self._momentum)}

    @property
    def _momentum(self) -> float:
        assert isinstance(self.training.optimizer, Sgd), "the specification allows SGD alone"
        return self.training.optimizer.momentum

    def check_figures(self, client: Counted, planned: Planned) -> None:
        expected = norm_of_steps(planned.rates, planned.learning_rate, self._momentum)
        check_figure(client, NORM, expected)

    def weights_of(self, client: Counted) -> dict[str, float]:
        return {MODEL: client.weight, NORMALISED: client.weight / client.figures[NORM]}

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        model, normalised = sums.take(), sums.take(NORMALISED)
        counted = [client for client in sums.counted if client.weight]
        if len({client.figures[NORM] for client in counted}) == 1:
            return ServerResult(model)  # the formula is FedAvg's mean, and the mean has its bits
        effective = math.fsum(client.weight * client.figures[NORM] for client in counted) / sums.weight()
        factor = effective * sums.weight(NORMALISED) / sums.weight()
        for name, role in round.roles.items():
            if role.kind == "parameter":
                start = round.start[name].float()
                model[name] = start + (normalised.pop(name) - start).mul_(factor)
        return ServerResult(model)


METHOD = FedNova
