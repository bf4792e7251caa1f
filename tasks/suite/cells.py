"""Compare the cells of an accepted and a new result: those that are missing now, and notes on the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.spec.suite_records import CellResult, SuiteResult


@dataclass(frozen=True)
class GoneCell:
    """A cell of the accepted result that has no result now, and why."""

    cell: CellResult
    why: str


def gone_cells(reference: SuiteResult, result: SuiteResult) -> list[GoneCell]:
    """Return the accepted cells that now failed or were not run, or whose group or device the suite no longer has.

    A cell whose seed was not asked for this time is not returned: reruns may have other seeds.
    """
    now = {cell.name for cell in result.cells}
    failed = {cell.cell: cell.reason for cell in result.failed}
    asked = {(cell.experiment, cell.role, cell.device) for cell in result.cells}
    gone = []
    for cell in reference.cells:
        if cell.name in now:
            continue
        if cell.name in failed:
            gone.append(GoneCell(cell, f"failed: {failed[cell.name]}"))
        elif cell.name in result.missing or (cell.experiment, cell.role, cell.device) not in asked:
            gone.append(GoneCell(cell, "was not run"))
    return gone


def notes_on_cells(reference: SuiteResult, result: SuiteResult) -> list[str]:
    """Return notes on the cells that :func:`gone_cells` leaves out.

    These have another specification or number of clients, are in one result only, or are new and failed.
    """
    before = {cell.name: cell for cell in reference.cells}
    after = {cell.name: cell for cell in result.cells}
    both = [(before[name], after[name]) for name in before if name in after]
    gone = {item.cell.name for item in gone_cells(reference, result)}
    notes = _by_group("another specification than the accepted one", (
        cell for cell, now in both if cell.spec_digest != now.spec_digest
    ))  # fmt: skip
    notes += [
        f"{cell.name}: {cell.clients} → {now.clients} clients" for cell, now in both if cell.clients != now.clients
    ]
    others = (cell for name, cell in before.items() if name not in after and name not in gone)
    notes += _by_group("in the accepted result alone", others)
    notes += _by_group("not in the accepted result", (cell for name, cell in after.items() if name not in before))
    new = [(cell.cell, f"failed: {cell.reason}") for cell in result.failed]
    new += [(name, "was not run") for name in result.missing]
    return notes + [f"{name}: {why}; not in the accepted result" for name, why in new if name not in before]


def _by_group(what: str, cells: Iterable[CellResult]) -> list[str]:
    """Return a note for each group of ``cells``, such as ``street5 federated, seeds 1, 2: <what>``."""
    seeds: dict[str, dict[int, None]] = {}
    for cell in cells:
        seeds.setdefault(f"{cell.experiment} {cell.role}", {})[cell.seed] = None
    return [
        f"{group}, seed{'' if len(found) == 1 else 's'} {', '.join(map(str, found))}: {what}"
        for group, found in seeds.items()
    ]
