"""``fedbench suite run --dry-run``: the cells of a suite, and what the run would do. Nothing is started or written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.commands.dry_run import what_happens
from flows.commands.reading_only import aside, readable_store, with_published_weights
from flows.stored.runs import is_running
from flows.suite.handles import capacity_of
from flows.suite.plan import SuitePlan, default_name, is_begun, new_plan, pinned
from flows.suite.schedule import Estimate, duration, slots_of
from infra.errors import RunLocked, SettingsError
from infra.settings import Settings
from infra.store.holding import Subject
from tasks.errors import FedbenchError, SpecError
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.suite import Cell, SuiteSpec
from tasks.spec.suite_records import CellRecord
from tasks.whole import DamagedObject

Refusal = SpecError | SettingsError | RunLocked


@dataclass(frozen=True)
class SuiteDryRun:
    """What ``fedbench suite run`` would do.

    lines: on the suite as a whole. cells: by the name of each cell, what would happen to it.
    refusal: why it would refuse to run.
    """

    lines: list[str]
    cells: dict[str, str]
    refusal: Refusal | None = None


def dry_run_suite(settings: Settings, name: str | None, suite: SuiteSpec) -> SuiteDryRun:
    """Read the data and the store, and return what a run of ``suite`` would do.

    name: the suite run's; None: the default name.

    Raises:
        DataError, SpecError: the data cannot be used, or do not fit the suite. Or the name is not valid.
        InfraError: the store cannot be read.
    """
    notes: list[str] = []
    experiments = tuple(
        experiment.model_copy(update={"spec": with_published_weights(experiment.spec)})
        for experiment in suite.experiments
    )
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        specs = [experiment.spec for experiment in experiments]
        suite = suite.model_copy(update={"experiments": experiments})
        suite = pinned(suite, aside(settings, specs, Path(folder)), notes.append)
    plan = new_plan(readable_store(settings), settings.s3.prefix, name or default_name(suite), suite)
    head = ["nothing was started or written", f"name: {plan.name}", f"digest: {suite.digest}"]
    try:
        begun = _is_begun(settings, plan)
        capacity = capacity_of(settings, suite)
    except (SpecError, SettingsError, RunLocked) as error:
        return SuiteDryRun([*head, f"would refuse: {error}"], {}, error)
    done = plan.done()
    left = [cell for cell in plan.to_run if cell.name not in done]
    cells = {cell.name: _would(plan, settings, cell, done) for cell in plan.in_order(plan.cells)}
    total = len(plan.to_run)
    if not left:
        would = f"keep the results of all {total} cells; the report is written again if it is out of date"
    else:
        verb = "go on with a suite run" if begun else "begin a new suite run"
        would = f"{verb}: {len(left)} of {total} cells to run"
    lines = [
        *head,
        f"would {would}",
        f"at a time: {capacity} {'cells, on work pools' if settings.pools.used else 'turns, on this machine'}",
        *_time_lines(plan, done, left, capacity),
        *plan.notes_on_code(left),
        *(f"warning: {note}" for note in notes),
    ]
    return SuiteDryRun(lines, cells)


def _is_begun(settings: Settings, plan: SuitePlan) -> bool:
    if is_running(settings, Subject.suite(settings, plan.name).lock):
        raise RunLocked(f"suite {plan.name}: already running on this machine")
    try:
        return is_begun(plan)
    except DamagedObject:  # a run mends it, if the cells that have ended are cells of this suite
        return True


def _would(plan: SuitePlan, settings: Settings, cell: Cell, done: Mapping[str, CellRecord]) -> str:
    """Return what would happen to a cell, to follow the word *would*."""
    first = plan.first(cell)
    if first.name != cell.name:
        return f"take the result of {first.name}, which has the same specification"
    if cell.name in done:
        return "keep its result"
    try:
        return what_happens(plan.objects, settings, plan.federation(cell), cell.spec)
    except (FedbenchError, RunLocked) as error:  # this cell would fail, and the others run
        return f"fail: {plain(str(error), REASON_LIMIT)}"


def _time_lines(plan: SuitePlan, done: Mapping[str, CellRecord], left: list[Cell], capacity: int) -> Iterator[str]:
    estimate = Estimate({cell.name: slots_of(cell, capacity) for cell in plan.to_run}, capacity)
    estimate.ended_before(plan.to_run, done)
    seconds = estimate.left(left) if left else None
    if seconds is not None:
        yield f"about {duration(seconds)}, if each round takes as long as in the cells that are done"
