"""Optimisers and the learning rate of a round."""

from __future__ import annotations

import math

import torch

from tasks.detectors.base import Detector
from tasks.spec.training import Adam, OptimizerSpec, Schedule, Sgd


def build_optimizer(
    detector: Detector, spec: OptimizerSpec, lr: float, *, fused: bool | None = None
) -> torch.optim.Optimizer:
    """Build an optimiser at ``lr``. Weight decay applies to matrices and kernels, never to norms and biases.

    The detector may set a factor of the learning rate for some parameters, which :func:`set_learning_rate` keeps.
    fused: whether one kernel updates many tensors; None: on a GPU.
    """
    groups = []
    for factor, parameters in detector.learning_rate_factors().items():
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        for matrices, decay in ((True, spec.weight_decay), (False, 0.0)):
            chosen = [parameter for parameter in trained if (parameter.ndim > 1) is matrices]
            groups.append({"params": chosen, "weight_decay": decay, "lr": lr * factor, "factor": factor})
    if fused is None:
        fused = any(parameter.is_cuda for parameter in detector.parameters())
    if isinstance(spec, Sgd):
        return torch.optim.SGD(
            groups, lr=lr, momentum=spec.momentum, nesterov=spec.nesterov, fused=True if fused else None
        )
    kind = torch.optim.Adam if isinstance(spec, Adam) else torch.optim.AdamW
    # foreach groups the update of many small tensors into few calls; the arithmetic is the same.
    return kind(groups, lr=lr, betas=spec.betas, foreach=not fused, fused=fused)


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group to its factor of ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["factor"]


def planned_rates(batches: int, accumulate: int, lr: float, warmup_steps: int) -> tuple[float, ...]:
    """Return the learning rate of each optimiser step of a turn of ``batches`` batches, with a linear warm-up."""
    steps = -(-batches // accumulate)
    return tuple(lr * (step + 1) / warmup_steps if step < warmup_steps else lr for step in range(steps))


def learning_rate(lr: float, schedule: Schedule, round_number: int) -> float:
    """Return the learning rate of ``round_number`` (from 1): first ``lr``, then a cosine down to ``floor · lr``."""
    done = round_number - 1 - schedule.hold
    if done <= 0 or schedule.decay == 0:
        return lr
    progress = min(done / schedule.decay, 1.0)
    return lr * (schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * progress)) / 2)
