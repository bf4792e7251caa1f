"""Optimisers and the learning rate of a round."""

from __future__ import annotations

import math

import torch
from torch import nn

from tasks.spec.training import Adam, OptimizerSpec, Schedule, Sgd


def build_optimizer(model: nn.Module, spec: OptimizerSpec, lr: float) -> torch.optim.Optimizer:
    """A fresh optimiser at ``lr``; weight decay touches matrices and kernels, never norms and biases."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": spec.weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if isinstance(spec, Sgd):
        return torch.optim.SGD(groups, lr=lr, momentum=spec.momentum, nesterov=spec.nesterov)
    kind = torch.optim.Adam if isinstance(spec, Adam) else torch.optim.AdamW
    # foreach groups the update of many small tensors into few calls; the arithmetic is the same.
    return kind(groups, lr=lr, betas=spec.betas, foreach=True)


def learning_rate(lr: float, schedule: Schedule, round_number: int) -> float:
    """The learning rate of ``round_number`` (from 1): ``lr``, held, then a cosine down to ``floor · lr``."""
    done = round_number - 1 - schedule.hold
    if done <= 0 or schedule.decay == 0:
        return lr
    progress = min(done / schedule.decay, 1.0)
    return lr * (schedule.floor + (1 - schedule.floor) * (1 + math.cos(math.pi * progress)) / 2)
