"""The server's step of FedAdagrad, FedAdam and FedYogi: ``m ← β₁ m + (1-β₁) Δ``, ``x ← x + η_g m / (√v + τ)``.

Reddi et al., *Adaptive Federated Optimization*, arXiv 2003.00295, Algorithm 2. ``m`` starts at 0 and ``v`` at ``τ²``;
there is no bias correction. The three methods differ in the second moment ``v``. Both moments are the server's state,
so its memory holds three models: the mean of the updates, ``m`` and ``v``.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

import torch
from torch import Tensor

from tasks.spec.strategies import FedAdagradSpec, FedAdamSpec, FedYogiSpec
from tasks.strategies.base import ServerResult, ServerRound, State, Strategy, stepped
from tasks.strategies.sums import Sums

A = TypeVar("A", FedAdagradSpec, FedAdamSpec, FedYogiSpec)


class Adaptive(Strategy[A]):
    """FedAvg's mean change goes through an adaptive optimiser at the server. Buffers and counters do not."""

    @abstractmethod
    def second_moment(self, moment: Tensor, square: Tensor) -> Tensor:
        """Return the new ``v`` from the last one and ``Δ²``."""

    def new_model(self, sums: Sums, round: ServerRound) -> ServerResult:
        spec, moments = self.spec, State()

        def step(name: str, change: Tensor) -> Tensor:
            first = round.server[f"m/{name}"] if round.server else torch.zeros_like(change)
            second = round.server[f"v/{name}"] if round.server else torch.full_like(change, spec.tau**2)
            # Products and sums are separate operations: a fused one may round differently in some elements.
            moments[f"m/{name}"] = m = first * spec.beta1 + change * (1 - spec.beta1)
            moments[f"v/{name}"] = v = self.second_moment(second, change * change)
            return (m * spec.server_lr) / (v.sqrt() + spec.tau)

        return ServerResult(stepped(sums.take(), round, step), server=moments)
