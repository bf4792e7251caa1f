"""End a suite run: write its result and report to the store, this machine, MLflow and Prefect's page."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact

from flows.suite.accepted import accepted_result
from flows.suite.detections import read_analyses
from flows.suite.files import made_files, write_files
from flows.suite.finished import note_reported
from flows.suite.handles import SuiteHandles
from flows.suite.image_intervals import compared_methods
from flows.suite.models import register_best_models
from flows.suite.moved_cells import imported_notes
from flows.suite.result import build_result
from flows.views.mlflow_figures import suite_figures
from flows.views.prefect_page import artifact_key
from flows.views.suite_curves import charted, curves_over_seeds, suite_description
from infra.store.flush import flush
from infra.tracking.suite import SuiteFigures, SuitePages, track_suite
from tasks.plain_text import plain
from tasks.report.markdown import report_markdown
from tasks.spec.suite_records import SuiteResult
from tasks.suite.regression import Comparison, compare_results


async def leave(handles: SuiteHandles, *, compare: bool) -> list[str]:
    """Build the result, compare it with the accepted one, write and publish it.

    Returns a line for each failed cell and each regression.

    Raises:
        FedbenchError, InfraError: the result cannot be built or stored.
    """
    plan = handles.plan
    handles.say("building the report")
    result = await asyncio.to_thread(build_result, plan, handles.settings, handles.mlflow_uri, handles.views)
    await asyncio.to_thread(plan.objects.put_json, plan.layout.result, result.model_dump(mode="json"))
    await asyncio.to_thread(flush, plan.objects, [plan.layout.result])
    comparison: Comparison | None = None
    before: SuiteResult | None = None
    if compare:
        comparison, before = await asyncio.to_thread(_compared, handles, result)
    notes = [*_notes(comparison), *imported_notes(result)]
    analyses = await asyncio.to_thread(read_analyses, plan.objects, handles.settings, result, handles.views)
    compared = await asyncio.to_thread(compared_methods, plan.objects, handles.settings, result, handles.views)
    files = await asyncio.to_thread(
        made_files,
        handles.views,
        result,
        before=before,
        notes=notes,
        analyses=analyses,
        compared=compared,
    )
    with handles.views.showing(f"writing {handles.folder / 'report'}"):
        await asyncio.to_thread(write_files, handles.folder / "report", files)
    for file, data in files.items():
        await asyncio.to_thread(plan.objects.put_bytes, plan.layout.report(file), data)
    pages: SuitePages | None = None
    with handles.views.showing("MLflow's run of the suite"):
        pages = await asyncio.to_thread(
            track_suite,
            handles.mlflow_uri,
            handles.settings.mlflow_experiment,
            _tracked(handles, result),
            {**files, "suite.yaml": plan.suite.to_yaml().encode()},
            location=handles.mlflow_artifacts,
        )
    await asyncio.to_thread(register_best_models, handles, result)
    if pages is not None:
        handles.say(f"MLflow: {pages.curves or pages.parent}")
    with handles.views.showing("the report on Prefect's page"):
        await acreate_markdown_artifact(
            key=artifact_key("suite", plan.name),
            markdown=report_markdown(
                result, before=before, notes=notes, page=pages and pages.parent, compared=compared
            ),
            description=f"{len(result.cells)} of {len(plan.cells)} cells have a result.",
        )
        if pages is not None:
            await acreate_link_artifact(
                pages.children, link_text="All cells side by side in MLflow", key=artifact_key("mlflow", plan.name)
            )
    handles.say(f"report: {handles.folder / 'report' / 'report.html'}")
    for line in handles.views.lines():
        handles.say(f"warning: {line}")
    failed = [f"cell {cell.cell} failed: {plain(cell.reason)}" for cell in result.failed]
    problems = failed + ([] if comparison is None else [item.message for item in comparison.regressions])
    if not (problems or result.missing or handles.views.failed):
        prefix = handles.settings.s3.prefix
        await asyncio.to_thread(
            note_reported, handles.folder, plan.suite, result, plan.objects, prefix, compare=compare
        )
    return problems


def _tracked(handles: SuiteHandles, result: SuiteResult) -> SuiteFigures:
    plan = handles.plan
    return replace(
        suite_figures(result),
        curves=curves_over_seeds(result.cells),
        charted=charted(result.cells, result.metric),
        description=suite_description(plan.suite, plan.cells, result.cells),
    )


def _compared(handles: SuiteHandles, result: SuiteResult) -> tuple[Comparison | None, SuiteResult | None]:
    """Return the comparison with the accepted result, and that result; None for both if none was accepted yet."""
    objects, prefix = handles.plan.objects, handles.settings.s3.prefix
    accepted = accepted_result(objects, prefix, result.suite)
    if accepted is None:
        handles.say(
            f"no accepted result of suite {result.suite} yet; to accept this one: fedbench accept {result.suite_run}"
        )
        return None, None
    return compare_results(accepted.result, result, handles.plan.suite.rule), accepted.result


def _notes(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    worse = [f"Regression: {item.message}" for item in comparison.regressions]
    better = [f"Improvement: {item.message}" for item in comparison.improvements]
    return [*worse, *better, *comparison.notes]
