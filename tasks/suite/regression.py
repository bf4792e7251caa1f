"""Whether a suite's result is worse than the accepted one: by a stated rule, over all figures at once.

What is compared: an experiment in one role (federated, centralised, local-only) is a *group*; its value for a seed is
its run's figure after the last round, of local-only runs the mean over devices. Groups are held against each other by
their means over seeds: the mAPs, recall, test loss (as a part of the accepted one, so that losses of different
detectors have one scale) and the AP of each class.

The rule. A figure has regressed when its mean is worse by more than its floor, and by more than

    t(α', ν) · s̃ · √(1/n + 1/m)

for n accepted and m new seeds: the prediction interval of a mean of m further draws. s̃² with ν degrees of freedom is
the accepted seeds' variance, moderated by that of the suite's other groups and figures, as :mod:`tasks.suite.spread`
tells; what is pooled is measured in the default floors, in which kinds of figures vary about alike. A class that varies
much from seed to seed, as one with few test objects does, thereby has a wide limit of its own, and no list of such
classes is needed. The new seeds do not add to s̃: one seed that has collapsed would hide itself.

Many comparisons. ``rule.false_alarms`` is shared out (Bonferroni): equally to the five kinds of figures, so that many
classes do not make the limits of the mAPs wider, and within a kind equally to what is compared. That holds the
probability that a rerun in which nothing has changed is told of *any* regression, over draws of the accepted seeds
too, as far as the spreads are known; they are estimated, so it is somewhat more (below).

The same seeds. Equal specification, code and machine give equal bits: then every difference is zero and nothing can be
told. After the smallest change in numerics, runs of one seed differ about as much as runs of different seeds
(Summers & Dinneen 2021), so sharing a seed is not taken to lessen the spread. Where it does, the differences of the
pairs show it: with at least two of them there is a second test, on their mean, with the limit t(α'', ν) · s̃_d / √m
from the differences' own moderated variance. Each of the two then has half the level, and either may tell. The first
sees a seed that has collapsed, the second a small loss that all seeds share. Where one result's seeds are among the
other's, only the common ones are held against each other.

One accepted seed. Such a group's spread is that of its new seeds, if there are two; else that of the suite's other
groups. If none has two seeds, the floor alone decides, and a note says that this is no statistical statement.

What it leans on: seeds are independent draws, and their figures not far from normal; t's tail at a level of 1e-3 to
1e-5 is taken from there. The accepted seeds are a draw as well: by luck they may be better than the expectation, and
the same reference is met at each rerun, so false alarms of reruns against one reference come in company. In a simulated
suite of three groups and three seeds, with spreads that differ up to five times in the units of the floors, 3 of 500
reruns (20 against each of 25 references) were told of a regression at the default of 0.002, and 7 at 0.01; a loss of
0.08 of a mAP with a spread of 0.015 was found 25 times of 25.

On real training (``tests/benchmarks/bench_regression.py``: one experiment, three of eight seeds against three others,
in all 560 ways) no rerun was told of a regression at 0.002 or 0.005, and 5 were at 0.01. Half the learning rate is told
at 0.002, and so is a dropped class whose AP was 0.53 ± 0.07; two classes of 0.64 ± 0.10 and 0.41 ± 0.14 were not, the
latter is at 0.005. More seeds help more than any setting.

Prediction interval: G. J. Hahn and W. Q. Meeker, Statistical Intervals, 1991, section 4.7. Spread over seeds in
benchmarks: X. Bouthillier et al., Accounting for Variance in Machine Learning Benchmarks, MLSys 2021; C. Colas et al.,
How Many Random Seeds?, arXiv 1806.08295. C. Summers and M. J. Dinneen, Nondeterminism and Instability in Neural
Network Optimization, ICML 2021.
"""

from __future__ import annotations

from typing import Any

from tasks.errors import SpecError
from tasks.spec.base import FederationName, Frozen
from tasks.spec.suite import ExperimentName, RegressionRule, Role, SuiteName
from tasks.spec.suite_records import SuiteResult
from tasks.suite.cells import GoneCell, gone_cells, notes_on_cells
from tasks.suite.groups import Figure
from tasks.suite.limits import Limits
from tasks.suite.pairs import Lost, Pair, equal_groups, mean, pair_up


class Change(Frozen):
    """A figure that has moved by more than its limit, or a cell that has no result any more.

    seeds_before, seeds_after: number of seeds that the means are over. after: None where there is no figure now.
    limit: the value that the mean would have had to keep (regressions), or had to pass (improvements); None of a
    cell or figure that is gone. message: one line, with all of it.
    """

    experiment: ExperimentName
    role: Role
    metric: str
    seeds_before: int
    seeds_after: int
    before: float | None
    after: float | None
    limit: float | None
    message: str


class Regression(Change):
    """A change for the worse."""


class Improvement(Change):
    """A change for the better."""


class Comparison(Frozen):
    """A suite's result held against an accepted one. compared: number of figures.

    notes: what else there is to know: cells without counterpart, other specifications, another environment, limits
    that are no statistical ones.
    """

    suite: SuiteName
    reference_run: FederationName
    result_run: FederationName
    rule: RegressionRule
    compared: int
    regressions: tuple[Regression, ...]
    improvements: tuple[Improvement, ...]
    notes: tuple[str, ...]


def compare_results(reference: SuiteResult, result: SuiteResult, rule: RegressionRule) -> Comparison:
    """Hold ``result`` against ``reference``, the accepted one, by ``rule`` (this module's text says how).

    Raises:
        SpecError: they are results of two suites.
    """
    if reference.suite != result.suite:
        raise SpecError(f"{result.suite_run}: expected a result of the suite {reference.suite}, found {result.suite}")
    pairs, lost = pair_up(reference, result, classes=rule.classes)
    limits = Limits(reference, result, pairs, rule)
    regressions = [_of_cell(cell, reference.metric) for cell in gone_cells(reference, result)]
    regressions += [_of_lost(figure) for figure in lost]
    improvements = []
    for pair in pairs:
        limit = limits.of(pair)
        if pair.worsening > limit:
            regressions.append(Regression(**_told(pair, limit)))
        elif -pair.worsening > limit:
            improvements.append(Improvement(**_told(pair, -limit)))
    equal = equal_groups(pairs)
    return Comparison(
        suite=reference.suite,
        reference_run=reference.suite_run,
        result_run=result.suite_run,
        rule=rule,
        compared=len(pairs),
        regressions=tuple(regressions),
        improvements=tuple(improvements),
        notes=(
            *notes_on_cells(reference, result),
            *limits.notes,
            *_places(reference, result),
            *([f"the same figures to the last bit: {', '.join(equal)}"] if equal else []),
        ),
    )


def _told(pair: Pair, allowed: float) -> dict[str, Any]:
    """Fields of a change. allowed: by how much the mean might get worse, in units of the scale."""
    before, after = pair.means
    limit = before + allowed * pair.scale * (1 if pair.figure.lower_is_better else -1)
    seeds = _counts(len(pair.before), len(pair.after))
    values = f"{_shown(pair.figure, before)} → {_shown(pair.figure, after)}"
    return {
        "experiment": pair.group.experiment,
        "role": pair.group.role,
        "metric": pair.figure.label,
        "seeds_before": len(pair.before),
        "seeds_after": len(pair.after),
        "before": before,
        "after": after,
        "limit": limit,
        "message": f"{pair.group.name}: {pair.figure.label} {values}, limit {_shown(pair.figure, limit)} ({seeds})",
    }


def _of_cell(gone: GoneCell, metric: str) -> Regression:
    cell = gone.cell
    before = cell.last.figures.get(metric)
    shown = "no figure" if before is None else f"{before:.3f}"
    return Regression(
        experiment=cell.experiment,
        role=cell.role,
        metric=metric,
        seeds_before=1,
        seeds_after=0,
        before=before,
        after=None,
        limit=None,
        message=f"{cell.name}: {metric} {shown} → none: the cell {gone.why}",
    )


def _of_lost(lost: Lost) -> Regression:
    before = mean(lost.before.values())
    return Regression(
        experiment=lost.group.experiment,
        role=lost.group.role,
        metric=lost.figure.label,
        seeds_before=len(lost.before),
        seeds_after=lost.found,
        before=before,
        after=None,
        limit=None,
        message=f"{lost.group.name}: {lost.figure.label} {_shown(lost.figure, before)} → none in some runs "
        f"({_counts(len(lost.before), lost.found)})",
    )


def _counts(before: int, after: int) -> str:
    return f"{before} seed{'' if before == 1 else 's'} before, {after} now"


def _shown(figure: Figure, value: float) -> str:
    return f"{value:.4g}" if figure.lower_is_better else f"{value:.3f}"


def _places(reference: SuiteResult, result: SuiteResult) -> list[str]:
    """Fields in which the environments differ."""
    before, after = reference.environment.model_dump(), result.environment.model_dump()
    return [f"environment: {name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
