"""The tables of figures by class, by device and by client."""

from __future__ import annotations

from tasks.plain_text import plain_name
from tasks.report import text
from tasks.report.tables import MEASURES, Table, TableCell, ordered
from tasks.spec.suite_records import SuiteResult
from tasks.spec.training import PART_NAMES
from tasks.suite.summary import Between, Row, Summary, runs_of


def classes_table(between: Between) -> Table:
    """Return the table of every class's AP50 at the last round, by role."""
    rows = ordered(between)
    classes = list(dict.fromkeys(name for row in rows for name in row.per_class))
    return Table(
        f"{between.experiment}: AP50 by VOC 2010 of every class, at the last round",
        ["class", *(f"{text.ROLE_NAMES[row.role]} (n\u00a0=\u00a0{len(row.seeds)})" for row in rows)],
        [
            [
                TableCell(plain_name(name)),
                *(TableCell(text.figure(row.per_class.get(name)), strong=row.role == "federated") for row in rows),
            ]
            for name in classes
        ],
    )


def devices_table(between: Between, summary: Summary) -> Table:
    """Return the table of the local-only figures of each device alone."""
    images = "its held-out" if any(row.on == "holdout" for row in between.devices) else "every device’s test"
    return Table(
        f"{between.experiment}: each device alone, scored on {images} images, at the last round",
        ["device", "n", *(text.FIGURE_NAMES.get(name, name) for name in MEASURES)],
        [
            [
                TableCell(str(row.device)),
                TableCell(str(len(row.seeds))),
                *(TableCell(text.figure(row.figures[name]), strong=name == summary.metric) for name in MEASURES),
            ]
            for row in between.devices
        ],
    )


def clients_table(row: Row, metric: str) -> Table:
    """Return the table of the global model's figures on each client's own test set or held-out images."""
    return Table(
        f"{row.experiment}: the {text.ROLE_NAMES[row.role]} model on each client’s own {PART_NAMES[row.on]} images, "
        f"at the last round; {text.plural(len(row.seeds), 'seed')}",
        ["client", *(text.FIGURE_NAMES.get(name, name) for name in MEASURES)],
        [
            [
                TableCell(client),
                *(TableCell(text.figure(figures.get(name)), strong=name == metric) for name in MEASURES),
            ]
            for client, figures in row.per_client.items()
        ],
    )


def own_models_table(result: SuiteResult, summary: Summary) -> Table | None:
    """Return the table of clients' own models, by experiment; None if no method keeps any."""
    rows = [row for row in summary.rows if row.own]
    if not rows:
        return None
    return Table(
        f"Clients’ own models at the last round: {text.FIGURE_NAMES.get(summary.metric, summary.metric)} over clients",
        ["experiment", "seeds", "mean over clients", "worst client", "standard deviation over clients"],
        [
            [
                TableCell(row.experiment, strong=True),
                TableCell(str(len(row.seeds))),
                TableCell(text.figure(row.own.get("mean"))),
                TableCell(text.figure(row.own.get("worst")), _worst_clients(result, row)),
                TableCell(text.figure(row.own.get("deviation"))),
            ]
            for row in rows
        ],
    )


def _worst_clients(result: SuiteResult, row: Row) -> str:
    """Return the names of the clients that are the worst ones of the seeds."""
    found = [cell.personal.figures[result.metric] for cell in runs_of(result, row)
             if cell.personal is not None and result.metric in cell.personal.figures]  # fmt: skip
    names = ", ".join(dict.fromkeys(spread.worst_client for spread in found))
    return f"client {names}" if names else ""
