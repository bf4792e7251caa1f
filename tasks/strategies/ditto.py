"""Ditto: beside FedAvg, each client keeps a model ``v_i`` of its own, held near the global one.

Li et al., *Ditto: Fair and Robust Federated Learning Through Personalization*, arXiv 2012.04221, Algorithm 1:

    v_i ← v_i - η (∇F_i(v_i) + λ (v_i - x))

``v_i``, the client's state, starts at the initial global model. A turn trains ``x`` as FedAvg does, and then ``v_i`` on
the same batches from the same seed, each with a fresh optimiser. The loss of the turn is that of ``x``.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from tasks.detectors.state import check_finite, state_of
from tasks.errors import ClientError
from tasks.spec.strategies import DittoSpec
from tasks.strategies.base import LocalOutcome, LocalTurn, Strategy, Tensors
from tasks.strategies.partly_local import load_own
from tasks.training.rules import LocalRule, add_to_gradient, trained_parameters


class HeldNear(LocalRule):
    """Adds ``λ (v - x)`` to the gradient. centre: ``x``."""

    def __init__(self, proximity: float, centre: Tensors) -> None:
        self.proximity = proximity
        self._centre = centre

    def begin(self, model: nn.Module) -> None:
        # Copies, on the device: the parameters themselves are at v.
        self.parameters: list[tuple[nn.Parameter, Tensor]] = [
            (parameter, self._centre[name].to(parameter.device, copy=True))
            for name, parameter in trained_parameters(model).items()
        ]

    def correct_gradient(self) -> None:
        for parameter, centre in self.parameters:
            add_to_gradient(parameter, (parameter.detach() - centre).mul_(self.proximity))


class Ditto(Strategy[DittoSpec]):
    """FedAvg, and a model of its own for each client. With ``proximity`` 0 it is trained alone."""

    client_state = True
    begins_with_model = True

    def train(self, turn: LocalTurn) -> LocalOutcome:
        if not turn.own:
            raise ClientError(f"client {turn.client}: its state: expected a model of its own, found none")
        result = turn.train()
        # Copies: the detector's tensors become those of the client's own model.
        update = {name: tensor.clone() for name, tensor in state_of(turn.detector).items()}
        check_finite(update, client=turn.client)
        load_own(turn, frozenset(update))
        near = HeldNear(self.spec.proximity, turn.model) if self.spec.proximity else LocalRule()
        personal = turn.train(near)
        own = state_of(turn.detector)
        check_finite(own, client=turn.client)
        return LocalOutcome(replace(result, seconds=result.seconds + personal.seconds), update, own=own)


METHOD = Ditto
