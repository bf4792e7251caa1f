"""List what the store has: federations, and suite runs with their cells folded. ``listing_table`` prints the list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from flows.stored.names import listed
from flows.stored.runs import DamagedRun, StoredRun, is_running, read_runs
from flows.suite.plan import SuitePlan, read_plan, read_start
from flows.views import documents
from infra.errors import StoreCorrupt
from infra.settings import Settings
from infra.store.layout import FederationLayout, federations
from infra.store.objects import ObjectStore
from infra.store.suite_layout import suite_runs
from tasks.errors import FedbenchError, SpecError
from tasks.plain_text import REASON_LIMIT, plain
from tasks.spec.federation import FederationSpec
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellRecord, CellResult

State = Literal["running", "finished", "stopped", "failed", "waiting", "damaged"]
# The order of states in a count of cells.
_CELL_STATES = ("done", "failed", "running", "stopped", "waiting")
_CODE = re.compile(r"(.+)\.[0-9a-f]{8}")  # a cell, and the digest of the code that runs it
_BACK = re.compile(r"(\d{1,6})([mhdw])")
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


@dataclass(frozen=True)
class ListedRun:
    """A federation, or a cell of a suite run, which may have no federation yet.

    updated: when its last round was committed, or without a round, when its specification was written; None: it has
    not begun. seconds: wall time of its rounds. reason: why it is damaged, or why the cell failed.
    """

    name: str
    state: State
    spec: FederationSpec | None
    course: Mapping[str, Any]
    updated: datetime | None
    seconds: float | None
    suite_run: str | None = None
    cell: str | None = None
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "suite_run": self.suite_run,
            "cell": self.cell,
            **documents.spec_document(self.spec),
            **self.course,
            "updated": None if self.updated is None else self.updated.isoformat(),
        }


@dataclass(frozen=True)
class ListedSuite:
    """A suite run. cells: their number by state, in a fixed order.

    updated: when a cell ended last, or else when the suite was begun. seconds: wall time of all ended cells together.
    """

    name: str
    state: State
    suite: str | None
    cells: Mapping[str, int]
    started: datetime | None
    updated: datetime | None
    seconds: float | None
    reason: str | None = None

    def document(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "state": self.state,
            "reason": self.reason,
            "suite": self.suite,
            "cells": dict(self.cells),
            "started": None if self.started is None else self.started.isoformat(),
            "updated": None if self.updated is None else self.updated.isoformat(),
            "seconds": self.seconds,
        }


@dataclass(frozen=True)
class Listing:
    """The lines of the list: suite runs, and federations (of one suite run: its cells)."""

    suites: Sequence[ListedSuite] = field(default_factory=list)
    federations: Sequence[ListedRun] = field(default_factory=list)

    def chosen(self, state: str | None, since: datetime | None) -> Listing:
        """Return the lines in this state that have changed since then. What runs counts as changed."""

        def keeps(line: ListedRun | ListedSuite) -> bool:
            if state is not None and line.state != state:
                return False
            return since is None or line.state == "running" or (line.updated is not None and line.updated >= since)

        return Listing(list(filter(keeps, self.suites)), list(filter(keeps, self.federations)))

    def reasons(self) -> list[str]:
        """Return a line for each that is damaged or has failed."""
        lines = [(line.name, line.state, line.reason) for line in self.suites]
        lines += [(line.name, line.state, line.reason) for line in self.federations]
        return [
            f"{name} {'is damaged' if state == 'damaged' else 'failed'}: {plain(reason, REASON_LIMIT)}"
            for name, state, reason in lines
            if reason is not None
        ]

    def document(self) -> dict[str, Any]:
        return {
            "version": documents.VERSION,
            "suites": [suite.document() for suite in self.suites],
            "federations": [run.document() for run in self.federations],
        }


def since_of(text: str, now: datetime | None = None) -> datetime:
    """Return the time that ``--since`` names: an ISO date (of this machine's time zone), or ``7d`` ago.

    Raises:
        SpecError: it is neither.
    """
    back = _BACK.fullmatch(text.strip())
    try:
        if back is not None:
            return (now or datetime.now(UTC)) - timedelta(**{_UNITS[back[2]]: int(back[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError):
        raise SpecError(
            f"--since: expected a date, as 2026-11-30 or 2026-11-30T08:00, or a time back, as 30m, 12h, 7d or 2w, "
            f"found {text!r}"
        ) from None


def read_listing(objects: ObjectStore, settings: Settings, suite: str | None = None) -> Listing:
    """Return all suite runs and the federations that are no cells; with ``suite``, that suite run and its cells.

    Raises:
        SpecError: there is no suite run ``suite``; the message lists those that exist.
    """
    prefix = settings.s3.prefix
    written = {entry.key: entry.modified for entry in objects.entries(prefix)}
    names, suites = federations(prefix, written), suite_runs(prefix, written)
    if suite is not None and suite not in suites:
        raise SpecError(f"--suite {suite}: no such suite run in the store; expected one of: {listed(suites, suite)}")
    places = {name: place for name in names if (place := _place(name, suites)) is not None}

    def read(chosen: Iterable[str]) -> list[ListedRun]:
        chosen = list(chosen)
        found = read_runs(objects, settings, chosen)
        return [_listed(run, places.get(run.name), written[FederationLayout(prefix, run.name).spec]) for run in found]

    if suite is None:
        alone = [name for name in names if name not in places]
        return Listing([_suite(objects, settings, name, set(names)) for name in suites], read(alone))
    cells = [name for name in names if name in places and places[name][0] == suite]
    return Listing(
        [_suite(objects, settings, suite, set(names))],
        _with_plan(objects, settings, suite, {run.name: run for run in read(cells)}),
    )


def _place(name: str, suites: Iterable[str]) -> tuple[str, str] | None:
    """Return the suite run and the cell that a federation's name is of; None: it is no cell's."""
    for suite in sorted(suites, key=len, reverse=True):
        cell = _CODE.fullmatch(name.removeprefix(f"{suite}.")) if name.startswith(f"{suite}.") else None
        if cell is not None:
            return suite, cell[1]
    return None


def _listed(run: StoredRun | DamagedRun, place: tuple[str, str] | None, begun: datetime) -> ListedRun:
    suite, cell = place or (None, None)
    if isinstance(run, DamagedRun):
        return ListedRun(
            run.name, "damaged", run.spec, documents.course_document([]), begun, None, suite, cell, run.reason
        )
    state: State = "finished" if run.status == "finished" else "running" if run.status == "running" else "stopped"
    return ListedRun(
        run.name,
        state,
        run.spec,
        documents.course_document(run.records),
        documents.updated(run.records) or begun,
        documents.seconds(run.records),
        suite,
        cell,
    )


def _suite(objects: ObjectStore, settings: Settings, name: str, there: set[str]) -> ListedSuite:
    """Return the line of a suite run. there: the names of the federations in the store."""
    prefix = settings.s3.prefix
    try:
        start, plan = read_start(objects, prefix, name), read_plan(objects, prefix, name)
        records = {cell.name: plan.record(cell) for cell in plan.to_run}
    except (FedbenchError, StoreCorrupt) as error:
        return ListedSuite(name, "damaged", None, {}, None, None, None, str(error))
    states = Counter(_cell_state(settings, plan.federation(cell), records[cell.name], there) for cell in plan.to_run)
    ended = [record for record in records.values() if record is not None]
    return ListedSuite(
        name,
        _suite_state(settings, name, states),
        start.suite.name,
        {state: states[state] for state in _CELL_STATES},
        start.started,
        max((record.ended for record in ended), default=start.started),
        sum(record.seconds for record in ended),
    )


def _cell_state(settings: Settings, federation: str, record: CellRecord | None, there: set[str]) -> str:
    if is_running(settings, federation):
        return "running"
    if record is not None:
        return record.state
    return "stopped" if federation in there else "waiting"


def _suite_state(settings: Settings, name: str, states: Mapping[str, int]) -> State:
    if states["running"] or is_running(settings, f"suite-{name}"):
        return "running"
    if states["stopped"] or states["waiting"]:
        return "stopped"
    return "failed" if states["failed"] else "finished"


def _with_plan(objects: ObjectStore, settings: Settings, suite: str, found: Mapping[str, ListedRun]) -> list[ListedRun]:
    """Return the cells of a suite run in its order: those of the store, with the records of how they ended, and others.

    Cells that other code ran follow.
    """
    try:
        plan = read_plan(objects, settings.s3.prefix, suite)
        lines = {plan.federation(cell): _cell(plan, cell, found.get(plan.federation(cell))) for cell in plan.to_run}
    except (FedbenchError, StoreCorrupt):  # the suite's own line names the damage
        return list(found.values())
    return [*lines.values(), *(run for name, run in found.items() if name not in lines)]


def _cell(plan: SuitePlan, cell: Cell, found: ListedRun | None) -> ListedRun:
    """Return the line of a cell. found: that of its federation; None: the store has none."""
    record = plan.record(cell)
    if found is not None:
        if record is None or record.state == "done" or found.state == "running":
            return found
        return ListedRun(**{**vars(found), "state": "failed", "reason": record.reason})
    course, updated, seconds = documents.course_document([]), None, None
    state: State = "waiting"
    if record is not None:
        state = "finished" if record.state == "done" else "failed"
        updated, seconds = record.ended, record.seconds
        if record.imported is not None:
            course = _imported_course(record.imported.result)
    reason = None if record is None else record.reason
    return ListedRun(plan.federation(cell), state, cell.spec, course, updated, seconds, plan.name, cell.name, reason)


def _imported_course(result: CellResult) -> dict[str, Any]:
    course = documents.course_document([])
    return {**course, "rounds": result.last.round, "clients": result.clients, "seconds": result.last.seconds}
