"""Track a suite in MLflow: one parent run, whose children are the runs of its federations.

The parent run is there from the start of the suite. MLflow's page shows the children below the parent, and compares
them by their names, tags and figures. The parent has curves by round over the children of one experiment, because
MLflow cannot draw a mean over runs.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

from infra.tracking.cell import PARENT_TAG
from infra.tracking.client import (
    TAG_FEDERATION,
    answering,
    answers,
    client_at,
    experiment_named,
    page_url,
    run_tagged,
)
from infra.tracking.federation import TAG_SUPERSEDED, EndStatus, RoundFigures
from infra.tracking.metric_page import metric_page
from infra.tracking.note import write_note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TAG_SUITE_RUN = "fedbench.suite_run"
_BATCH = 500


class SuitePages(NamedTuple):
    """MLflow's pages of a suite run: the parent run, the charts of its children side by side, and its mean by round.

    curves is None if no experiment has a curve.
    """

    parent: str
    children: str
    curves: str | None = None


@dataclass(frozen=True)
class CellFigures:
    """One cell, for MLflow: the name of its run, tags, and figures by metric name."""

    federation: str
    name: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]


@dataclass(frozen=True)
class SuiteFigures:
    """A suite run, for MLflow.

    sorted_by: the metric by which the page of the children sorts them. curves: figures over the seeds, by round.
    charted: names of those that the page of curves shows. description: Markdown.
    """

    suite_run: str
    tags: Mapping[str, str]
    figures: Mapping[str, float]
    cells: Sequence[CellFigures]
    sorted_by: str
    complete: bool
    curves: Sequence[RoundFigures] = ()
    charted: Sequence[str] = ()
    description: str | None = None


class SuiteTracker:
    """The open parent run of one suite run. Every method may raise TrackingUnavailable."""

    def __init__(self, client: MlflowClient, uri: str, experiment_id: str, run_id: str, suite_run: str) -> None:
        self._client, self._uri, self.experiment_id = client, uri, experiment_id
        self.run_id, self._suite_run = run_id, suite_run

    @classmethod
    def open(
        cls,
        uri: str,
        experiment: str,
        suite_run: str,
        tags: Mapping[str, str],
        *,
        location: str | None = None,
        origin: Callable[[], Mapping[str, str]] = dict,
    ) -> SuiteTracker:
        """Find and reopen the parent run of a suite run, or create it.

        location: where the experiment's files go, if it is made now. origin: returns tags that only a new run gets.

        Raises:
            TrackingUnavailable: the server does not answer, or refuses.
        """
        with answers(uri):
            client = client_at(uri)
            experiment_id = experiment_named(client, experiment, location)
            tags = {TAG_SUITE_RUN: suite_run, **tags}
            run = run_tagged(client, experiment_id, TAG_SUITE_RUN, suite_run)
            if run is None:
                run = client.create_run(experiment_id, tags={**origin(), **tags}, run_name=suite_run)
            else:
                client.update_run(run.info.run_id, status="RUNNING")
                _log(client, run.info.run_id, tags=tags)
            return cls(client, uri, experiment_id, run.info.run_id, suite_run)

    def log_curves(self, curves: Sequence[RoundFigures]) -> bool:
        """Log figures over the seeds by round. Return False, and log nothing, if the run has other points of them.

        Then seeds have been run again, with other results, and the run must be superseded: MLflow cannot delete points.
        Points that the run has already, at whatever time, are not logged again.
        """
        from mlflow.entities import Metric

        points = [
            Metric(key, float(value), item.milliseconds, item.round)
            for item in curves
            for key, value in item.figures.items()
            if value is not None and math.isfinite(value)
        ]
        known = {(point.key, point.step, point.value) for point in points}
        with answers(self._uri):
            logged = self._client.get_run(self.run_id).data.metrics
            for key in sorted({point.key for point in points} & logged.keys()):
                history = self._client.get_metric_history(self.run_id, key)
                found = {(key, point.step, point.value) for point in history}
                if found - known:
                    return False
                points = [point for point in points if (point.key, point.step, point.value) not in found]
            for start in range(0, len(points), _BATCH):
                self._client.log_batch(self.run_id, metrics=points[start : start + _BATCH])
        return True

    def with_curves(self, curves: Sequence[RoundFigures], opened: Callable[[], SuiteTracker]) -> SuiteTracker:
        """Log figures over the seeds by round. Return the run that has them: this one, or a new one in its place.

        opened: opens the suite run's parent, as :meth:`open`; called if this one has other points and is superseded.
        """
        if self.log_curves(curves):
            return self
        self.supersede()
        new = opened()
        new.log_curves(curves)
        return new

    def describe(self, text: str) -> None:
        """Set the description on the run's page (Markdown), unless a person has changed it there."""
        with answers(self._uri):
            write_note(self._client, self.run_id, text)

    def supersede(self) -> None:
        """End the run, and take the suite run's tag from it, so that :meth:`open` makes a new one."""
        name = f"{self._suite_run} (superseded)"
        with answers(self._uri):
            _log(self._client, self.run_id, tags={TAG_SUITE_RUN: name, TAG_SUPERSEDED: self._suite_run})
            self._client.update_run(self.run_id, name=name)
            self._client.set_terminated(self.run_id, "KILLED")

    def close(self, status: EndStatus) -> None:
        """End the run; :meth:`open` reopens it."""
        with answers(self._uri):
            self._client.set_terminated(self.run_id, status)


def find_suite_page(uri: str, experiment: str, suite_run: str, base: str) -> str | None:
    """Return the page of a suite run's parent in the MLflow UI at ``base``; None: there is none.

    Raises:
        TrackingUnavailable: the server does not answer.
    """
    with answering(uri) as client:
        found = client.get_experiment_by_name(experiment)
        run = None if found is None else run_tagged(client, found.experiment_id, TAG_SUITE_RUN, suite_run)
        return None if run is None else page_url(base, run.info.experiment_id, run.info.run_id)


def track_suite(
    uri: str, experiment: str, suite: SuiteFigures, files: Mapping[str, bytes], *, location: str | None = None
) -> SuitePages | None:
    """Make the parent run of a suite run, or update it, and put the runs of its cells below it. End the parent run.

    Return the pages; None: ``uri`` is a database, which serves no pages.

    files: contents by name, kept with the parent run.
    location: where the experiment's files go, if it is made now.

    Raises:
        TrackingUnavailable: the server does not answer, or refuses.
    """

    def opened() -> SuiteTracker:
        return SuiteTracker.open(uri, experiment, suite.suite_run, suite.tags, location=location)

    tracker = opened().with_curves(suite.curves, opened)
    if suite.description is not None:
        tracker.describe(suite.description)
    run_id, experiment_id = tracker.run_id, tracker.experiment_id
    with answering(uri) as client:
        _log_changed(client, client.get_run(run_id), suite.figures)
        for cell in suite.cells:
            child = run_tagged(client, experiment_id, TAG_FEDERATION, cell.federation)
            if child is not None:
                _log(client, child.info.run_id, tags={PARENT_TAG: run_id, **cell.tags})
                _log_changed(client, child, cell.figures)
                client.update_run(child.info.run_id, name=cell.name)
        with tempfile.TemporaryDirectory(prefix="fedbench-") as folder:
            for name, data in files.items():
                (Path(folder) / name).write_bytes(data)
            client.log_artifacts(run_id, folder, "report")
    tracker.close("FINISHED" if suite.complete else "FAILED")
    if not uri.startswith("http"):
        return None
    return SuitePages(
        page_url(uri, experiment_id, run_id),
        _charts(uri, experiment_id, run_id, suite.sorted_by),
        metric_page(uri, experiment_id, [run_id], suite.charted) if suite.charted else None,
    )


def _charts(uri: str, experiment_id: str, parent: str, metric: str) -> str:
    """Return the charts of the children, sorted by a metric: sorted by date, MLflow folds them below their parent."""
    query = {
        "searchFilter": f"tags.`{PARENT_TAG}` = '{parent}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": "false",
        "compareRunsMode": "CHART",
        "workflowType": "machine_learning",
    }
    return f"{uri.rstrip('/')}/#/experiments/{experiment_id}/runs?{urlencode(query, quote_via=quote)}"


def _log_changed(client: MlflowClient, run: Run, metrics: Mapping[str, float]) -> None:
    """Log those of ``metrics`` that the run does not have with this value."""
    logged = run.data.metrics
    _log(client, run.info.run_id, metrics={name: value for name, value in metrics.items() if logged.get(name) != value})


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
