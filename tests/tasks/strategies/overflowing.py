"""Turns on a CPU in which mixed precision skips steps, because their scaled gradients overflow."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tasks.data.loading import Batch
from tasks.strategies.base import LocalOutcome
from tests.tasks.strategies.small_federation import PLAIN, Federation, quadratic

AMP = PLAIN.model_copy(update={"amp": True})


def overflowing(*, first: int, then: int) -> list[Batch]:
    """Return batches whose steps are skipped, then some with the loss ``½ (w - 10)²`` whose steps are taken."""
    return quadratic(1e34, 10, first) + quadratic(1, 10, then)


def turn_of(federation: Federation) -> LocalOutcome:
    """Return the outcome of a turn of client 1."""
    with tempfile.TemporaryDirectory() as folder:
        return federation.method.train(federation.turn("1", Path(folder)))
