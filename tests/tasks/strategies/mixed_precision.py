"""Turns on a CPU with mixed precision, whose gradients are larger than the largest float16, 65,504."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.data.batches import Batch
from tasks.strategies.base import LocalOutcome
from tests.tasks.strategies.small_federation import PLAIN, Federation, quadratic

AMP = PLAIN.model_copy(update={"amp": True})
LARGE_LR = 1e-7


def large(steps: int) -> list[Batch]:
    """Return batches with the loss ``½ 10⁶ (w - 10)²``. With :data:`LARGE_LR` a step from 0 goes to 1."""
    return quadratic(1e6, 10, steps)


def turn_of(federation: Federation) -> LocalOutcome:
    """Return the outcome of a turn of client 1."""
    with tempfile.TemporaryDirectory() as folder:
        return federation.method.train(federation.turn("1", Path(folder)))
