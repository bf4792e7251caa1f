"""The table that compares federated methods, and the line that describes each."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.report import text
from tasks.report.tables import Table, TableCell, n_of, paired_cell
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import CONFIDENCE, compare_methods


def methods_table(result: SuiteResult) -> Table | None:
    """Return the table of the federated methods beside FedAvg of the same local training; None if there are none.

    The difference is that of the same seeds' runs after equal passes.
    """
    compared = compare_methods(result)
    if not compared:
        return None
    rows = [
        [
            TableCell(item.experiment, strong=item.baseline is None),
            TableCell(item.baseline or "a baseline", words=True),
            TableCell(text.figure(item.figure), n_of(item.figure), strong=True),
            paired_cell(item.paired),
            TableCell(text.interval(item.interval)),
            TableCell(text.duration(item.seconds)),
            TableCell(text.size(item.moved)),
        ]
        for item in compared
    ]
    head = ["method", "paired with", result.metric, "difference", f"{CONFIDENCE:.0%} interval", "wall time", "moved"]
    return Table(f"Methods: {result.metric} less that of FedAvg with the same local training", head, rows, cards=True)


def methods(specs: Mapping[str, FederationSpec]) -> list[str]:
    """Return a line for each experiment: its method with the fields that are not defaults. None if all are FedAvg."""
    if all(spec.strategy == FedAvgSpec() for spec in specs.values()):
        return []
    return [f"{name}: {spec.strategy.label}" for name, spec in specs.items()]
