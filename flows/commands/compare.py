"""Compare federations: lines on gaps, gains and fields that differ, and a report with plots.

:mod:`flows.commands.compare_table` has the table of figures and costs.
"""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from flows.stored.runs import StoredRun, opened_store, read_run
from flows.suite.files import made_files, write_files
from infra.errors import SettingsError
from infra.settings import Settings
from infra.views import Views
from tasks.errors import SpecError
from tasks.metrics.over_rounds import Costs, best_round, costs_by_round
from tasks.report import text
from tasks.report.text import signed_number as signed
from tasks.spec.federation import MapName, changed_fields
from tasks.spec.records import Metrics, RoundRecord
from tasks.spec.references import is_twin
from tasks.spec.suite_records import SuiteResult
from tasks.suite.grouping import Run, result_of_runs, training_images
from tasks.suite.methods import Compared as ComparedMethod
from tasks.suite.summary import summarise

_LONGEST_NAME = 100  # characters of a default folder


@dataclass(frozen=True)
class Compared:
    """One federation of a comparison, with at least one committed round."""

    run: StoredRun
    costs: list[Costs]
    best_round: int

    @property
    def name(self) -> str:
        return self.run.name

    @property
    def records(self) -> list[RoundRecord]:
        return self.run.records

    @property
    def best(self) -> Metrics:
        return self.records[self.best_round].shown

    @property
    def last(self) -> Metrics:
        return self.records[-1].shown

    @property
    def test_sets(self) -> frozenset[str]:
        """Digests of the test sets, or of the held-out images if there are none, that scored the last round."""
        last = self.records[-1]
        return frozenset(evaluation.test_digest for evaluation in last.evaluations_on(last.shown_on))

    @property
    def whole(self) -> Run:
        return Run(self.name, self.run.spec, self.records)


def read_compared(settings: Settings, names: Sequence[str], metric: MapName) -> list[Compared]:
    """Read the federations ``names`` from the store. Their best rounds are those with the best ``metric``.

    It is that on held-out images if these decided in the federation itself.

    Raises:
        SpecError: there are fewer than two names, or a federation is named twice, is not in the store, or has no round.
    """
    if len(names) < 2:
        raise SpecError(f"RUN: expected at least two federations to compare, found {len(names)}")
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise SpecError(f"RUN: expected each federation once, found {', '.join(twice)} more than once")
    with opened_store(settings) as objects:
        runs = [read_run(objects, settings, name) for name in names]
    compared = []
    for run in runs:
        if not run.records:
            raise SpecError(f"{run.name}: expected at least one committed round to compare, found none")
        decides = run.spec.evaluation.decides
        best, _ = best_round([record.figures_on(decides) for record in run.records], metric)
        compared.append(Compared(run, costs_by_round(run.records, run.spec.training.local_epochs), best))
    return compared


# --- the lines for the terminal ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Gap:
    """A federation less its centralised twin, by the metric of the comparison.

    passes: image passes that both have taken. difference: after these; None if not both have a figure then.
    best: best round less best round; None if not both have a figure.
    """

    federation: str
    reference: str
    passes: float
    difference: float | None
    best: float | None


def find_gaps(compared: Sequence[Compared], metric: MapName) -> list[Gap]:
    """Return the gap of each federation to its centralised twin, if both are compared."""
    found = []
    for item, other in itertools.permutations(compared, 2):
        if not is_twin(item.run.spec, other.run.spec) or training_images(item.whole) != training_images(other.whole):
            continue
        common = min(item.costs[-1].passes, other.costs[-1].passes)
        after = _difference(*(_after(one, common, metric) for one in (item, other)))
        best = _difference(getattr(item.best, metric), getattr(other.best, metric))
        found.append(Gap(item.name, other.name, common, after, best))
    return found


def _difference(mine: float | None, reference: float | None) -> float | None:
    return None if mine is None or reference is None else mine - reference


def gaps(compared: Sequence[Compared], metric: MapName) -> list[str]:
    """Return a line for each federation and its centralised twin: the gap after the same number of image passes."""
    lines = []
    for gap in find_gaps(compared, metric):
        who = f"{gap.federation}: " if len(compared) > 2 else ""
        if gap.difference is None:
            lines.append(f"{who}gap to centralised: not both have a {metric} after {gap.passes:.4g} image passes")
            continue
        ends = f"; best against best {signed(gap.best)}" if gap.best is not None else ""
        lines.append(
            f"{who}gap to centralised: {signed(gap.difference)} {metric} after {gap.passes:.4g} image passes{ends}"
        )
    return lines


def _after(item: Compared, passes: float, metric: MapName) -> float | None:
    """Return ``metric`` of the last round that took at most ``passes`` image passes."""
    within = [number for number, costs in enumerate(item.costs) if costs.passes <= passes * (1 + 1e-9)]
    value: float | None = getattr(item.records[within[-1]].shown, metric)
    return value


def gains(result: SuiteResult) -> list[str]:
    """Return a line for each experiment with local-only references: its gain over them, for the seeds of both."""
    lines = []
    for between in summarise(result).experiments:
        if between.gain is None:
            continue
        difference = between.gain.difference
        lines.append(
            f"{between.experiment}: gain over local only: {text.signed(difference)} {result.metric} after "
            f"{between.gain.passes:.4g} image passes, {text.plural(difference.n, 'seed')}, mean over "
            f"{text.plural(len(between.rows['local-only'].devices), 'device')}"
        )
    return lines


def warnings(compared: Sequence[Compared]) -> list[str]:
    """Return the reasons against comparing the others' figures with the first's."""
    first, lines = compared[0], []
    for item in compared[1:]:
        pair = f"{first.name} and {item.name}"
        if item.test_sets != first.test_sets:
            lines.append(f"the test sets of {pair} differ: their figures are not of the same images and boxes")
        elif not _same_rules(item, first):
            lines.append(f"{pair} are evaluated by different rules: see the fields below")
        ours, theirs = first.records[-1].environment, item.records[-1].environment
        if ours.cpu != theirs.cpu or ours.threads != theirs.threads:
            lines.append(f"{pair} ran on different machines or threads: their seconds do not compare")
    return lines


def _same_rules(one: Compared, other: Compared) -> bool:
    """Return whether figures on the same images are computed alike. Which images a run scored is another matter."""
    rules = [item.run.spec.evaluation.model_copy(update={"on": "test"}) for item in (one, other)]
    return rules[0] == rules[1]


def differences(compared: Sequence[Compared]) -> list[str]:
    """Return a line for each of the others: the specification's fields in which it differs from the first."""
    first, lines = compared[0], []
    for item in compared[1:]:
        changes = changed_fields(first.run.spec, item.run.spec)
        changed = ", ".join(f"{field} {_value(old)} → {_value(new)}" for field, (old, new) in changes.items())
        what = f"differs from {first.name} in: {changed}" if changed else f"is the same experiment as {first.name}"
        lines.append(f"{item.name} {what}")
    return lines


def _value(value: object) -> str:
    text = "–" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


# --- the files of the report -------------------------------------------------------------------------------


def default_folder(settings: Settings, names: Sequence[str]) -> Path:
    """Return a folder below the home with the names of the federations."""
    joined = "+".join(names)
    if len(joined) > _LONGEST_NAME:
        joined = f"{joined[: _LONGEST_NAME - 9]}-{hashlib.sha256(joined.encode()).hexdigest()[:8]}"
    return settings.home / "comparisons" / joined


def result_of(compared: Sequence[Compared], metric: MapName, target: float) -> SuiteResult:
    """Return a result like a suite's: runs that differ only in their seed are one experiment, with its references."""
    runs = [item.whole for item in compared]
    return result_of_runs(runs, metric=metric, target=target, created=datetime.now(UTC))


def write_comparison(
    compared: Sequence[Compared],
    result: SuiteResult,
    folder: Path,
    views: Views,
    ranked: Sequence[ComparedMethod] | None = None,
) -> list[Path]:
    """Write ``report.html``, ``comparison.csv`` with every round, ``table.tex``, and the plots as PNG and SVG.

    ranked: the methods, as in :func:`tasks.report.files.report_parts`.

    Returns their paths, the report's first. A file that cannot be made is noted in ``views``, and left out.

    Raises:
        SettingsError: ``folder`` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the plots, which take seconds
        notes = [*warnings(compared), *_unfinished(compared)]
        files = made_files(views, result, notes=notes, compared=ranked)
        files = {("comparison.csv" if name == "rounds.csv" else name): content for name, content in files.items()}
        write_files(folder, files)
    except OSError as error:
        raise SettingsError(f"{folder}: the comparison cannot be written: {error.strerror or error}") from None
    return [folder / name for name in files]


def _unfinished(compared: Sequence[Compared]) -> list[str]:
    return [
        f"{item.name} is {item.run.status} after round {item.records[-1].round} of {item.run.spec.max_rounds}: "
        "its last round is not its end"
        for item in compared
        if item.run.status != "finished"
    ]
