"""The tables of a run's costs: over all rounds, and up to the target."""

from __future__ import annotations

from tasks.report import text
from tasks.report.tables import Table, TableCell, ordered, shared_note, who
from tasks.spec.suite_records import SuiteResult
from tasks.suite.area import area_over_bytes, common_budget
from tasks.suite.sharing import sharing_of
from tasks.suite.summary import Summary, runs_of, spread_of
from tasks.suite.targets import to_target


def costs_table(result: SuiteResult, summary: Summary) -> Table:
    """Return the table of a run's costs over all rounds: time and bytes."""
    head = ["experiment", "role", "rounds", "passes", "wall time", "GPU time", "exchanged", "moved"]
    rows, sharing = [], sharing_of(result)
    for between in summary.experiments:
        for number, row in enumerate(ordered(between)):
            rows.append(
                [
                    *who(row, number),
                    TableCell(text.count(row.rounds)),
                    TableCell(text.count(row.passes)),
                    TableCell(text.duration(row.seconds), shared_note(sharing, runs_of(result, row))),
                    TableCell(text.duration(row.gpu_seconds) if row.gpu_seconds.greatest else text.NONE),
                    TableCell(text.size(row.exchanged)),
                    TableCell(text.size(row.moved)),
                ]
            )
    return Table("Costs of one run, over all of its rounds", head, rows)


def targets_table(result: SuiteResult, summary: Summary) -> Table:
    """Return the table of what runs needed to reach the target, and of the area under their curves over bytes."""
    budget, sharing = common_budget(result), sharing_of(result)
    rows = []
    for between in summary.experiments:
        for number, row in enumerate(ordered(between)):
            cells = runs_of(result, row)
            found, federated = to_target(cells, summary.metric, summary.target), row.role == "federated"
            areas = [area_over_bytes(cell, summary.metric, budget) for cell in cells] if federated else []
            missed = text.missed(found.missed)
            shared = shared_note(sharing, cells) if found.reached else ""
            rows.append(
                [
                    *who(row, number),
                    TableCell(f"{found.reached} of {found.runs}"),
                    TableCell(text.count(found.rounds) if found.reached else missed, missed if found.reached else ""),
                    TableCell(text.count(found.steps)),
                    TableCell(text.size(found.exchanged) if federated else text.NONE),
                    TableCell(text.duration(found.seconds), shared),
                    TableCell(text.figure(spread_of(areas))),
                ]
            )
    head = ["experiment", "role", "reached by", "rounds", "steps", "exchanged", "wall time", "area over bytes"]
    up_to = f"; area up to {text.size(spread_of([float(budget)]))}" if budget else ""
    return Table(f"Up to the target; the target is {summary.metric} {summary.target:g}{up_to}", head, rows)
