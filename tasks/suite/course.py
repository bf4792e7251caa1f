"""Figures and costs of an experiment's role by round, over its seeds, for plots."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.suite.summary import by_seed, spread_of


@dataclass(frozen=True)
class Course:
    """Figures and costs with one entry for each round, from 0 to the last round that every run has.

    passes, seconds, exchanged: costs up to that round, as the mean over runs.
    mean: of the metric over seeds (for local only, of each seed's mean over devices); None if a run has no figure in
        that round.
    low, high: the mean less, and plus, the sample standard deviation over seeds; the mean itself with one seed.
    """

    role: Role
    n: int
    passes: tuple[float, ...]
    seconds: tuple[float, ...]
    exchanged: tuple[float, ...]
    mean: tuple[float | None, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]

    @property
    def rounds(self) -> range:
        return range(len(self.mean))


def course_of(result: SuiteResult, experiment: str, role: Role) -> Course | None:
    """Return the course of a role; None if it has no run, or if no seed of local only has a run of every device."""
    groups = list(by_seed(result, experiment, role).values())
    if not groups:
        return None
    runs = [cell for group in groups for cell in group]
    length = min(len(cell.points) for cell in runs)
    spreads = [spread_of(_values(groups, number, result.metric)) for number in range(length)]
    points = [[cell.points[number] for cell in runs] for number in range(length)]
    return Course(
        role=role,
        n=len(groups),
        passes=tuple(statistics.fmean(point.passes for point in row) for row in points),
        seconds=tuple(statistics.fmean(point.seconds for point in row) for row in points),
        exchanged=tuple(statistics.fmean(point.exchanged for point in row) for row in points),
        mean=tuple(None if spread is None else spread.mean for spread in spreads),
        low=tuple(None if spread is None else spread.mean - (spread.sd or 0.0) for spread in spreads),
        high=tuple(None if spread is None else spread.mean + (spread.sd or 0.0) for spread in spreads),
    )


def _values(groups: Sequence[Sequence[CellResult]], number: int, metric: str) -> list[float]:
    """Return each seed's figure in a round; empty if a run has none, because a mean over fewer runs would jump."""
    seeds = []
    for group in groups:
        values = [cell.points[number].figures.get(metric) for cell in group]
        present = [value for value in values if value is not None]
        if len(present) < len(values):
            return []
        seeds.append(statistics.fmean(present))
    return seeds
