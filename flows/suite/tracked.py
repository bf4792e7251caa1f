"""MLflow's parent run of a suite while the suite's cells run: it is there from the start, and grows with each cell."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator

from prefect import runtime

from flows.coordinator.interrupts import was_stopped
from flows.suite.handles import SuiteHandles
from flows.suite.result import figures_of
from flows.views.mlflow_figures import suite_tags
from flows.views.mlflow_texts import cell_run
from flows.views.suite_curves import curves_over_seeds, suite_description, whole_groups
from infra.tracking.federation import EndStatus
from infra.tracking.origin import origin_tags
from infra.tracking.suite import SuiteTracker
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellResult

_VIEW = "MLflow's run of the suite"


def _origin() -> dict[str, str]:
    deployment = runtime.deployment.name
    if deployment is not None:
        return origin_tags(f"suite/{deployment}", "JOB")
    return origin_tags("fedbench suite run", "LOCAL")


class TrackedSuite:
    """The parent run of the current suite run. MLflow's failures are noted in the suite's views."""

    def __init__(self, handles: SuiteHandles) -> None:
        self._handles = handles
        self._tracker: SuiteTracker | None = None
        self._results: dict[str, CellResult] = {}
        self._one = threading.Lock()

    async def open(self) -> None:
        """Find or make the parent run, and show the cells that are done already."""
        with self._handles.views.showing(_VIEW):
            self._tracker = await asyncio.to_thread(self._opened)
            await asyncio.to_thread(self._update)

    def _opened(self) -> SuiteTracker:
        handles = self._handles
        plan = handles.plan
        return SuiteTracker.open(
            handles.mlflow_uri,
            handles.settings.mlflow_experiment,
            plan.name,
            suite_tags(plan.suite.name, plan.suite.digest, plan.code),
            location=handles.mlflow_artifacts,
            origin=_origin,
        )

    def variables(self, cell: Cell) -> dict[str, str]:
        """Return the environment variables by which the cell's process puts its run below the parent."""
        parent = None if self._tracker is None else self._tracker.run_id
        return cell_run(self._handles.plan.suite.name, cell, parent).variables()

    async def cell_ended(self) -> None:
        """Log the curves of experiments whose cells are all done by now, and update the description."""
        if self._tracker is not None:
            with self._handles.views.showing(_VIEW):
                await asyncio.to_thread(self._update)

    def _update(self) -> None:
        with self._one:
            plan = self._handles.plan
            for cell in plan.cells:
                if cell.name not in self._results:
                    record = plan.record(cell)
                    if record is not None and record.state == "done":
                        self._results[cell.name] = figures_of(plan, self._handles.settings, cell, record)[0]
            results = [self._results[cell.name] for cell in plan.cells if cell.name in self._results]
            assert self._tracker is not None
            curves = curves_over_seeds(whole_groups(plan.cells, results))
            self._tracker = self._tracker.with_curves(curves, self._opened)
            self._tracker.describe(suite_description(plan.suite, plan.cells, results))

    @contextlib.contextmanager
    def closed_on_failure(self) -> Iterator[None]:
        """End the parent run as KILLED or FAILED if the block is stopped or fails."""
        try:
            yield
        except BaseException as error:
            self._close("KILLED" if was_stopped(error) else "FAILED")
            raise

    def _close(self, status: EndStatus) -> None:
        if self._tracker is not None:
            with self._handles.views.showing(_VIEW):
                self._tracker.close(status)
