"""How an experiment's role went, round by round, over its seeds: what the plots draw."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.suite.summary import by_seed


@dataclass(frozen=True)
class Course:
    """One entry a round, from 0 as far as every run has it; costs are up to there, on the mean over runs.

    mean, least, greatest: of the metric over seeds (of local only, each seed's mean over devices); None where a run
    has no figure.
    """

    role: Role
    n: int
    passes: tuple[float, ...]
    seconds: tuple[float, ...]
    exchanged: tuple[float, ...]
    mean: tuple[float | None, ...]
    least: tuple[float | None, ...]
    greatest: tuple[float | None, ...]

    @property
    def rounds(self) -> range:
        return range(len(self.mean))


def course_of(result: SuiteResult, experiment: str, role: Role) -> Course | None:
    """None without a run of this role (or, of local only, without a seed that has every device)."""
    groups = list(by_seed(result, experiment, role).values())
    if not groups:
        return None
    runs = [cell for group in groups for cell in group]
    length = min(len(cell.points) for cell in runs)
    values = [_values(groups, number, result.metric) for number in range(length)]
    points = [[cell.points[number] for cell in runs] for number in range(length)]
    return Course(
        role=role,
        n=len(groups),
        passes=tuple(statistics.fmean(point.passes for point in row) for row in points),
        seconds=tuple(statistics.fmean(point.seconds for point in row) for row in points),
        exchanged=tuple(statistics.fmean(point.exchanged for point in row) for row in points),
        mean=tuple(statistics.fmean(row) if row else None for row in values),
        least=tuple(min(row, default=None) for row in values),
        greatest=tuple(max(row, default=None) for row in values),
    )


def _values(groups: Sequence[Sequence[CellResult]], number: int, metric: str) -> list[float]:
    """Each seed's figure in a round; empty where a run has none, since a mean of fewer would jump."""
    seeds = []
    for group in groups:
        values = [cell.points[number].figures.get(metric) for cell in group]
        present = [value for value in values if value is not None]
        if len(present) < len(values):
            return []
        seeds.append(statistics.fmean(present))
    return seeds
