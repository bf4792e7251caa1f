"""A suite in MLflow: one parent run, whose children are the runs of its federations.

MLflow's page shows the children below the parent, and compares them by what each is given here: its cell's name, the
tags ``fedbench.experiment``, ``fedbench.role``, ``fedbench.seed``, and the figures of its last round as ``final/…``.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote, urlencode

from infra.tracking.federation import TAG_FEDERATION, answering, experiment_named, page_url, run_tagged

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_SUITE = "fedbench.suite"
TAG_SUITE_RUN = "fedbench.suite_run"
_PARENT = "mlflow.parentRunId"
_BATCH = 500


class SuitePages(NamedTuple):
    """Pages of MLflow's: the parent run, and its children's charts side by side."""

    parent: str
    children: str


def track_suite(
    uri: str,
    experiment: str,
    suite_run: str,
    result: Mapping[str, Any],
    files: Mapping[str, bytes],
    *,
    suite: str,
    names: Mapping[str, str],
    location: str | None = None,
) -> SuitePages | None:
    """Make, or bring up to date, the parent run of a dumped ``SuiteResult``, and hang its federations below it.

    files: of the report, by name. suite: the specification as YAML. names: what each federation's run is to be called.
    location: of the files of an experiment that is made now. Returns the pages, if a server has them.

    Raises:
        TrackingUnavailable: the server does not answer, or refuses.
    """
    with answering(uri) as client:
        experiment_id = experiment_named(client, experiment, location)
        parent = run_tagged(client, experiment_id, TAG_SUITE_RUN, suite_run)
        run_id = (
            client.create_run(experiment_id, tags=_tags(result), run_name=suite_run).info.run_id
            if parent is None
            else parent.info.run_id
        )
        if parent is not None:
            _log(client, run_id, tags=_tags(result))
        _log(client, run_id, metrics=_summary(result))
        for cell in result["cells"]:
            child = run_tagged(client, experiment_id, TAG_FEDERATION, cell["federation"])
            if child is not None:
                tags = {
                    _PARENT: run_id,
                    TAG_SUITE: result["suite"],
                    "fedbench.experiment": cell["experiment"],
                    "fedbench.role": cell["role"],
                    "fedbench.seed": str(cell["seed"]),
                    **({"fedbench.device": cell["device"]} if cell["device"] is not None else {}),
                }
                _log(client, child.info.run_id, tags=tags, metrics=_final(cell))
                client.update_run(child.info.run_id, name=names[cell["federation"]])
        with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
            for name, data in {**files, "suite.yaml": suite.encode()}.items():
                (Path(folder) / name).write_bytes(data)
            client.log_artifacts(run_id, folder, "report")
        client.set_terminated(run_id, "FAILED" if result["failed"] or result["missing"] else "FINISHED")
    if not uri.startswith("http"):
        return None
    return SuitePages(page_url(uri, experiment_id, run_id), _charts(uri, experiment_id, run_id, result["metric"]))


def _charts(uri: str, experiment_id: str, parent: str, metric: str) -> str:
    """Sorted by a metric, since MLflow folds children below their parent while it sorts by date."""
    query = {
        "searchFilter": f"tags.`{_PARENT}` = '{parent}'",
        "orderByKey": f"metrics.`final/{metric}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def _tags(result: Mapping[str, Any]) -> dict[str, str]:
    return {
        TAG_SUITE_RUN: result["suite_run"],
        TAG_SUITE: result["suite"],
        "fedbench.suite_digest": result["suite_digest"],
        "fedbench.code_version": result["code_version"],
    }


def _final(cell: Mapping[str, Any]) -> dict[str, float]:
    last = cell["points"][-1]
    figures = {f"final/{name}": value for name, value in last["figures"].items()}
    costs = {
        "final/rounds": last["round"],
        "final/passes": last["passes"],
        "final/seconds": last["seconds"],
        "final/exchanged_bytes": last["exchanged"],
        "final/gpu_seconds": cell["gpu_seconds"],
        "final/rounds_to_target": cell["rounds_to_target"],
    }
    return {name: float(value) for name, value in {**figures, **costs}.items() if value is not None}


def _summary(result: Mapping[str, Any]) -> dict[str, float]:
    """Mean over seeds (and devices) of the suite's metric, by experiment and role."""
    values: dict[str, list[float]] = {}
    for cell in result["cells"]:
        value = cell["points"][-1]["figures"].get(result["metric"])
        if value is not None:
            values.setdefault(f"{cell['experiment']}/{cell['role']}/{result['metric']}", []).append(value)
    means = {name: math.fsum(found) / len(found) for name, found in values.items()}
    counts = {name: float(len(result[name])) for name in ("cells", "failed", "missing")}
    return {**means, **{f"cells/{'done' if name == 'cells' else name}": count for name, count in counts.items()}}


def _log(
    client: MlflowClient,
    run_id: str,
    *,
    tags: Mapping[str, str] | None = None,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Tags and metrics (at step 0, so that what is logged again replaces nothing but itself)."""
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
