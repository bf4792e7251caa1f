"""The table that ranks federated methods, and the line that describes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tasks.report import text
from tasks.report.tables import Table, TableCell, n_of, paired_cell, shared_note
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.suite.intervals import CONFIDENCE, LEAST_SEEDS
from tasks.suite.methods import Compared, compare_methods
from tasks.suite.sharing import sharing_of


def methods_table(result: SuiteResult, compared: Sequence[Compared] | None = None) -> Table | None:
    """Return the table of the federated methods beside FedAvg of the same local training; None if there are none.

    The difference is that of the same seeds' runs after equal passes. Methods of one baseline are in the order of it.

    compared: what :func:`tasks.suite.methods.compare_methods` returned; left out: compared without detections.
    """
    compared = compare_methods(result) if compared is None else compared
    if not compared:
        return None
    images, sharing = any(item.over_images is not None for item in compared), sharing_of(result)
    rows = [
        [
            TableCell(item.experiment, strong=item.baseline is None),
            TableCell(item.baseline or "a baseline", words=True),
            TableCell(text.figure(item.figure), n_of(item.figure), strong=True),
            paired_cell(item.paired),
            TableCell(text.interval(item.interval)),
            _over_seeds(item),
            *([_over_images(item)] if images else []),
            TableCell(text.NONE if item.rank is None else str(item.rank)),
            TableCell(text.duration(item.seconds), shared_note(sharing, _runs(result, item))),
            TableCell(text.size(item.moved)),
        ]
        for item in compared
    ]
    head = [
        "method", "paired with", result.metric, "difference", f"{CONFIDENCE:.0%} interval, Student’s t",
        "bootstrap, seeds", *(["bootstrap, seeds and images"] if images else []), "rank", "wall time", "moved",
    ]  # fmt: skip
    return Table(f"Methods: {result.metric} less that of FedAvg with the same local training", head, rows, cards=True)


def images_note(compared: Sequence[Compared]) -> str:
    """Return a sentence that says what the intervals over images are of, or that there are none."""
    if any(item.over_images is not None for item in compared):
        return (
            "The interval over seeds and images also draws the test images anew, the same for both runs; with fewer "
            "than three seeds it draws the images alone, and the seeds stay as they are."
        )
    return (
        "There is no interval over test images: the detections of the last rounds are not at hand, or are not of one "
        "test set that all clients have in common."
    )


def _over_seeds(item: Compared) -> TableCell:
    few = item.paired is not None and item.paired.difference.n < LEAST_SEEDS
    return TableCell(text.interval(item.over_seeds), f"fewer than {LEAST_SEEDS} seeds" if few else "")


def _over_images(item: Compared) -> TableCell:
    alone = item.over_images is not None and item.over_seeds is None
    return TableCell(text.interval(item.over_images), "images alone" if alone else "")


def _runs(result: SuiteResult, item: Compared) -> list[CellResult]:
    return [cell for cell in result.cells if cell.experiment == item.experiment and cell.role == "federated"]


def methods(specs: Mapping[str, FederationSpec]) -> list[str]:
    """Return a line for each experiment: its method with the fields that are not defaults. None if all are FedAvg."""
    if all(spec.strategy == FedAvgSpec() for spec in specs.values()):
        return []
    return [f"{name}: {spec.strategy.label}" for name, spec in specs.items()]
