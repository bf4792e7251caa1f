"""The report's main tables as Markdown, for pages that show no HTML."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.plain_text import REASON_LIMIT, link_target, markdown
from tasks.report.cost_tables import costs_table, targets_table
from tasks.report.main_tables import before_table, main_table, measures_table
from tasks.report.method_tables import methods, methods_table
from tasks.report.tables import Table, TableCell
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import Compared
from tasks.suite.sharing import sharing_of
from tasks.suite.summary import held_out_notes, summarise


def report_markdown(
    result: SuiteResult, *, before: SuiteResult | None = None, notes: Sequence[str] = (), page: str | None = None,
    compared: Sequence[Compared] | None = None,
) -> str:  # fmt: skip
    """Return tables of each federation between its references, of all measures and of costs.

    ``before``, ``notes`` and ``compared`` are as in the HTML report. page: the address of the whole report, for a link.
    """
    summary = summarise(result)
    tables = [
        main_table(summary),
        measures_table(summary),
        targets_table(result, summary),
        costs_table(result, summary),
    ]
    if before is not None:
        tables.insert(1, before_table(result, before))
    ranked = methods_table(result, compared)
    if ranked is not None:
        tables.insert(0, ranked)
    lines = [f"# {markdown(result.suite_run)}", ""]
    lines += [f"Suite {markdown(result.suite)}, code {markdown(result.code_version)}.", ""]
    if page is not None:
        lines += [f"All runs, plots and the report: [MLflow]({link_target(page)})", ""]
    lines += [f"- {markdown(line)}" for line in methods(result.specs)]
    lines += [f"- {markdown(note, REASON_LIMIT)}" for note in (*notes, *held_out_notes(summary))]
    lines += [f"- {sharing_of(result).note}"] if result.cells else []
    lines += ["- ± is the sample standard deviation over seeds"] if result.cells else []
    lines += [f"- Cell {markdown(cell.cell)} failed: {markdown(cell.reason)}" for cell in result.failed]
    lines += [f"- Not run yet: {', '.join(map(markdown, result.missing))}"] if result.missing else []
    return "\n".join([*lines, *(line for table in tables for line in _rows(table))]) + "\n"


def _rows(table: Table) -> list[str]:
    marks = ["---", *("---:" for _ in table.head[1:])]
    rows = [[_cell(cell) for cell in row] for row in table.rows]
    lines = [f"| {' | '.join(row)} |" for row in ([markdown(head) for head in table.head], marks, *rows)]
    return ["", f"**{markdown(table.caption)}**", "", *lines]


def _cell(cell: TableCell) -> str:
    text = markdown(cell.text + (f" ({cell.note})" if cell.note else ""))
    return f"**{text}**" if cell.strong and text else text
