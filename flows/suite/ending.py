"""What a suite run leaves: its result and report in the store and on this machine, in MLflow and on Prefect's page."""

from __future__ import annotations

import asyncio

from prefect.artifacts import acreate_link_artifact, acreate_markdown_artifact

from flows.suite.accepted import accepted_result
from flows.suite.files import made_files, write_files
from flows.suite.handles import SuitePlace
from flows.suite.result import build_result
from flows.views.prefect_page import artifact_key
from infra.store.flush import flush
from infra.tracking.suite import SuitePages, track_suite
from tasks.plain_text import plain
from tasks.report.markdown import report_markdown
from tasks.spec.suite_records import SuiteResult
from tasks.suite.regression import Comparison, compare_results


async def leave(place: SuitePlace, *, compare: bool) -> list[str]:
    """Build the result, hold it against the accepted one, write and show it. Returns what is wrong, a line each.

    Raises:
        FedbenchError, InfraError: the result cannot be built or kept.
    """
    plan = place.plan
    place.say("building the report")
    result = await asyncio.to_thread(build_result, plan, place.settings, place.mlflow_uri, place.views)
    await asyncio.to_thread(plan.objects.put_json, plan.layout.result, result.model_dump(mode="json"))
    await asyncio.to_thread(flush, plan.objects, [plan.layout.result])
    comparison: Comparison | None = None
    before: SuiteResult | None = None
    if compare:
        comparison, before = await asyncio.to_thread(_held_against, place, result)
    files = await asyncio.to_thread(made_files, place.views, result, before=before, notes=_notes(comparison))
    with place.views.showing(f"writing {place.folder / 'report'}"):
        await asyncio.to_thread(write_files, place.folder / "report", files)
    for file, data in files.items():
        await asyncio.to_thread(plan.objects.put_bytes, plan.layout.report(file), data)
    pages: SuitePages | None = None
    with place.views.showing("MLflow's run of the suite"):
        pages = await asyncio.to_thread(
            track_suite,
            place.mlflow_uri,
            place.settings.mlflow_experiment,
            plan.name,
            result.model_dump(mode="json"),
            files,
            suite=plan.suite.to_yaml(),
            names={cell.federation: cell.name for cell in result.cells},
            location=place.mlflow_artifacts,
        )
    with place.views.showing("the report on Prefect's page"):
        await acreate_markdown_artifact(
            key=artifact_key("suite", plan.name),
            markdown=report_markdown(result, before=before, notes=_notes(comparison), page=pages and pages.parent),
            description=f"{len(result.cells)} of {len(plan.cells)} cells have a result.",
        )
        if pages is not None:
            await acreate_link_artifact(
                pages.children, link_text="All cells side by side in MLflow", key=artifact_key("mlflow", plan.name)
            )
    place.say(f"report: {place.folder / 'report' / 'report.html'}")
    for line in place.views.lines():
        place.say(f"warning: {line}")
    failed = [f"cell {cell.cell} failed: {plain(cell.reason)}" for cell in result.failed]
    return failed + ([] if comparison is None else [item.message for item in comparison.regressions])


def _held_against(place: SuitePlace, result: SuiteResult) -> tuple[Comparison | None, SuiteResult | None]:
    objects, prefix = place.plan.objects, place.settings.s3.prefix
    accepted = accepted_result(objects, prefix, result.suite)
    if accepted is None:
        place.say(f"no accepted result of suite {result.suite} yet: fedbench accept {result.suite_run}")
        return None, None
    return compare_results(accepted.result, result, place.plan.suite.rule), accepted.result


def _notes(comparison: Comparison | None) -> list[str]:
    if comparison is None:
        return []
    worse = [f"Regression: {item.message}" for item in comparison.regressions]
    better = [f"Improvement: {item.message}" for item in comparison.improvements]
    return [*worse, *better, *comparison.notes]
