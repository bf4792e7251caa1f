"""The table of a run's costs."""

from __future__ import annotations

from tasks.report import text
from tasks.report.tables import Table, TableCell, ordered, who
from tasks.suite.summary import Summary


def costs_table(summary: Summary) -> Table:
    """Return the table of a run's costs: rounds to the target, time and bytes."""
    head = [
        "experiment", "role", "rounds", "passes", "rounds to target", "reached by", "wall time", "GPU time",
        "exchanged", "moved",
    ]  # fmt: skip
    rows = []
    for between in summary.experiments:
        for number, row in enumerate(ordered(between)):
            rows.append(
                [
                    *who(row, number),
                    TableCell(text.count(row.rounds)),
                    TableCell(text.count(row.passes)),
                    TableCell(text.count(row.rounds_to_target)),
                    TableCell(f"{row.reached} of {row.runs}"),
                    TableCell(text.duration(row.seconds)),
                    TableCell(text.duration(row.gpu_seconds) if row.gpu_seconds.greatest else text.NONE),
                    TableCell(text.size(row.exchanged)),
                    TableCell(text.size(row.moved)),
                ]
            )
    return Table(
        f"Costs of one run, over all of its rounds; the target is {summary.metric} {summary.target:g}", head, rows
    )
