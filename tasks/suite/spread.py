"""Estimate how much a figure varies from seed to seed, from few seeds of several experiments.

Two or three seeds tell little about one experiment's spread. A test that takes their standard deviation as the truth
has limits that are absurdly wide or, by luck, absurdly narrow. One common spread for all experiments is wrong as well,
because they differ (a class with few test objects is noisier than one with many). The *moderated* variance of Smyth
(2004) lies in between: each unit's variance is drawn towards that of its family,

    s̃² = (d₀ s₀² + d s²) / (d₀ + d),   with d₀ + d degrees of freedom.

Here s², with d degrees of freedom, is the unit's own variance, s₀² is the variance that is expected in the family, and
d₀ measures how alike the family's variances are. It is large if they differ no more than sample variances of equal
spreads do, and small if they differ more. Both are estimated from the family's data, by the moments of log s². The more
the family's variances differ, the more a unit's own variance counts, and the heavier is the t distribution's tail.

The expected variance depends on the figure: a class with few test objects is noisy in every experiment. So each figure
has its own s₀², which is drawn towards that of all figures.

Two things are added, because families are small here. Few variances do not show how much variances differ, so a guess
is included in the estimate. Nor do they show their centre precisely: the variance of their estimated mean is added to
the variance between them.

Gordon K. Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", Statistical Applications in Genetics and Molecular Biology 3(1), 2004, Article 3, sections 5 and 6.2.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

# Few units do not show how much their variances differ. So the estimate includes a guess, with the weight of
# GUESS_UNITS further units: variances differ as sample variances with GUESSED_FREEDOM degrees of freedom do.
GUESSED_FREEDOM = 4.0
GUESS_UNITS = 4
# A figure's own mean of log s², from n groups, has the weight (n - 1) / (n - 1 + EFFECT_UNITS).
EFFECT_UNITS = 2
# Correlation between the sampling errors of log s² of two figures of the same runs. It is about the square of the
# figures' own correlation, which is taken to be 0.7.
COMMON_LUCK = 0.5

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Variance:
    """A variance and its degrees of freedom."""

    value: float
    freedom: float


def sample_variance(values: Sequence[float]) -> Variance:
    """Return the unbiased variance of at least two values."""
    mean = math.fsum(values) / len(values)
    freedom = len(values) - 1
    return Variance(math.fsum((value - mean) ** 2 for value in values) / freedom, freedom)


class FamilySpread(Generic[Key]):
    """The prior that variances of figures have in common, estimated from one or more, by (group, figure).

    The figures of a group are from the same runs, so half of their sampling error is common. How precisely the family's
    centre is known therefore depends on the number of groups, not of variances.

    least: a variance too small to matter. Smaller ones (zero for a class that is never found) are raised to it, because
        their logarithms would dominate.
    """

    def __init__(self, own: Mapping[tuple[str, Key], Variance], *, least: float) -> None:
        from scipy.special import digamma, polygamma  # here, so that the core loads without it

        self._own = own
        logs = {
            key: math.log(max(unit.value, least)) - float(digamma(unit.freedom / 2)) + math.log(unit.freedom / 2)
            for key, unit in own.items()
        }
        self._centre = math.fsum(logs.values()) / len(logs)
        self._offsets = _figure_offsets(logs, self._centre)
        squares = [(value - self._expected_log(figure)) ** 2 for (_, figure), value in logs.items()]
        freedom = len(logs) - 1
        sampling = math.fsum(float(polygamma(1, unit.freedom / 2)) for unit in own.values()) / len(own)
        between = max(0.0, math.fsum(squares) / freedom - sampling) if freedom else 0.0
        guess = float(polygamma(1, GUESSED_FREEDOM / 2))
        with_guess = (freedom * between + GUESS_UNITS * guess) / (freedom + GUESS_UNITS)
        groups = len({group for group, _ in own})
        self._half = _trigamma_inverse(with_guess + COMMON_LUCK * sampling / groups)
        self._shift = float(digamma(self._half)) - math.log(self._half)

    def prior(self, figure: Key) -> Variance:
        """Return s₀² and d₀ of a figure, which are the same for every group."""
        return Variance(math.exp(self._expected_log(figure) + self._shift), 2 * self._half)

    def of(self, group: str, figure: Key) -> Variance:
        """Return the moderated variance; the prior if the group has no variance of its own, because it has one seed."""
        prior, own = self.prior(figure), self._own.get((group, figure))
        if own is None:
            return prior
        freedom = prior.freedom + own.freedom
        return Variance((prior.freedom * prior.value + own.freedom * own.value) / freedom, freedom)

    def _expected_log(self, figure: Key) -> float:
        """Return the expected log s² of a figure."""
        return self._centre + self._offsets.get(figure, 0.0)


def _figure_offsets(logs: Mapping[tuple[str, Key], float], centre: float) -> dict[Key, float]:
    """Return each figure's mean difference from ``centre``, drawn towards 0. It is 0 if only one group has it."""
    members: dict[Key, list[float]] = defaultdict(list)
    for (_, figure), value in logs.items():
        members[figure].append(value - centre)
    return {
        figure: math.fsum(values) / len(values) * (len(values) - 1) / (len(values) - 1 + EFFECT_UNITS)
        for figure, values in members.items()
    }


def _trigamma_inverse(value: float) -> float:
    from scipy.optimize import brentq
    from scipy.special import polygamma

    # trigamma(x) lies between 1/x and 1/x + 1/x².
    low = 1 / value
    high = low + 1 / math.sqrt(value) + 1
    return float(brentq(lambda x: float(polygamma(1, x)) - value, low, high))


def critical_t(level: float, freedom: float) -> float:
    """Return the value that Student's t with ``freedom`` degrees of freedom exceeds with probability ``level``."""
    from scipy.stats import t

    return float(t.isf(level, freedom))
