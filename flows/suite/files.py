"""Make and write the files of a report, for suites and comparisons. If one file fails, the others are still made."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infra.views import Views
from tasks.report.detections import CellAnalysis
from tasks.report.files import report_parts
from tasks.spec.suite_records import SuiteResult
from tasks.suite.methods import Compared


def made_files(
    views: Views,
    result: SuiteResult,
    *,
    before: SuiteResult | None = None,
    notes: Sequence[str] = (),
    analyses: Sequence[CellAnalysis] = (),
    compared: Sequence[Compared] | None = None,
) -> dict[str, bytes]:
    """Return the report's files by name. Those that cannot be made are left out, and noted in ``views``.

    The other arguments are those of :func:`tasks.report.files.report_parts`.
    """
    files, parts = {}, {}
    with views.showing("the report's plots"):
        parts = report_parts(result, before=before, notes=notes, analyses=analyses, compared=compared)
    for name, make in parts.items():
        with views.showing(name):
            files[name] = make()
    return files


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    """Write ``files`` into ``folder``. Create it if needed."""
    folder.mkdir(parents=True, exist_ok=True)
    for file, data in files.items():
        (folder / file).write_bytes(data)
