"""Move the finished cells of a suite run to another store: export them, and import them from a file."""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.stored.runs import read_run
from flows.suite.export_file import export_text, read_export
from flows.suite.moved_cells import first_difference, imported_cell
from flows.suite.plan import SuitePlan, claim, read_plan, read_start
from flows.suite.result import build_result, figures_of
from infra.settings import Settings
from infra.store.flush import flush
from infra.store.holding import Subject, subject_held
from infra.store.layout import FederationLayout
from infra.store.leased import LeasedStore
from infra.store.objects import ObjectStore
from infra.store.suite_layout import SuiteLayout
from tasks.errors import SpecError
from tasks.plain_text import plain
from tasks.spec.base import check_name
from tasks.spec.federation import changed_fields
from tasks.spec.suite import Cell, SuiteSpec, cells_of
from tasks.spec.suite_records import CellRecord, SuiteExport
from tasks.whole import DamagedObject

_MOST_FIELDS = 3  # that a message lists of two specifications that differ


def export_suite(objects: ObjectStore, settings: Settings, name: str) -> SuiteExport:
    """Return the finished cells of the suite run ``name``: those that ``fedbench suite show`` has figures of.

    Raises:
        SpecError: there is no suite run of this name, or none of its cells is finished.
        FedbenchError, InfraError: a cell's federation cannot be read.
    """
    plan = read_plan(objects, settings.s3.prefix, name)
    cells = {}
    for cell in plan.to_run:
        record = plan.record(cell)
        if record is not None and record.state == "done":
            cells[cell.name] = _exported(plan, settings, cell, record)
    if not cells:
        raise SpecError(f"{name}: expected a finished cell, found none yet")
    return SuiteExport(suite_run=name, suite=plan.suite, digest=plan.suite.digest, cells=cells)


def _exported(plan: SuitePlan, settings: Settings, cell: Cell, record: CellRecord) -> CellRecord:
    """Return ``record`` with the cell's figures."""
    imported = record.imported
    if imported is None:
        records = read_run(plan.objects, settings, record.federation).records
        metric, target = plan.suite.metric, plan.suite.target
        imported = imported_cell(cell, record.federation, records, metric=metric, target=target)
    return record.model_copy(update={"cell": cell.name, "imported": imported})


def write_export(export: SuiteExport, path: Path) -> int:
    """Write ``export`` to ``path``. Return the size of the file in bytes.

    An earlier export of the same suite run is replaced, unless it has a cell that would be lost.

    Raises:
        SpecError: ``path`` is another file, or has a finished cell that ``export`` lacks.
        OSError: the file cannot be written; an older one stays as it was.
    """
    if path.exists():
        _check_replaceable(export, path)
    text = export_text(export).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(text)
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return len(text)


def _check_replaceable(export: SuiteExport, path: Path) -> None:
    advice = "choose another file, or remove this one first"
    try:
        there = read_export(path)
    except SpecError as error:
        raise SpecError(f"{error}\n{path} is not replaced; {advice}") from None
    if there.suite_run != export.suite_run:
        raise SpecError(
            f"{path}: suite_run: expected an export of {export.suite_run}, found one of {there.suite_run}; {advice}"
        )
    kept = {(record.spec_digest, record.code_version) for record in export.cells.values()}
    lost = [
        f"{name} (code {record.code_version})"
        for name, record in there.cells.items()
        if (record.spec_digest, record.code_version) not in kept
    ]
    if lost:
        raise SpecError(
            f"{path}: expected only cells that suite run {export.suite_run} has in the store, found others, which "
            f"would be lost: {', '.join(lost)}; import the file first if the code is the same, or {advice}"
        )


@dataclass(frozen=True)
class Import:
    """The outcome of an import.

    taken: the number of imported cells, by the version of the code that ran them. known: the number of cells that were
    in the store already. left: names of the cells that the code of ``plan`` has not done yet.
    """

    plan: SuitePlan
    taken: Mapping[str, int]
    known: int
    left: Sequence[str]


def import_suite(
    objects: ObjectStore,
    settings: Settings,
    export: SuiteExport,
    path: Path,
    *,
    name: str | None = None,
    suite: SuiteSpec | None = None,
    say: Callable[[str], None] | None = None,
) -> Import:
    """Take over the finished cells of ``export``, unless the store has them already. All are checked before the first.

    A cell counts for the code version that ran it, like every other cell.

    path: the file of ``export``, for messages. name: the suite run that they are taken into (default: that of the
    file); it is begun if there is none. suite: with digests and devices filled in, the suite that it must be a run of
    (default: that in the store, else the file's).
    say: called with a line when the suite run's lease must be waited for.

    Raises:
        SpecError: the name cannot be used, a cell is not of this suite, or the store has it with other figures.
        RunLocked: a process, on this machine or another, runs the suite; the message names it.
        InfraError: the store does not answer. The same call takes over the rest.
    """
    name = name or export.suite_run
    check_name(name, source="--name")
    prefix = settings.s3.prefix
    with subject_held(objects, settings, Subject.suite(settings, name), "fedbench suite import", say) as lease:
        store = LeasedStore(objects, lease)
        suite = suite or _begun(store, prefix, name) or export.suite
        cells = _matched(export, path, name, suite)
        plan = claim(store, prefix, name, suite)
        known = _known(plan, settings, export, path, cells)
        taken = [cell_name for cell_name in export.cells if cell_name not in known]
        for cell_name in taken:
            record = export.cells[cell_name].model_copy(update={"suite_run": name, "cell": cells[cell_name].name})
            dataclasses.replace(plan, code=record.code_version).keep(record)
        shown = read_plan(store, prefix, name)
        if taken:
            _keep_result(shown, settings)
        left = [cell.name for cell in shown.to_run if (here := shown.record(cell)) is None or here.state != "done"]
    return Import(shown, Counter(export.cells[taken_name].code_version for taken_name in taken), len(known), left)


def _begun(objects: ObjectStore, prefix: str, name: str) -> SuiteSpec | None:
    """Return the suite with which the suite run ``name`` was begun; None if it was not, or that record is damaged."""
    if not objects.exists(SuiteLayout(prefix, name).suite):
        return None
    try:
        return read_start(objects, prefix, name).suite
    except DamagedObject:
        return None  # claim writes it again if all cells that have ended are of the suite


def _matched(export: SuiteExport, path: Path, run: str, suite: SuiteSpec) -> dict[str, Cell]:
    """Return by name in the file the cell of ``suite`` with the same specification, the first if there are several.

    Raises:
        SpecError: the suite has no such cell.
    """
    here = cells_of(suite)
    by_name, by_digest = {cell.name: cell for cell in here}, {cell.spec.digest: cell for cell in reversed(here)}
    theirs = {cell.name: cell for cell in cells_of(export.suite, whole=False)}
    matched, faults = {}, []
    for name, record in export.cells.items():
        if record.spec_digest in by_digest:
            matched[name] = by_digest[record.spec_digest]
        elif name in by_name:
            faults.append(f"{path}: cells.{name}: {_how_they_differ(by_name[name], theirs[name])}")
        else:
            faults.append(
                f"{path}: cells.{name}: expected a cell of suite {suite.name} as suite run {run} has it, found another "
                f"specification (digest {record.spec_digest[:8]})"
            )
    if faults:
        raise SpecError("\n".join(faults))
    return matched


def _how_they_differ(expected: Cell, found: Cell) -> str:
    changes = [
        f"{field}: expected {plain(str(old))}, found {plain(str(new))}"
        for field, (old, new) in changed_fields(expected.spec, found.spec).items()
    ]
    more = f"; and {len(changes) - _MOST_FIELDS} more fields" if len(changes) > _MOST_FIELDS else ""
    return (
        f"spec_digest: expected {expected.spec.digest[:8]}, found {found.spec.digest[:8]}: "
        f"{'; '.join(changes[:_MOST_FIELDS])}{more}"
    )


def _known(
    plan: SuitePlan, settings: Settings, export: SuiteExport, path: Path, cells: Mapping[str, Cell]
) -> list[str]:
    """Return the names of the cells that the store has with the same figures, of the same code.

    Raises:
        SpecError: it has one with other figures.
    """
    known, faults = [], []
    for name, record in export.cells.items():
        of_code = dataclasses.replace(plan, code=record.code_version)
        here = of_code.record(cells[name])
        if here is None or here.state != "done" or not _has_figures(of_code, settings, here):
            continue
        assert record.imported is not None, "read_export has checked it"
        ours, _ = figures_of(of_code, settings, cells[name], here)
        difference = first_difference(ours, record.imported.result)
        if difference is None:
            known.append(name)
        else:
            faults.append(
                f"{path}: cells.{name}: {difference}; suite run {plan.name} has this cell with other figures, run by "
                "the same code; import the file into another run with --name"
            )
    if faults:
        raise SpecError("\n".join(faults))
    return known


def _has_figures(plan: SuitePlan, settings: Settings, record: CellRecord) -> bool:
    """Return whether the store has a cell's figures: imported ones, or its federation, which may have been removed."""
    layout = FederationLayout(settings.s3.prefix, record.federation)
    return record.imported is not None or plan.objects.exists(layout.spec)


def _keep_result(plan: SuitePlan, settings: Settings) -> None:
    """Write the suite run's result if all cells are done, so that it can be accepted without running the suite."""
    records = [plan.record(cell) for cell in plan.to_run]
    if all(record is not None and record.state == "done" for record in records):
        result = build_result(plan, settings)
        plan.objects.put_json(plan.layout.result, result.model_dump(mode="json"))
        flush(plan.objects, [plan.layout.result])
