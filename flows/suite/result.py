"""Build the result of a suite run from its federations in the store."""

from __future__ import annotations

from datetime import UTC, datetime

from flows.stored.runs import read_run
from flows.suite.moved_cells import imported_result
from flows.suite.plan import SuitePlan
from infra.settings import Settings
from infra.tracking.federation import find_page
from infra.views import Views
from tasks.environment import this_environment
from tasks.spec.records import Environment
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellRecord, CellResult, FailedCell, SuiteResult
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
        page = None if record.imported is not None else _page(settings, mlflow_uri, record.federation, views)
        figures, machine = figures_of(plan, settings, cell, record)
        environment = environment or machine
        results.append(figures.model_copy(update={"mlflow_url": page}))
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


def figures_of(
    plan: SuitePlan, settings: Settings, cell: Cell, record: CellRecord
) -> tuple[CellResult, Environment | None]:
    """Return the figures of a done cell, and the machine that ran it: from its federation, unless it was imported.

    Raises:
        FedbenchError, InfraError: the federation cannot be read.
    """
    metric, target = plan.suite.metric, plan.suite.target
    if record.imported is not None:
        return imported_result(cell, record.imported, metric=metric, target=target), record.imported.result.machine
    run = read_run(plan.objects, settings, record.federation)
    result = cell_result(cell, record.federation, run.records, metric=metric, target=target)
    return result, run.records[-1].environment


def _page(settings: Settings, uri: str | None, federation: str, views: Views) -> str | None:
    if uri is None or not uri.startswith("http"):
        return None
    with views.showing("links to MLflow's pages"):
        return find_page(uri, settings.mlflow_experiment, federation, uri)
    return None
