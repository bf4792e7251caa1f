"""Cells of two results: which an accepted result has and a new one lacks, and what else there is to say of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tasks.spec.suite_records import CellResult, SuiteResult


@dataclass(frozen=True)
class GoneCell:
    """A cell of the accepted result without a result now."""

    cell: CellResult
    why: str


def gone_cells(reference: SuiteResult, result: SuiteResult) -> list[GoneCell]:
    """Those that failed now, that were not run, and those of groups and devices that the suite has no more.

    A seed that was not asked for this time is none of them: reruns may have other seeds.
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
    """Other specifications and numbers of clients; seeds of one result alone; failures of cells that are new."""
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
    """``street5 federated, seeds 1, 2: <what>``."""
    seeds: dict[str, dict[int, None]] = {}
    for cell in cells:
        seeds.setdefault(f"{cell.experiment} {cell.role}", {})[cell.seed] = None
    return [
        f"{group}, seed{'' if len(found) == 1 else 's'} {', '.join(map(str, found))}: {what}"
        for group, found in seeds.items()
    ]
