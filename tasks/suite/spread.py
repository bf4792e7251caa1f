"""How much a figure varies from seed to seed, estimated from few seeds of several experiments.

Two or three seeds say little of one experiment's spread, and a test that takes their standard deviation for the truth
has limits that are absurdly wide or, by luck, absurdly narrow. Experiments differ in their spread too (a class with few
test objects is noisier than one with many), so that one common spread is wrong as well. In between is the *moderated*
variance of Smyth (2004): each unit's variance is drawn towards that of its family,

    s̃² = (d₀ s₀² + d s²) / (d₀ + d),   with d₀ + d degrees of freedom,

where s² with d degrees of freedom is the unit's own, and s₀² and d₀ say where the family's variances are and how much
they differ: d₀ is large where they differ no more than samples of one variance do, and small where they differ. Both
come from the family's data, by the moments of log s². A unit that differs from the family so weighs by itself, and the
t distribution's tail is the heavier for it.

Where a variance is expected depends on its figure: a class with few test objects is noisy in every experiment. So s₀²
is a figure's own, drawn towards that of all of them.

Two things are added, because families are small here. How much few variances differ is not known, so a guess has a
part in it. And where they are is not known either: the spread of their common mean counts as a difference more.

Gordon K. Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", Statistical Applications in Genetics and Molecular Biology 3(1), 2004, Article 3, sections 5 and 6.2.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

# Few units cannot tell how much they differ. A guess goes in, as if so many further units had told it: that their
# variances differ as those of samples with so many degrees of freedom do.
GUESSED_FREEDOM = 4.0
GUESS_UNITS = 4
# A figure's own place, from n groups, has the weight (n - 1) / (n - 1 + this).
EFFECT_UNITS = 2
# How far the luck (of log s²) of figures of the same runs is common: as of figures whose correlation is 0.7.
COMMON_LUCK = 0.5

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Variance:
    """A variance and its degrees of freedom."""

    value: float
    freedom: float


def sample_variance(values: Sequence[float]) -> Variance:
    """The unbiased one, of at least two values."""
    mean = math.fsum(values) / len(values)
    freedom = len(values) - 1
    return Variance(math.fsum((value - mean) ** 2 for value in values) / freedom, freedom)


class FamilySpread(Generic[Key]):
    """What variances of figures, by (group, figure), have in common; at least one.

    A group is of runs whose figures go together, so half of their luck is common: so many groups, and not so many
    variances, tell where the family is.

    least: a variance too small to matter; smaller ones (of a class that is never found, zero) count as this, since the
        logarithm would make much of them.
    """

    def __init__(self, own: Mapping[tuple[str, Key], Variance], *, least: float) -> None:
        from scipy.special import digamma, polygamma  # here, so that the core loads without it

        self._own = own
        logs = {
            key: math.log(max(unit.value, least)) - float(digamma(unit.freedom / 2)) + math.log(unit.freedom / 2)
            for key, unit in own.items()
        }
        self._centre = math.fsum(logs.values()) / len(logs)
        self._figures = _of_figures(logs, self._centre)
        rest = [(value - self._place(figure)) ** 2 for (_, figure), value in logs.items()]
        told = len(logs) - 1
        sampling = math.fsum(float(polygamma(1, unit.freedom / 2)) for unit in own.values()) / len(own)
        beyond = max(0.0, math.fsum(rest) / told - sampling) if told else 0.0
        guess = float(polygamma(1, GUESSED_FREEDOM / 2))
        differ = (told * beyond + GUESS_UNITS * guess) / (told + GUESS_UNITS)
        groups = len({group for group, _ in own})
        self._half = _trigamma_inverse(differ + COMMON_LUCK * sampling / groups)
        self._shift = float(digamma(self._half)) - math.log(self._half)

    def prior(self, figure: Key) -> Variance:
        """(s₀², d₀) of a figure, of any group."""
        return Variance(math.exp(self._place(figure) + self._shift), 2 * self._half)

    def of(self, group: str, figure: Key) -> Variance:
        """The moderated variance; of what has none of its own, with one seed, what the family says."""
        prior, own = self.prior(figure), self._own.get((group, figure))
        if own is None:
            return prior
        freedom = prior.freedom + own.freedom
        return Variance((prior.freedom * prior.value + own.freedom * own.value) / freedom, freedom)

    def _place(self, figure: Key) -> float:
        """Where log s² is expected."""
        return self._centre + self._figures.get(figure, 0.0)


def _of_figures(logs: Mapping[tuple[str, Key], float], centre: float) -> dict[Key, float]:
    """By how much each figure is off ``centre``, drawn towards it; one that a single group has, all the way."""
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
    """What Student's t with so many degrees of freedom is above with probability ``level``."""
    from scipy.stats import t

    return float(t.isf(level, freedom))
