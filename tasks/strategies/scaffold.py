"""SCAFFOLD: local steps use ``g - c_i + c``, where the control variates ``c_i`` and ``c`` estimate the drift.

Karimireddy et al., *SCAFFOLD: Stochastic Controlled Averaging for Federated Learning*, arXiv 1910.06378, Algorithm 1,
option II. With ``r_i`` the sum of the learning rates of the steps that client ``i`` took:

    c_i⁺ = c_i - c + (x - y_i) / r_i
    c    ← c + (1/N) Σ (c_i⁺ - c_i)
    x    ← x + η_g · mean of Δ_i

The server needs no control variates from clients: ``Σ (c_i⁺ - c_i) = -n c + Σ (x - y_i) / r_i``, whose last sum is a
mean of the updates with the weights ``1 / r_i``. ``c`` and ``c_i`` start at 0; ``c`` is shared with the clients, and
``c_i`` is the client's state. For a parameter whose learning rate has a factor, ``r_i`` is multiplied by it. The
server's memory holds two models, both means of the updates; ``c`` replaces one of them tensor by tensor.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tasks.spec.strategies import ScaffoldSpec
from tasks.strategies.base import (
    LocalTurn,
    Planned,
    ServerResult,
    ServerRound,
    State,
    Strategy,
    Tensors,
    check_figure,
    stepped,
    turn_roles,
)
from tasks.strategies.sums import MODEL, Counted, Sums
from tasks.training.local import TrainingResult
from tasks.training.rules import LocalRule, add_to_gradient, trained_parameters

RATES = "sum_of_rates"
BY_RATE = "by_rate"


class DriftCorrection(LocalRule):
    """Adds ``c - c_i`` to the gradient."""

    def __init__(self, shared: Tensors, own: Tensors) -> None:
        self._shared, self._own = shared, own

    def begin(self, model: nn.Module) -> None:
        self.terms: list[tuple[nn.Parameter, Tensor]] = []
        for name, parameter in trained_parameters(model).items():
            term = torch.zeros_like(parameter)
            if name in self._shared:
                term += self._shared[name].to(term.device)
            if name in self._own:
                term -= self._own[name].to(term.device)
            self.terms.append((parameter, term))

    def correct_gradient(self) -> None:
        for parameter, term in self.terms:
            add_to_gradient(parameter, term)


class Scaffold(Strategy[ScaffoldSpec]):
    """Control variates for the server and each client. Round 1, from ``c = 0``, has the bits of uniform FedAvg."""

    means = (MODEL, BY_RATE)
    figures = (RATES,)
    client_state = True

    def rule(self, turn: LocalTurn) -> LocalRule:
        return DriftCorrection(turn.shared, turn.own) if turn.shared or turn.own else LocalRule()

    def figures_of(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> dict[str, float]:
        return {RATES: math.fsum(result.rates)}

    def new_client_state(self, turn: LocalTurn, state: Tensors, result: TrainingResult) -> State:
        rates = math.fsum(result.rates)
        variate: State = {}
        for name, role in turn_roles(turn).items():
            if role.trained:
                variate[name] = (turn.model[name] - state[name]).div_(rates * role.rate)
                if name in turn.own:
                    variate[name] += turn.own[name]
                if name in turn.shared:
                    variate[name] -= turn.shared[name]
        return variate

    def check_figures(self, client: Counted, planned: Planned) -> None:
        check_figure(client, RATES, math.fsum(planned.rates))

    def weights_of(self, client: Counted) -> dict[str, float]:
        return {MODEL: client.weight, BY_RATE: client.weight / client.figures[RATES]}

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        share = len(sums.counted) / round.clients
        by_rate, factor = sums.take(BY_RATE), share * sums.weight(BY_RATE) / sums.weight()
        shared: State = {}
        for name, role in round.roles.items():
            if role.trained:
                drift = (round.start[name] - by_rate.pop(name)).mul_(factor / role.rate)
                old = round.shared.get(name)
                shared[name] = drift if old is None else (old * (1 - share)).add_(drift)
        model = stepped(sums.take(), round, lambda name, change: change * self.spec.server_lr)
        return ServerResult(model, shared=shared)


METHOD = Scaffold
