"""Build the result of a suite run from its federations in the store."""

from __future__ import annotations

from datetime import UTC, datetime

from flows.stored.runs import read_run
from flows.suite.plan import SuitePlan
from infra.settings import Settings
from infra.tracking.federation import find_page
from infra.views import Views
from tasks.environment import this_environment
from tasks.spec.records import Environment
from tasks.spec.suite_records import CellResult, FailedCell, SuiteResult
from tasks.suite.results import cell_result


def build_result(
    plan: SuitePlan, settings: Settings, mlflow_uri: str | None = None, views: Views | None = None
) -> SuiteResult:
    """Return the figures of the cells that the plan's code has done. Failed and missing cells are listed by name.

    mlflow_uri: address of the server whose pages the result links to. There are no links if it is None or a database.
    views: notes if the server does not answer.

    Raises:
        FedbenchError, InfraError: the store cannot be read.
    """
    views = views or Views()
    results: list[CellResult] = []
    failed, missing = [], []
    environment: Environment | None = None
    for cell in plan.cells:
        record = plan.record(cell)
        if record is None:
            missing.append(cell.name)
            continue
        if record.state == "failed":
            failed.append(FailedCell(cell=cell.name, reason=record.reason or "no reason is on record"))
            continue
        run = read_run(plan.objects, settings, record.federation)
        environment = environment or run.records[-1].environment
        results.append(
            cell_result(
                cell,
                record.federation,
                run.records,
                metric=plan.suite.metric,
                target=plan.suite.target,
                mlflow_url=_page(settings, mlflow_uri, record.federation, views),
            )
        )
    return SuiteResult(
        suite=plan.suite.name,
        suite_run=plan.name,
        suite_digest=plan.suite.digest,
        metric=plan.suite.metric,
        target=plan.suite.target,
        code_version=plan.code,
        environment=environment or this_environment(plan.suite.experiments[0].spec),
        created=datetime.now(UTC),
        specs={experiment.name: experiment.spec for experiment in plan.suite.experiments},
        cells=tuple(results),
        failed=tuple(failed),
        missing=tuple(missing),
    )


def _page(settings: Settings, uri: str | None, federation: str, views: Views) -> str | None:
    if uri is None or not uri.startswith("http"):
        return None
    with views.showing("links to MLflow's pages"):
        return find_page(uri, settings.mlflow_experiment, federation, uri)
    return None
