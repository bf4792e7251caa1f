"""Decide whether a suite's result is worse than the accepted one, by one rule for all figures.

What is compared. An experiment in one role (federated, centralised, local-only) is a *group*. Its value for a seed is
the figure of its run after the last round; for local-only runs, the mean over devices. Groups are compared by their
means over seeds: the mAPs, recall, test loss (relative to the accepted loss, so that losses of different detectors have
one scale) and the AP of each class.

The rule. A figure has regressed when its mean is worse by more than its floor, and by more than

    t(α', ν) · s̃ · √(1/n + 1/m)

for n accepted and m new seeds: the prediction interval of the mean of m further draws. s̃², with ν degrees of freedom,
is the variance over the accepted seeds, moderated by the variances of the suite's other groups and figures (see
:mod:`tasks.suite.spread`). Variances are pooled in units of the default floors, in which all kinds of figures vary by
about as much. A class that varies much from seed to seed, such as one with few test objects, thereby gets a wide limit
of its own, so no list of such classes is needed. The new seeds do not add to s̃: otherwise a seed that has collapsed
would widen the limit and hide itself.

Many comparisons. ``rule.false_alarms`` is divided (Bonferroni): equally among the five kinds of figures, so that many
classes do not widen the limits of the mAPs, and within a kind equally among the comparisons. It thereby limits the
probability that *any* regression is reported for a rerun in which nothing has changed. This probability is over draws
of the accepted seeds too. It assumes that the spreads are known; they are estimated, so the real probability is
somewhat higher (see below).

The same seeds. Equal specification, code and machine give equal bits. Then every difference is zero and nothing is
reported. After the smallest change in numerics, runs of one seed differ about as much as runs of different seeds
(Summers & Dinneen 2021), so a common seed is not assumed to reduce the spread. Where it does reduce it, the differences
between runs of one seed show this. With at least two such differences there is a second test, on their mean, with the
limit t(α'', ν) · s̃_d / √m from the moderated variance of the differences. Each of the two tests then has half the
level, and either can report a regression. The first finds a seed that has collapsed, the second a small loss that all
seeds share. If the seeds of one result are a subset of the other's, only the common seeds are compared.

One accepted seed. The spread of such a group is that of its new seeds, if there are two; else that of the suite's other
groups. If none has two seeds, the floor alone decides, and a note says that no statistics were used.

Assumptions. Seeds are independent draws, and their figures are not far from normal, so that t's tail can be used at
levels of 1e-3 to 1e-5. The accepted seeds are a draw as well, and by luck they may be better than the expectation.
Since every rerun is compared with the same reference, false alarms against one reference come together. In a simulated
suite of three groups and three seeds, with spreads that differ by up to five times in units of the floors, a regression
was reported for 3 of 500 reruns (20 against each of 25 references) at the default of 0.002, and for 7 at 0.01; a loss
of 0.08 of a mAP with a spread of 0.015 was found 25 times out of 25.

On real training (``tests/benchmarks/bench_regression.py``: one experiment, three of eight seeds against three others,
in all 560 ways) a regression was reported for no rerun at 0.002 or 0.005, and for 5 at 0.01. Half the learning rate is
reported at 0.002, and so is a dropped class whose AP was 0.53 ± 0.07. Two dropped classes of 0.64 ± 0.10 and
0.41 ± 0.14 are not reported at 0.002; the latter is at 0.005. More seeds help more than any setting.

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
    """A figure that has moved by more than its limit, or a cell or figure that is gone.

    seeds_before, seeds_after: number of seeds that the means are over.
    after: None if there is no figure now.
    limit: the worst value of ``after`` that is no regression, or the best that is no improvement; None for a cell or
        figure that is gone.
    message: one line that states all of it.
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
    """A suite's result compared with an accepted one.

    compared: number of figures.
    notes: cells without a counterpart, different specifications or environments, and limits without statistics.
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
    """Compare ``result`` with the accepted ``reference`` by ``rule``, as this module's docstring describes.

    Raises:
        SpecError: they are results of different suites.
    """
    if reference.suite != result.suite:
        raise SpecError(f"{result.suite_run}: expected a result of the suite {reference.suite}, found {result.suite}")
    pairs, lost = pair_up(reference, result, classes=rule.classes)
    limits = Limits(reference, result, pairs, rule)
    regressions = [_gone_cell(cell, reference.metric) for cell in gone_cells(reference, result)]
    regressions += [_lost_figure(figure) for figure in lost]
    improvements = []
    for pair in pairs:
        limit = limits.of(pair)
        if pair.worsening > limit:
            regressions.append(Regression(**_change(pair, limit)))
        elif -pair.worsening > limit:
            improvements.append(Improvement(**_change(pair, -limit)))
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
            *_environment_notes(reference, result),
            *([f"the same figures to the last bit: {', '.join(equal)}"] if equal else []),
        ),
    )


def _change(pair: Pair, allowed: float) -> dict[str, Any]:
    """Return the fields of a change. allowed: by how much the mean may get worse, in units of the pair's scale."""
    before, after = pair.means
    limit = before + allowed * pair.scale * (1 if pair.figure.lower_is_better else -1)
    seeds = _counts(len(pair.before), len(pair.after))
    values = f"{_formatted(pair.figure, before)} → {_formatted(pair.figure, after)}"
    return {
        "experiment": pair.group.experiment,
        "role": pair.group.role,
        "metric": pair.figure.label,
        "seeds_before": len(pair.before),
        "seeds_after": len(pair.after),
        "before": before,
        "after": after,
        "limit": limit,
        "message": f"{pair.group.name}: {pair.figure.label} {values}, limit {_formatted(pair.figure, limit)} ({seeds})",
    }


def _gone_cell(gone: GoneCell, metric: str) -> Regression:
    cell = gone.cell
    before = cell.last.figures.get(metric)
    value = "no figure" if before is None else f"{before:.3f}"
    return Regression(
        experiment=cell.experiment,
        role=cell.role,
        metric=metric,
        seeds_before=1,
        seeds_after=0,
        before=before,
        after=None,
        limit=None,
        message=f"{cell.name}: {metric} {value} → none: the cell {gone.why}",
    )


def _lost_figure(lost: Lost) -> Regression:
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
        message=f"{lost.group.name}: {lost.figure.label} {_formatted(lost.figure, before)} → none in some runs "
        f"({_counts(len(lost.before), lost.found)})",
    )


def _counts(before: int, after: int) -> str:
    return f"{before} seed{'' if before == 1 else 's'} before, {after} now"


def _formatted(figure: Figure, value: float) -> str:
    return f"{value:.4g}" if figure.lower_is_better else f"{value:.3f}"


def _environment_notes(reference: SuiteResult, result: SuiteResult) -> list[str]:
    """Return a note for each field in which the environments differ."""
    before, after = reference.environment.model_dump(), result.environment.model_dump()
    return [f"environment: {name} {before[name]} → {after[name]}" for name in before if before[name] != after[name]]
