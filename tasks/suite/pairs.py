"""Pair the figures of two results: the same experiment, role and figure, with a value for each seed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from tasks.spec.suite import Floors
from tasks.spec.suite_records import SuiteResult
from tasks.suite.groups import Figure, Group, Values, figures_of, groups_of, matched

_UNITS = Floors()


@dataclass(frozen=True)
class Pair:
    """A figure of one group, by seed, before and after."""

    group: Group
    figure: Figure
    before: dict[int, float]
    after: dict[int, float]

    @property
    def key(self) -> tuple[str, Figure]:
        return self.group.name, self.figure

    @property
    def same_seeds(self) -> bool:
        return self.before.keys() == self.after.keys()

    @property
    def means(self) -> tuple[float, float]:
        return mean(self.before.values()), mean(self.after.values())

    @property
    def scale(self) -> float:
        """Return the unit of the pair's differences, spreads and limits."""
        return scale_of(self.figure, self.before.values())

    def floor(self, floors: Floors) -> float:
        """Return the figure's floor in units of ``scale``."""
        found: float = getattr(floors, self.figure.kind)
        return found / getattr(_UNITS, self.figure.kind)

    @property
    def worsening(self) -> float:
        """Return by how much the mean has got worse, in units of ``scale``; below zero if it has got better."""
        before, after = self.means
        return (after - before if self.figure.lower_is_better else before - after) / self.scale

    @property
    def differences(self) -> list[float]:
        """Return after less before for each seed, in units of ``scale``. Both sides must have the same seeds."""
        return [(self.after[seed] - value) / self.scale for seed, value in self.before.items()]


@dataclass(frozen=True)
class Lost:
    """A figure that all accepted seeds of a group have and that some seeds lack now. found: seeds that have it now."""

    group: Group
    figure: Figure
    before: dict[int, float]
    found: int


def pair_up(reference: SuiteResult, result: SuiteResult, *, classes: bool) -> tuple[list[Pair], list[Lost]]:
    """Return a pair for each figure that both results have, and the figures that the new result has lost.

    If the seeds of one result are a subset of the other's, only the common seeds are paired.
    """
    now = groups_of(result)
    pairs: list[Pair] = []
    lost: list[Lost] = []
    for key, then in groups_of(reference).items():
        if key not in now:
            continue
        before, after = matched(then, now[key])
        common = before.by_seed.keys() & after.by_seed.keys()
        if common in (before.by_seed.keys(), after.by_seed.keys()):
            before, after = before.of_seeds(common), after.of_seeds(common)
        if not before.by_seed or not after.by_seed:
            continue
        for figure in figures_of(before.cells, classes=classes):
            then_all, now_all = before.values(figure), after.values(figure)
            there, found = present(then_all), present(now_all)
            if there and len(there) == len(then_all) and len(found) < len(now_all):
                lost.append(Lost(before, figure, there, len(found)))
            elif there and found:
                pairs.append(Pair(before, figure, there, found))
    return pairs, lost


def equal_groups(pairs: Iterable[Pair]) -> list[str]:
    """Return the names of the groups whose figures are all equal to the last bit."""
    moved: dict[str, bool] = {}
    for pair in pairs:
        moved[pair.group.name] = moved.get(pair.group.name, False) or pair.before != pair.after
    return [name for name, has_moved in moved.items() if not has_moved]


def present(values: Values) -> dict[int, float]:
    """Return the values that are not None, by seed."""
    return {seed: value for seed, value in values.items() if value is not None}


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return math.fsum(found) / len(found)


def scale_of(figure: Figure, values: Iterable[float]) -> float:
    """Return the figure's scale: an amount that matters about as much for every kind, so that spreads can be pooled.

    It is the default floor; for a loss, the floor times its mean, because losses of different detectors differ in size.
    """
    found = mean(values) if figure.lower_is_better else 1.0
    unit: float = getattr(_UNITS, figure.kind)
    return unit * (found if found > 0 else 1.0)
