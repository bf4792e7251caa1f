"""Run a federation's flow in this process until it is done. After a server's failure, go on from the last commit."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Any

from prefect import Flow

from flows.coordinator.handles import open_handles
from flows.coordinator.interrupts import was_stopped
from flows.coordinator.outcome import Outcome
from flows.coordinator.session import OwnSession
from flows.views.mlflow_run import RunReport
from flows.views.progress import Progress
from flows.views.terminal import LogProgress
from infra.orchestrator.flow_runs import call, close_dead_runs
from infra.orchestrator.prefect_private import log_internals_by_root
from infra.orchestrator.run_log import page_log
from infra.settings import run_folder
from infra.store.lease import StoreLease
from tasks.handles import Handles, set_handles
from tasks.spec.federation import FederationSpec

log = logging.getLogger(__name__)

CLOSE_SECONDS = 10.0


def run_until_done(
    session: OwnSession,
    federation: Flow[..., Any],
    name: str,
    spec: FederationSpec,
    progress: Progress,
    again: str | None,
) -> Outcome:
    """Run the flow ``federation`` for ``name`` to its end. ``session`` holds the federation.

    again: the command that makes the report of a finished federation again.

    Raises:
        FedbenchError, InfraError: the federation cannot go on; the message says why.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the runs in MLflow and Prefect were marked.
    """
    log_internals_by_root()
    report = RunReport(name, spec, session.settings, session.services, run_folder(session.settings, name), again)
    with _closed_on_failure(name, report):
        for attempt in session.attempts():
            with attempt:
                resolved = session.settings.model_copy(update={"s3": session.store})
                handles = open_handles(
                    name, spec, resolved, progress, report, session.lease, lambda: LogProgress(page_log())
                )
                set_handles(handles)
                session.run_flow(_run(federation, name, spec, handles, session.lease))
                outcome = Outcome(
                    handles.history,
                    report.folder,
                    already_finished=False,
                    model=report.model,
                    failed=report.views.failed,
                    tuned=handles.tuned,
                    pages=report.pages,
                )
    return outcome


async def _run(
    federation: Flow[..., Any], name: str, spec: FederationSpec, handles: Handles, lease: StoreLease
) -> None:
    async with lease.ends_with_it():
        try:
            await close_dead_runs(name)
            await call(federation, name, name=name, spec=spec)
        finally:
            await handles.slots.close()


@contextlib.contextmanager
def _closed_on_failure(name: str, report: RunReport) -> Iterator[None]:
    """Mark the runs in MLflow and Prefect if the block fails or is interrupted."""
    try:
        yield
    except BaseException as error:
        stopped = was_stopped(error)
        report.close("KILLED" if stopped else "FAILED")
        _close_open_runs(name, interrupted=stopped)
        raise


def _close_open_runs(name: str, *, interrupted: bool) -> None:
    """Close the federation's runs in Prefect. Give up after ``CLOSE_SECONDS``: ending a run must not take long."""

    async def close() -> None:
        async with asyncio.timeout(CLOSE_SECONDS):
            await close_dead_runs(name, interrupted=interrupted)

    try:
        asyncio.run(close())
    except Exception as error:
        log.warning("Prefect's runs of %s stay open until it goes on: %s", name, error or type(error).__name__)
