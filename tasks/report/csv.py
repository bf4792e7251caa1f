"""Every round of every run as CSV in long form, for plots and statistical tests."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator

from tasks.plain_text import spreadsheet_cell
from tasks.spec.suite_records import SuiteResult
from tasks.suite.results import FIGURES

HEAD = (
    "suite", "suite_run", "experiment", "role", "device", "seed", "federation", "spec_digest", "clients", "round",
    "passes", "steps", "seconds", "bytes_exchanged", *FIGURES, "last_round", "rounds_to_target", "bytes_moved",
    "gpu_seconds",
)  # fmt: skip


def rounds_csv(result: SuiteResult) -> str:
    """Return one row for each experiment, role, device, seed and round.

    Lines end in ``\\n``. A missing figure is empty.

    ``steps``, ``seconds`` and ``bytes_exchanged`` count from the start to that round. ``last_round`` is 1 in a run's
    last row. Only this row has ``rounds_to_target``, ``bytes_moved`` and ``gpu_seconds``, which are those of the whole
    run. A text that a spreadsheet would take for a formula gets an apostrophe in front; names made by fedbench never
    need one.
    If held-out images have a part in any run, two columns follow: ``figures_on`` (test or holdout), and ``best_round``
    if held-out images chose it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    held_out = any(cell.on != "test" or cell.best_round is not None for cell in result.cells)
    writer.writerow([*HEAD, *(("figures_on", "best_round") if held_out else ())])
    for row in _rows(result, held_out):
        writer.writerow([spreadsheet_cell(cell) if isinstance(cell, str) else cell for cell in row])
    return text.getvalue()


def _rows(result: SuiteResult, held_out: bool) -> Iterator[list[object]]:
    for cell in result.cells:
        run = [cell.experiment, cell.role, cell.device, cell.seed, cell.federation, cell.spec_digest, cell.clients]
        for point in cell.points:
            spent = [point.round, point.passes, point.steps, point.seconds, point.exchanged]
            whole = (
                [1, cell.rounds_to_target, cell.moved, cell.gpu_seconds]
                if point is cell.last
                else [0, None, None, None]
            )
            figures = [point.figures.get(name) for name in FIGURES]
            chosen = [cell.on, cell.best_round] if held_out else []
            yield [result.suite, result.suite_run, *run, *spent, *figures, *whole, *chosen]
