"""All that is written of a suite's result, by file name."""

from __future__ import annotations

import io
from collections.abc import Sequence

from tasks.report.csv import rounds_csv
from tasks.report.html import report_html
from tasks.report.latex import latex_tables
from tasks.spec.suite_records import SuiteResult


def report_files(
    result: SuiteResult, *, before: SuiteResult | None = None, notes: Sequence[str] = ()
) -> dict[str, bytes]:
    """``report.html``, ``rounds.csv``, ``table.tex``, and each plot as PNG and SVG.

    ``before`` and ``notes`` are for the page, as in :func:`tasks.report.html.report_html`.
    """
    from tasks.figures.suite import suite_plots  # here: matplotlib takes a second

    files = {
        "report.html": report_html(result, before=before, notes=notes).encode(),
        "rounds.csv": rounds_csv(result).encode(),
        "table.tex": latex_tables(result).encode(),
    }
    for name, figure in suite_plots(result).items():
        for ending, metadata in (("png", {}), ("svg", {"Date": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=metadata)
            files[f"{name}.{ending}"] = buffer.getvalue()
    return files
