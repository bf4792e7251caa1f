"""The area under the curve of a run's score over the bytes that its clients exchanged.

One figure for "how good, and how soon": the mean score between the first byte and a common budget of bytes. The curve
is straight between two rounds. Before a run's first figure its score is 0. The budget is the smallest number of bytes
that any federated run of the result exchanged in all, so that every run has a score up to there. The area is from 0 to
1, like the score.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from tasks.spec.suite_records import CellResult, SuiteResult


def common_budget(result: SuiteResult) -> int:
    """Return the bytes up to which areas are taken; 0 if there is no federated run, or one exchanged nothing."""
    return min((cell.last.exchanged for cell in result.cells if cell.role == "federated"), default=0)


def area_over_bytes(cell: CellResult, metric: str, budget: int) -> float | None:
    """Return the mean score of a run up to ``budget`` bytes; None if the budget is 0 or the run has no figure.

    A run that exchanged fewer bytes than the budget has None too.
    """
    figures = [(float(point.exchanged), point.figures.get(metric)) for point in cell.points]
    known = [(exchanged, value) for exchanged, value in figures if value is not None]
    if budget <= 0 or not known or cell.last.exchanged < budget:
        return None
    if known[-1][0] < budget:  # the last rounds have no figure: the score stays
        known.append((float(budget), known[-1][1]))
    return _area(known, float(budget)) / budget


def _area(curve: Sequence[tuple[float, float]], end: float) -> float:
    """Return the area below straight lines between the points of ``curve``, up to ``end``."""
    parts = []
    for (left, low), (right, high) in itertools.pairwise(curve):
        if left >= end or right <= left:
            continue
        stop = min(right, end)
        at_stop = low + (high - low) * (stop - left) / (right - left)
        parts.append((stop - left) * (low + at_stop) / 2)
    return math.fsum(parts)
