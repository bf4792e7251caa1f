"""FedSAM: a local step uses the gradient at ``w + ρ g / ‖g‖``, with ``g`` the gradient at ``w``.

Qu et al., *Generalized Federated Learning via Sharpness Aware Minimization*, arXiv 2206.02618, Algorithm 1, which uses
SAM (arXiv 2010.01412) at the clients. The server averages as in FedAvg. Both gradients are of the same batches with the
same random draws. Only the first pass updates BatchNorm's statistics.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tasks.spec.strategies import FedSamSpec
from tasks.strategies.base import LocalTurn, Strategy
from tasks.training.rules import LocalRule, trained_parameters


class SharpnessAware(LocalRule):
    """Replaces a step's gradient by the one at the point ``rho`` up the slope."""

    twice = True

    def __init__(self, rho: float) -> None:
        self.rho = rho

    def second_gradient(self, model: nn.Module, again: Callable[[], None]) -> None:
        parameters = [parameter for parameter in trained_parameters(model).values() if parameter.grad is not None]
        gradients: list[Tensor] = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.stack([gradient.double().square().sum() for gradient in gradients]).sum().sqrt()
        if norm.device.type == "cpu" and float(norm) == 0:  # a GPU would make the host wait
            return  # there is no slope
        length = (self.rho / norm).masked_fill(norm == 0, 0)
        weights = [parameter.detach().clone() for parameter in parameters]
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.add_(gradient * length.to(gradient.dtype))
                parameter.grad = None
        again()
        with torch.no_grad():
            for parameter, weight in zip(parameters, weights, strict=True):
                parameter.copy_(weight)
            for buffer, before in buffers:
                buffer.copy_(before)


class FedSam(Strategy[FedSamSpec]):
    """Sharpness-aware local steps. ``rho`` 0 has the bits of FedAvg."""

    def rule(self, turn: LocalTurn) -> LocalRule:
        return SharpnessAware(self.spec.rho) if self.spec.rho else LocalRule()


METHOD = FedSam
