"""Compute by how much a figure may get worse before it counts as a regression, by :mod:`tasks.suite.regression`."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

from tasks.spec.suite import RegressionRule
from tasks.spec.suite_records import SuiteResult
from tasks.suite.groups import KINDS, Figure, Group, figures_of, groups_of
from tasks.suite.pairs import Pair, present, scale_of
from tasks.suite.spread import FamilySpread, Variance, critical_t, sample_variance

# Standard deviations under this part of a figure's scale are too small to matter.
_LEAST = 0.1
Variances = Mapping[tuple[str, Figure], Variance]


class Limits:
    """The limits of ``pairs``, which are all pairs of one comparison, in units of each pair's scale."""

    def __init__(
        self, reference: SuiteResult, result: SuiteResult, pairs: Sequence[Pair], rule: RegressionRule
    ) -> None:
        self.rule = rule
        self.count = Counter(pair.figure.kind for pair in pairs)
        self.seeds = {**_over_seeds(result, rule), **_over_seeds(reference, rule)}
        self.differences = {
            pair.key: sample_variance(pair.differences)
            for pair in pairs
            if pair.same_seeds and len(pair.before) > 1 and any(pair.differences)
        }
        self.of_seeds, self.of_differences = _family(self.seeds), _family(self.differences)
        self.alone = dict.fromkeys(pair.group.name for pair in pairs if pair.key not in self.seeds)

    def of(self, pair: Pair) -> float:
        """Return by how much the mean of ``pair`` may get worse, in units of its scale."""
        tests: list[tuple[Variance, float]] = []
        if self.of_seeds is not None:
            size = math.sqrt(1 / len(pair.before) + 1 / len(pair.after))
            tests.append((self.of_seeds.of(*pair.key), size))
        if self.of_differences is not None and pair.key in self.differences:
            variance = self.of_differences.of(*pair.key)
            tests.append((variance, math.sqrt(1 / len(pair.before))))
        level = self.rule.false_alarms / len(KINDS) / self.count[pair.figure.kind] / max(len(tests), 1)
        limits = [critical_t(level, found.freedom) * math.sqrt(found.value) * size for found, size in tests]
        floor = pair.floor(self.rule.floors)
        return max(floor, min(limits, default=floor))

    @property
    def notes(self) -> list[str]:
        """Return a note that names the groups with one seed and says where their limits come from."""
        if not self.alone:
            return []
        names = ", ".join(self.alone)
        if self.of_seeds is None:
            return [f"one seed, and no spread over seeds is known: the floors alone decide, no statistics: {names}"]
        return [f"one seed: the spread over seeds is taken from the suite's other cells: {names}"]


def _over_seeds(result: SuiteResult, rule: RegressionRule) -> Variances:
    """Return each figure's variance over seeds in units of its scale, for groups with two or more seeds."""
    found = {}
    for group in groups_of(result).values():
        whole = _whole(group)
        for figure in figures_of(whole.cells, classes=rule.classes):
            values = list(present(whole.values(figure)).values())
            if len(values) > 1:
                scale = scale_of(figure, values)
                found[group.name, figure] = sample_variance([value / scale for value in values])
    return found


def _whole(group: Group) -> Group:
    """Return ``group`` restricted to the devices that have a run at every seed."""
    return group.restricted(set.intersection(*({cell.device for cell in cells} for cells in group.by_seed.values())))


def _family(variances: Variances) -> FamilySpread[Figure] | None:
    return FamilySpread(variances, least=_LEAST**2) if variances else None
