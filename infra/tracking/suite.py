"""Track a suite in MLflow: one parent run, whose children are the runs of its federations.

MLflow's page shows the children below the parent, and compares them by their names, tags and figures.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

from infra.tracking.client import TAG_FEDERATION, answering, experiment_named, page_url, run_tagged

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_SUITE_RUN = "fedbench.suite_run"
_PARENT = "mlflow.parentRunId"
_BATCH = 500


class SuitePages(NamedTuple):
    """MLflow's pages of a suite run: the parent run, and the charts of its children side by side."""

    parent: str
    children: str


@dataclass(frozen=True)
class CellFigures:
    """One cell, for MLflow: the name of its run, tags, and figures by metric name."""

    federation: str
    name: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class SuiteFigures:
    """A suite run, for MLflow. sorted_by: the metric by which the page of the children sorts them."""

    suite_run: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]
    cells: Sequence[CellFigures]
    sorted_by: str
    complete: bool


def track_suite(
    uri: str, experiment: str, suite: SuiteFigures, files: Mapping[str, bytes], *, location: str | None = None
) -> SuitePages | None:
    """Make the parent run of a suite run, or update it, and put the runs of its cells below it.

    Return the pages; None: ``uri`` is a database, which serves no pages.

    files: contents by name, kept with the parent run.
    location: where the experiment's files go, if it is made now.

    Raises:
        TrackingUnavailable: the server does not answer, or refuses.
    """
    tags = {TAG_SUITE_RUN: suite.suite_run, **suite.tags}
    with answering(uri) as client:
        experiment_id = experiment_named(client, experiment, location)
        parent = run_tagged(client, experiment_id, TAG_SUITE_RUN, suite.suite_run)
        run_id = (
            client.create_run(experiment_id, tags=tags, run_name=suite.suite_run).info.run_id
            if parent is None
            else parent.info.run_id
        )
        if parent is not None:
            _log(client, run_id, tags=tags)
        _log(client, run_id, metrics=suite.figures)
        for cell in suite.cells:
            child = run_tagged(client, experiment_id, TAG_FEDERATION, cell.federation)
            if child is not None:
                _log(client, child.info.run_id, tags={_PARENT: run_id, **cell.tags}, metrics=cell.figures)
                client.update_run(child.info.run_id, name=cell.name)
        with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            client.log_artifacts(run_id, folder, "report")
        client.set_terminated(run_id, "FINISHED" if suite.complete else "FAILED")
    if not uri.startswith("http"):
        return None
    return SuitePages(page_url(uri, experiment_id, run_id), _charts(uri, experiment_id, run_id, suite.sorted_by))


def _charts(uri: str, experiment_id: str, parent: str, metric: str) -> str:
    """Return the charts of the children, sorted by a metric: sorted by date, MLflow folds them below their parent."""
    query = {
        "searchFilter": f"tags.`{_PARENT}` = '{parent}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def _log(
    client: MlflowClient,
    run_id: str,
    *,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Log tags, and metrics at step 0, so that a metric that is logged again replaces only itself."""
    from mlflow.entities import Metric, RunTag
    from mlflow.utils.time import get_current_time_millis

    now = get_current_time_millis()
    points = [Metric(name, value, now, 0) for name, value in (metrics or {}).items() if math.isfinite(value)]
    for start in range(0, max(len(points), 1), _BATCH):
        client.log_batch(
            run_id,
            metrics=points[start : start + _BATCH],
            tags=[RunTag(name, value) for name, value in (tags or {}).items()] if start == 0 else [],
        )
