"""A suite run in the store: what it runs, which of it has ended, and what the federations of its cells are called."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property

from flows.coordinator.preflight import pin
from flows.stored.runs import listed
from infra.settings import Settings
from infra.store.flush import flush
from infra.store.objects import ObjectStore
from infra.store.suite_layout import DIGEST_DIGITS, SuiteLayout, suite_runs
from tasks.code_version import DIGITS, code_version
from tasks.errors import SpecError
from tasks.spec.base import RECORD_VERSION, check_name
from tasks.spec.suite import Cell, Experiment, SuiteSpec, cells_of
from tasks.spec.suite_records import CellRecord, SuiteStart
from tasks.whole import DamagedObject, find_whole, read_whole

log = logging.getLogger(__name__)

LONGEST_NAME = 100  # of a federation


@dataclass(frozen=True)
class SuitePlan:
    """A suite run: its cells, each specification once, and where they are kept."""

    name: str
    suite: SuiteSpec
    code: str
    layout: SuiteLayout
    objects: ObjectStore

    @cached_property
    def cells(self) -> list[Cell]:
        """All cells, also those that have their specification in common."""
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
        """Each specification once, under its first cell's name."""
        return list(self._first.values())

    def federation(self, cell: Cell) -> str:
        """``cpu-9f31ab02.street5.s1-central.3f2a9c1e``: of a cell's first name, and the code that runs it."""
        return f"{self.name}.{self._first[cell.spec.digest].name}.{self.code[-DIGITS:]}"

    def record(self, cell: Cell) -> CellRecord | None:
        """How the cell ended when it was last run by this code; None when it has not."""
        key = self.layout.cell(cell.spec.digest, self.code)
        try:
            return find_whole(self.objects, key, CellRecord, RECORD_VERSION)
        except DamagedObject as error:
            log.warning("%s: cell %s is run again, from what its federation has in the store", error, cell.name)
            return None

    def keep(self, record: CellRecord) -> None:
        """Write how a cell has ended."""
        key = self.layout.cell(record.spec_digest, self.code)
        self.objects.put_json(key, record.model_dump(mode="json"))
        flush(self.objects, [key])


def default_name(suite: SuiteSpec) -> str:
    """``cpu-9f31ab02``: the same suite has the same name, and goes on."""
    return f"{suite.name}-{suite.digest[:8]}"


def pinned(suite: SuiteSpec, settings: Settings) -> SuiteSpec:
    """``suite`` with what only data and weight files tell filled in, as :func:`flows.coordinator.preflight.pin`.

    Raises:
        DataError, SpecError: naming the experiment too.
    """
    done: dict[str, Experiment] = {}
    experiments = []
    for experiment in suite.experiments:
        key = experiment.spec.model_dump_json(include={"data", "detector", "participation"})
        if key not in done:
            done[key] = experiment.model_copy(update={"spec": pin(experiment.spec, settings)})
        found = done[key].spec
        spec = experiment.spec.model_copy(
            update={"data": found.data, "detector": found.detector, "participation": found.participation}
        )
        experiments.append(experiment.model_copy(update={"spec": spec}))
    return suite.model_copy(update={"experiments": tuple(experiments)})


def claim(objects: ObjectStore, prefix: str, name: str, suite: SuiteSpec) -> SuitePlan:
    """The suite run ``name`` of ``suite``: begun, or gone on with. The caller holds its lock.

    Raises:
        SpecError: the name cannot be one, or is that of another suite's run.
    """
    check_name(name, source="--name")
    plan = SuitePlan(name, suite, code_version(), SuiteLayout(prefix, name), objects)
    longest = max((plan.federation(cell) for cell in plan.to_run), key=len)
    if len(longest) > LONGEST_NAME:
        excess = len(longest) - LONGEST_NAME
        raise SpecError(f"--name {name}: expected a name that is {excess} characters shorter: {longest} is too long")
    start = SuiteStart(suite_run=name, suite=suite, digest=suite.digest, started=datetime.now(UTC))
    key = plan.layout.suite
    try:
        there = read_start(objects, prefix, name) if objects.exists(key) else None
    except DamagedObject as error:
        if not _begun_with(plan):
            raise
        there = None
        objects.copy(key, f"{key}.damaged")
        log.warning("%s: written again as given; what was there is kept as %s.damaged", error, key)
    if there is None:
        objects.put_json(key, start.model_dump(mode="json"))
        flush(objects, [key])
        return plan
    if there.digest != start.digest:
        raise SpecError(
            f"--name {name}: expected the suite that was begun under this name (digest {there.digest[:8]}), found "
            f"another one (digest {start.digest[:8]}); choose another name"
        )
    return plan


def _begun_with(plan: SuitePlan) -> bool:
    """Whether all that has ended under the run's name, by whichever code, are cells of the plan's suite."""
    known = {cell.spec.digest[:DIGEST_DIGITS] for cell in plan.to_run}
    ended = plan.objects.list(plan.layout.cells)
    return all(key.removeprefix(plan.layout.cells)[:DIGEST_DIGITS] in known for key in ended)


def read_start(objects: ObjectStore, prefix: str, name: str) -> SuiteStart:
    """
    Raises:
        SpecError: there is no suite run of this name; lists those that there are. Or its start is damaged.
    """
    check_name(name, source="suite run")
    layout = SuiteLayout(prefix, name)
    if not objects.exists(layout.suite):
        names = suite_runs(prefix, objects.list(prefix))
        raise SpecError(f"{name}: no such suite run in the store; expected one of: {listed(names, name)}")
    return read_whole(objects, layout.suite, SuiteStart, RECORD_VERSION)


def read_plan(objects: ObjectStore, prefix: str, name: str) -> SuitePlan:
    """The suite run as it was begun: with the cells that this code has run, else those of the code that ran the last.

    Raises:
        SpecError: there is no suite run of this name.
    """
    start, layout = read_start(objects, prefix, name), SuiteLayout(prefix, name)
    code, keys = code_version(), list(objects.list(layout.cells))
    if keys and code not in map(layout.code_of, keys):
        records = [read_whole(objects, key, CellRecord, RECORD_VERSION) for key in keys]
        code = max(records, key=lambda record: record.ended).code_version
    return SuitePlan(name, start.suite, code, layout, objects)
