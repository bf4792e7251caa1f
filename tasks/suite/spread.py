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

Two things are added, because families are small here. How much few variances differ is not known, so a guess has a
part in it. And where they are is not known either: the spread of their common mean counts as a difference more.

Gordon K. Smyth, "Linear models and empirical Bayes methods for assessing differential expression in microarray
experiments", Statistical Applications in Genetics and Molecular Biology 3(1), 2004, Article 3, sections 5 and 6.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# Few units cannot tell how much they differ. A guess goes in, as if so many further units had told it: that their
# variances differ as those of samples with so many degrees of freedom do.
GUESSED_FREEDOM = 4.0
GUESS_UNITS = 4
# How far the luck (of log s²) of figures of the same runs is common: as of figures whose correlation is 0.7.
COMMON_LUCK = 0.5


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


@dataclass(frozen=True)
class FamilySpread:
    """What the units of a family have in common: ``prior`` is (s₀², d₀)."""

    prior: Variance

    def of_unit(self, own: Variance | None) -> Variance:
        """The moderated variance of a unit with its ``own``; None: it has one seed, and the family speaks for it."""
        if own is None:
            return self.prior
        freedom = self.prior.freedom + own.freedom
        value = (self.prior.freedom * self.prior.value + own.freedom * own.value) / freedom
        return Variance(value, freedom)


def family_spread(units: Sequence[Variance], *, groups: int, least: float) -> FamilySpread:
    """The spread that ``units``, at least one, share.

    groups: of units that go together, as the figures of the same runs do. Half of their luck is common, and so many
        groups, not so many units, tell where the family is.
    least: a variance too small to matter; smaller ones (of a class that is never found, zero) count as this, since
        the logarithm would make much of them.
    """
    from scipy.special import digamma, polygamma  # here, so that the core loads without it

    logs = [
        math.log(max(unit.value, least)) - float(digamma(unit.freedom / 2)) + math.log(unit.freedom / 2)
        for unit in units
    ]
    sampling = math.fsum(float(polygamma(1, unit.freedom / 2)) for unit in units) / len(units)
    beyond = max(0.0, sample_variance(logs).value - sampling) if len(units) > 1 else 0.0
    told, guess = len(units) - 1, float(polygamma(1, GUESSED_FREEDOM / 2))
    differ = (told * beyond + GUESS_UNITS * guess) / (told + GUESS_UNITS)
    half = _trigamma_inverse(differ + COMMON_LUCK * sampling / groups)
    value = math.exp(math.fsum(logs) / len(logs) + float(digamma(half)) - math.log(half))
    return FamilySpread(Variance(value, 2 * half))


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
