"""What ``fedbench compare --json`` prints. docs/json.md lists the fields."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flows.commands.compare import Compared, find_gaps, warnings
from flows.suite.document import spread_document
from flows.views.documents import VERSION, course_document, figures_document, spec_document
from infra.views import Views
from tasks.spec.federation import changed_fields
from tasks.spec.references import is_reference
from tasks.spec.suite_records import SuiteResult
from tasks.suite.summary import summarise


def comparison_document(
    compared: Sequence[Compared], result: SuiteResult, files: Sequence[Path], views: Views
) -> dict[str, Any]:
    """Return the comparison: each federation's figures and costs, the gaps and gains, and the report's files."""
    first = compared[0]
    return {
        "version": VERSION,
        "metric": result.metric,
        "target": result.target,
        "federations": [_federation(item, first) for item in compared],
        "gaps": [
            {
                "federation": gap.federation,
                "reference": gap.reference,
                "passes": gap.passes,
                "difference": gap.difference,
                "best": gap.best,
            }
            for gap in find_gaps(compared, result.metric)
        ],
        "gains": [
            {
                "experiment": between.experiment,
                "passes": between.gain.passes,
                "difference": spread_document(between.gain.difference),
            }
            for between in summarise(result).experiments
            if between.gain is not None
        ],
        "warnings": warnings(compared),
        "files": [str(path) for path in files],
        "failed_files": views.failed,
    }


def _federation(item: Compared, first: Compared) -> dict[str, Any]:
    last, costs = item.records[-1], item.costs[-1]
    return {
        "name": item.name,
        "state": item.run.status,
        **spec_document(item.run.spec),
        **course_document(item.records),
        "image_passes": costs.passes,
        "exchanged_bytes": None if is_reference(item.run.spec) else costs.exchanged,
        "moved_bytes": costs.moved,
        "figures_on": last.shown_on,
        "chosen_by": item.run.spec.evaluation.decides,
        "best_round": item.best_round,
        "at_best_round": figures_document(item.best),
        "at_last_round": figures_document(item.last),
        "differences": {
            name: {"first": old, "this": new}
            for name, (old, new) in changed_fields(first.run.spec, item.run.spec).items()
        },
    }
