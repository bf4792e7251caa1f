"""The tables of figures by experiment and role: between the references, all measures, against an earlier result."""

from __future__ import annotations

import itertools

from tasks.plain_text import plain_name, web_address
from tasks.report import text
from tasks.report.tables import (
    MEASURES,
    ORDER,
    Table,
    TableCell,
    n_of,
    ordered,
    paired_cell,
    shown_columns,
    single,
    who,
)
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.suite.summary import Between, Row, Summary, summarise, worst_class


def main_table(summary: Summary) -> Table:
    """Return the table of each federation's metric between its references, with gap and gain, paired by seed.

    Columns without any figure are left out.
    """
    shown = shown_columns(summary)
    rows = []
    for between in summary.experiments:
        cells = [TableCell(between.experiment, strong=True)]
        for role in ORDER:
            row = between.rows.get(role)
            spread = row.figures[summary.metric] if row is not None else None
            note = n_of(spread) + (_devices(row, between) if row is not None and role == "local-only" else "")
            cells.append(TableCell(text.figure(spread), note, strong=role == "federated"))
        cells += [paired_cell(between.gap), paired_cell(between.gain)]
        rows.append([cells[0], *itertools.compress(cells[1:], shown)])
    heads = ["local only", "federated", "centralised", "gap to centralised", "gain over local only"]
    head = ["experiment", *itertools.compress(heads, shown)]
    return Table(f"{summary.metric} at the last round", head, rows, cards=True)


def measures_table(summary: Summary) -> Table:
    """Return the table of all figures at the last round, with the best round's metric, and the worst class's AP50."""
    figures = [text.FIGURE_NAMES.get(name, name) for name in MEASURES]
    head = ["experiment", "role", "n", *figures, "best round’s", "worst class"]
    rows = [
        [
            *who(row, number),
            TableCell(str(len(row.seeds))),
            *(TableCell(text.figure(row.figures[name]), strong=name == summary.metric) for name in MEASURES),
            TableCell(text.figure(row.best)),
            _worst_class(row),
        ]
        for between in summary.experiments
        for number, row in enumerate(ordered(between))
    ]
    caption = (
        f"All measures at the last round; beside them the best round’s {summary.metric} and the worst class’s AP50"
    )
    return Table(caption, head, rows)


def _worst_class(row: Row) -> TableCell:
    found = worst_class(row.per_class)
    return TableCell(text.NONE) if found is None else TableCell(text.figure(found[1]), plain_name(found[0]))


def before_table(result: SuiteResult, before: SuiteResult) -> Table:
    """Return the table that compares a result with an earlier one of the same suite, by experiment and role."""
    metric = result.metric
    now, then = ({(row.experiment, row.role): row for row in summarise(one).rows} for one in (result, before))
    rows: list[list[TableCell]] = []
    for experiment in dict.fromkeys(name for name, _ in (*now, *then)):
        for role in ORDER:
            new, old = (found.get((experiment, role)) for found in (now, then))
            if new is None and old is None:
                continue
            first = not rows or all(row[0].text != experiment for row in rows)
            means = [row.figures[metric] if row is not None else None for row in (old, new)]
            change = means[1].mean - means[0].mean if means[0] and means[1] else None
            rows.append(
                [
                    TableCell(experiment if first else "", strong=True),
                    TableCell(text.ROLE_NAMES[role], words=True),
                    *(
                        cell
                        for row, mean in zip((old, new), means, strict=True)
                        for cell in (TableCell(text.figure(mean)), TableCell(str(mean.n) if mean else text.NONE))
                    ),
                    TableCell(text.NONE if change is None else text.signed_number(change), strong=True),
                ]
            )
    caption = f"{metric} at the last round, against {before.suite_run} (code {before.code_version})"
    return Table(caption, ["experiment", "role", "before", "n", "now", "n", "difference of means"], rows)


def runs_table(result: SuiteResult) -> Table:
    """Return the table of all runs."""
    head = ["run", "experiment", "role", "seed", "rounds", result.metric, "specification"]
    rows = [
        [
            TableCell(cell.federation, link=web_address(cell.mlflow_url or "")),
            TableCell(cell.experiment, words=True),
            TableCell(_role(cell), words=True),
            TableCell(str(cell.seed)),
            TableCell(str(cell.last.round)),
            TableCell(text.figure(single(cell.last.figures.get(result.metric)))),
            TableCell(cell.spec_digest[:12], words=True),
        ]
        for cell in result.cells
    ]
    return Table("Every run, with its figure at the last round", head, rows)


def _role(cell: CellResult) -> str:
    return text.ROLE_NAMES[cell.role] + (f", device {cell.device}" if cell.device is not None else "")


def _devices(row: Row, between: Between) -> str:
    """Return the number of devices in the mean, and the number of all devices if the federation has another number."""
    federated = between.rows.get("federated")
    of = f" of {federated.clients}" if federated is not None and federated.clients != len(row.devices) else ""
    return f", {len(row.devices)}{of} devices"
