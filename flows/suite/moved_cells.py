"""Turn a finished cell into a record that needs no federation in the store, and such a record into a result again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from tasks.metrics.over_rounds import best_round
from tasks.report.text import plural
from tasks.spec.federation import MAP_NAMES, MapName, flatten
from tasks.spec.records import RoundRecord
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellResult, ImportedCell, SuiteResult
from tasks.suite.results import cell_result

# The fields of a cell's result that the same cell has on every machine. Times, names and links may differ.
_SAME_EVERYWHERE = {"clients", "points", "per_class", "per_client", "personal", "on"}
_SAME_IN_POINTS = ("round", "figures", "passes")


def imported_cell(
    cell: Cell, federation: str, records: Sequence[RoundRecord], *, metric: MapName, target: float
) -> ImportedCell:
    """Return the figures of a cell for another store. The arguments are those of ``cell_result``, rounds in order.

    Raises:
        FedbenchError: there are no records, or a round is missing before the last.
    """
    result = cell_result(cell, federation, records, metric=metric, target=target)
    last = records[-1]
    rounds = sorted({0, last.decision.best_round, last.round})
    held_out = [record.figures_on("holdout") for record in records]
    decides = cell.spec.evaluation.decides == "holdout"
    return ImportedCell(
        result=result.model_copy(update={"machine": last.environment}),
        best_rounds={metric: best_round(held_out, metric)[0] for metric in MAP_NAMES} if decides else {},
        weights={number: records[number].model.sha256 for number in rounds},
    )


def imported_result(cell: Cell, imported: ImportedCell, *, metric: MapName, target: float) -> CellResult:
    """Return the figures of an imported cell as the result of ``cell``, which has the same specification.

    What depends on the suite's metric and target is computed anew, because the suite may have changed them since.
    """
    values = [point.figures.get(metric) for point in imported.result.points]
    reached = next((number for number, value in enumerate(values) if value is not None and value >= target), None)
    of_cell = {"experiment": cell.experiment, "role": cell.role, "seed": cell.seed, "device": cell.device}
    return imported.result.model_copy(
        update={**of_cell, "rounds_to_target": reached, "best_round": imported.best_rounds.get(metric)}
    )


def first_difference(expected: CellResult, found: CellResult) -> str | None:
    """Return the first figure in which two results of one cell differ, with both values; None if all are equal."""
    before, after = dict(_figures(expected)), dict(_figures(found))
    for name in [*before, *(name for name in after if name not in before)]:
        if before.get(name) != after.get(name):
            return f"{name}: expected {before.get(name)}, found {after.get(name)}"
    return None


def _figures(result: CellResult) -> Iterator[tuple[str, Any]]:
    document = result.model_dump(mode="json", include=_SAME_EVERYWHERE)
    for point in document.pop("points"):
        yield from flatten({name: point[name] for name in _SAME_IN_POINTS}, f"points.{point['round']}.").items()
    yield from flatten(document).items()


def imported_notes(result: SuiteResult) -> list[str]:
    """Return a line for each machine that cells were imported from: how many, and its processor and software."""
    machines: dict[str, int] = {}
    for cell in result.cells:
        if cell.machine is not None:
            machine = f"{cell.machine.cpu}, {plural(cell.machine.threads, 'thread')}, torch {cell.machine.torch}"
            machines[machine] = machines.get(machine, 0) + 1
    total = len(result.cells)
    return [f"{count} of {plural(total, 'cell')} imported, run on {machine}" for machine, count in machines.items()]
