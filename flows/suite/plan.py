"""The plan of a suite run in the store: its cells, which of them have ended, and the names of their federations."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from flows.coordinator.preflight import pin
from flows.stored.names import listed
from infra.settings import Settings
from infra.store.flush import flush
from infra.store.layout import federations
from infra.store.objects import ObjectStore
from infra.store.suite_layout import DIGEST_DIGITS, SuiteLayout, suite_runs
from tasks.code_version import DIGITS, code_version
from tasks.errors import SpecError
from tasks.spec.base import RECORD_VERSION, check_name
from tasks.spec.suite import Cell, Experiment, SuiteSpec, cells_of
from tasks.spec.suite_records import CellRecord, SuiteStart
from tasks.whole import DamagedObject, find_whole, read_whole

log = logging.getLogger(__name__)

LONGEST_NAME = 100  # characters of a federation's name


@dataclass(frozen=True)
class SuitePlan:
    """A suite run: its cells, and where the store keeps their records."""

    name: str
    suite: SuiteSpec
    code: str
    layout: SuiteLayout
    objects: ObjectStore

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells. Several cells may have the same specification."""
        return cells_of(self.suite)

    @cached_property
    def _first(self) -> dict[str, Cell]:
        """The first cell of each specification, by its digest."""
        first: dict[str, Cell] = {}
        for cell in self.cells:
            first.setdefault(cell.spec.digest, cell)
        return first

    @property
    def to_run(self) -> list[Cell]:
        """The cells to run: of each specification the first."""
        return self.in_order(self._first.values())

    def in_order(self, cells: Iterable[Cell]) -> list[Cell]:
        """Return ``cells`` in the order in which they are run: the first seed of every experiment, then the second.

        So a suite that is stopped has some seeds of all experiments, and not all seeds of some.
        """
        place = {(item.name, seed): n for item in self.suite.experiments for n, seed in enumerate(item.seeds)}
        return sorted(cells, key=lambda cell: place[cell.experiment, cell.seed])

    def first(self, cell: Cell) -> Cell:
        """Return the first cell of the same specification, which is run for all of them."""
        return self._first[cell.spec.digest]

    def federation(self, cell: Cell) -> str:
        """Return the name of a cell's federation, as ``cpu-9f31ab02.street5.s1-central.3f2a9c1e``.

        Its parts are the suite run, the first cell of the same specification, and the digest of the code.
        """
        return f"{self.name}.{self.first(cell).name}.{self.code[-DIGITS:]}"

    def record(self, cell: Cell) -> CellRecord | None:
        """Return how the cell ended when this code last ran it; None if it has not ended yet."""
        key = self.layout.cell(cell.spec.digest, self.code)
        try:
            return find_whole(self.objects, key, CellRecord, RECORD_VERSION)
        except DamagedObject as error:
            log.warning("%s: cell %s is run again, from its federation's last commit", error, cell.name)
            return None

    def done(self) -> dict[str, CellRecord]:
        """Return the records of the cells that this code has done, by the cells' names."""
        records = {cell.name: self.record(cell) for cell in self.to_run}
        return {name: record for name, record in records.items() if record is not None and record.state == "done"}

    def notes_on_code(self, cells: Iterable[Cell]) -> list[str]:
        """Return a line for each other state of the code that has ended some of ``cells``, which would run again."""
        digests = {cell.spec.digest[:DIGEST_DIGITS] for cell in cells}
        keys = [key for key in self.objects.list(self.layout.cells) if self.layout.digest_of(key) in digests]
        of_code = Counter(map(self.layout.code_of, keys))
        return [
            f"note: code {code} has run {count} of these cells; the installed code, {self.code}, runs them again"
            for code, count in sorted(of_code.items())
            if code != self.code
        ]

    def keep(self, record: CellRecord) -> None:
        """Write the record of a cell that has ended to the store."""
        key = self.layout.cell(record.spec_digest, self.code)
        self.objects.put_json(key, record.model_dump(mode="json"))
        flush(self.objects, [key])


def default_name(suite: SuiteSpec) -> str:
    """Return a name from suite and digest, as ``cpu-9f31ab02``. So the same suite goes on under the same name."""
    return f"{suite.name}-{suite.digest[:8]}"


def pinned(suite: SuiteSpec, settings: Settings, say: Callable[[str], None] | None = None) -> SuiteSpec:
    """Return ``suite`` with digests and devices filled in, as :func:`flows.coordinator.preflight.pin` does.

    say: called, beside the log, with a line for each fault of the data that may lower the figures.

    Raises:
        DataError, SpecError: as ``pin`` does.
    """
    done: dict[str, Experiment] = {}
    experiments = []
    for experiment in suite.experiments:
        key = experiment.spec.model_dump_json(include={"data", "detector", "participation"})
        if key not in done:
            done[key] = experiment.model_copy(update={"spec": pin(experiment.spec, settings, say)})
        found = done[key].spec
        spec = experiment.spec.model_copy(
            update={"data": found.data, "detector": found.detector, "participation": found.participation}
        )
        experiments.append(experiment.model_copy(update={"spec": spec}))
    return suite.model_copy(update={"experiments": tuple(experiments)})


def new_plan(objects: ObjectStore, prefix: str, name: str, suite: SuiteSpec) -> SuitePlan:
    """Return the plan of a run of ``suite`` under ``name`` with this code. Reads and writes nothing.

    Raises:
        SpecError: the name is not valid, or too long for the names of the cells' federations.
    """
    check_name(name, source="--name")
    plan = SuitePlan(name, suite, code_version(), SuiteLayout(prefix, name), objects)
    longest = max((plan.federation(cell) for cell in plan.to_run), key=len)
    if len(longest) > LONGEST_NAME:
        excess = len(longest) - LONGEST_NAME
        raise SpecError(f"--name {name}: expected a name that is {excess} characters shorter: {longest} is too long")
    return plan


def claim(objects: ObjectStore, prefix: str, name: str, suite: SuiteSpec) -> SuitePlan:
    """Begin the suite run ``name`` of ``suite``, or continue it if it exists. The caller holds its lease.

    Raises:
        SpecError: the name is not valid, or belongs to a run of another suite.
    """
    plan = new_plan(objects, prefix, name, suite)
    start = SuiteStart(suite_run=name, suite=suite, digest=suite.digest, started=datetime.now(UTC))
    key = plan.layout.suite
    try:
        begun = is_begun(plan)
    except DamagedObject as error:
        if not _begun_with(plan):
            raise
        begun = False
        objects.copy(key, f"{key}.damaged")
        log.warning("%s: written again from the given suite; the damaged one is kept as %s.damaged", error, key)
    if not begun:
        objects.put_json(key, start.model_dump(mode="json"))
        flush(objects, [key])
    return plan


def is_begun(plan: SuitePlan) -> bool:
    """Return whether the store has a suite run of the plan's name and suite.

    Raises:
        SpecError: the name belongs to a run of another suite.
        DamagedObject: the record of the run's start is damaged.
    """
    if not plan.objects.exists(plan.layout.suite):
        return False
    there = read_whole(plan.objects, plan.layout.suite, SuiteStart, RECORD_VERSION)
    if there.digest != plan.suite.digest:
        raise SpecError(
            f"--name {plan.name}: expected the suite that was begun under this name (digest {there.digest[:8]}), found "
            f"another one (digest {plan.suite.digest[:8]}); choose another name"
        )
    return True


def _begun_with(plan: SuitePlan) -> bool:
    """Return whether all cells that have ended under the run's name, with any code, are cells of the plan's suite."""
    known = {cell.spec.digest[:DIGEST_DIGITS] for cell in plan.to_run}
    return all(plan.layout.digest_of(key) in known for key in plan.objects.list(plan.layout.cells))


def read_start(objects: ObjectStore, prefix: str, name: str) -> SuiteStart:
    """Return how the suite run ``name`` was begun.

    Raises:
        SpecError: there is no suite run of this name; the message lists those that exist. Or its start is damaged.
    """
    check_name(name, source="suite run")
    layout = SuiteLayout(prefix, name)
    if not objects.exists(layout.suite):
        there = objects.list(prefix)
        if name in federations(prefix, there):
            raise SpecError(f"{name}: expected a suite run, found a federation (fedbench show {name})")
        raise SpecError(
            f"{name}: no such suite run in the store; expected one of: {listed(suite_runs(prefix, there), name)}"
        )
    return read_whole(objects, layout.suite, SuiteStart, RECORD_VERSION)


def read_plan(objects: ObjectStore, prefix: str, name: str) -> SuitePlan:
    """Return the plan of a suite run in the store.

    If this code has run none of its cells, the plan is that of the code which ran the last cell.

    Raises:
        SpecError: there is no suite run of this name.
    """
    start, layout = read_start(objects, prefix, name), SuiteLayout(prefix, name)
    code, keys = code_version(), list(objects.list(layout.cells))
    if keys and code not in map(layout.code_of, keys):
        records = [read_whole(objects, key, CellRecord, RECORD_VERSION) for key in keys]
        code = max(records, key=lambda record: record.ended).code_version
    return SuitePlan(name, start.suite, code, layout, objects)
