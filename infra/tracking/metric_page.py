"""MLflow's page that draws chosen metrics of several runs by round, and how to find it for federations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from urllib.parse import quote, urlencode

from infra.tracking.client import TAG_FEDERATION, answering, run_tagged


def metric_page(base: str, experiment_id: str, runs: Sequence[str], metrics: Sequence[str]) -> str:
    """Return the page at ``base`` with the curves of ``metrics`` by step, for each of the runs.

    The form is that of MLflow 3.17 (``getMetricPageRoute`` in its page's routes).
    """
    query = {
        "runs": json.dumps(list(runs)),
        "metric": json.dumps(metrics[0]),
        "experiments": json.dumps([experiment_id]),
        "plot_metric_keys": json.dumps(list(metrics)),
        "plot_layout": "{}",
        "x_axis": "step",
        "y_axis_scale": "linear",
        "line_smoothness": "1",
        "show_point": "true",
        "deselected_curves": "[]",
        "last_linear_y_axis_range": "[]",
        "workflowType": "machine_learning",
    }
    return f"{base.rstrip('/')}/#/metric?{urlencode(query, quote_via=quote)}"


def find_metric_page(
    uri: str, experiment: str, federations: Sequence[str], metrics: Sequence[str], base: str
) -> str | None:
    """Return the page at ``base`` with the first of ``metrics`` that a run has, for the runs of the federations.

    None: less than two of them have a run, or none has one of the metrics.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    with answering(uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return None
        runs = [
            run
            for name in federations
            if (run := run_tagged(client, found.experiment_id, TAG_FEDERATION, name)) is not None
        ]
    metric = next((key for key in metrics if any(key in run.data.metrics for run in runs)), None)
    if len(runs) < 2 or metric is None:
        return None
    return metric_page(base, found.experiment_id, [run.info.run_id for run in runs], [metric])
