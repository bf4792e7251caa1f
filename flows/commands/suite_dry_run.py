"""``fedbench suite run --dry-run``: the cells of a suite, and what the run would do. Nothing is started or written."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
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
from tasks.whole import DamagedObject

Refusal = SpecError | SettingsError | RunLocked


@dataclass(frozen=True)
class SuiteDryRun:
    """What ``fedbench suite run`` would do.

    lines: on the suite as a whole. cells: by the name of each cell, in the order of the runs, what would happen to it.
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
    experiments = tuple(
        experiment.model_copy(update={"spec": with_published_weights(experiment.spec)})
        for experiment in suite.experiments
    )
    with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
        specs = [experiment.spec for experiment in experiments]
        suite = pinned(suite.model_copy(update={"experiments": experiments}), aside(settings, specs, Path(folder)))
    plan = new_plan(readable_store(settings), settings.s3.prefix, name or default_name(suite), suite)
    head = ["nothing was started or written", f"name: {plan.name}", f"digest: {suite.digest}"]
    try:
        begun = _is_begun(settings, plan)
        capacity = capacity_of(settings, suite)
    except (SpecError, SettingsError, RunLocked) as error:
        return SuiteDryRun([*head, f"would refuse: {error}"], {}, error)
    done, left = _parted(plan)
    cells = {cell.name: "keep its result" for cell in done} | {cell.name: _would(plan, settings, cell) for cell in left}
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
    ]
    return SuiteDryRun(lines, {cell.name: cells[cell.name] for cell in plan.to_run} | _shared(plan))


def _is_begun(settings: Settings, plan: SuitePlan) -> bool:
    if is_running(settings, Subject.suite(settings, plan.name).lock):
        raise RunLocked(f"suite {plan.name}: already running on this machine")
    try:
        return is_begun(plan)
    except DamagedObject:  # a run mends it, if the cells that have ended are cells of this suite
        return True


def _parted(plan: SuitePlan) -> tuple[list[Cell], list[Cell]]:
    """Return the cells that this code has done, and the others."""
    done: list[Cell] = []
    left: list[Cell] = []
    for cell in plan.to_run:
        record = plan.record(cell)
        (done if record is not None and record.state == "done" else left).append(cell)
    return done, left


def _would(plan: SuitePlan, settings: Settings, cell: Cell) -> str:
    """Return what would happen to a cell that is not done, to follow the word *would*."""
    try:
        return what_happens(plan.objects, settings, plan.federation(cell), cell.spec)
    except (FedbenchError, RunLocked) as error:  # this cell would fail, and the others run
        return f"fail: {plain(str(error), REASON_LIMIT)}"


def _time_lines(plan: SuitePlan, done: list[Cell], left: list[Cell], capacity: int) -> Iterator[str]:
    estimate = Estimate({cell.name: slots_of(cell, capacity) for cell in plan.to_run}, capacity)
    for cell in done:
        record = plan.record(cell)
        if record is not None:
            estimate.ended(cell, record.seconds)
    seconds = estimate.left(left) if done and left else None
    if seconds is not None:
        yield f"about {duration(seconds)}, if each round takes as long as in the cells that are done"


def _shared(plan: SuitePlan) -> dict[str, str]:
    """Return the cells that have the specification of an earlier one, which is run for both."""
    first: dict[str, str] = {}
    shared = {}
    for cell in plan.cells:
        if first.setdefault(cell.spec.digest, cell.name) != cell.name:
            shared[cell.name] = f"take the result of {first[cell.spec.digest]}, which has the same specification"
    return shared
