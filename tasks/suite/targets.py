"""What each run needed to reach the target: rounds, optimiser steps, bytes and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.spec.suite_records import CellResult, Point
from tasks.suite.summary import Spread, spread_of


@dataclass(frozen=True)
class ToTarget:
    """What some runs needed up to the first round that reached the target; means over those that reached it.

    reached: how many runs did, out of ``runs``. rounds, steps, exchanged, seconds: None if no run did, or if it is not
    on record. missed: the last round of each run that never did.
    """

    runs: int
    reached: int
    rounds: Spread | None
    steps: Spread | None
    exchanged: Spread | None
    seconds: Spread | None
    missed: tuple[int, ...]


def to_target(cells: Sequence[CellResult], metric: str, target: float) -> ToTarget:
    """Return what ``cells``, the runs of one experiment and role, needed to reach ``target`` of ``metric``."""
    hits = [first_at(cell, metric, target) for cell in cells]
    found = [point for point in hits if point is not None]
    return ToTarget(
        runs=len(cells),
        reached=len(found),
        rounds=spread_of(float(point.round) for point in found),
        steps=spread_of(point.steps for point in found),
        exchanged=spread_of(float(point.exchanged) for point in found),
        seconds=spread_of(point.seconds for point in found),
        missed=tuple(cell.last.round for cell, point in zip(cells, hits, strict=True) if point is None),
    )


def first_at(cell: CellResult, metric: str, target: float) -> Point | None:
    """Return the first round whose ``metric`` is at least ``target``; None if no round is."""
    for point in cell.points:
        value = point.figures.get(metric)
        if value is not None and value >= target:
            return point
    return None
