"""A suite as a Prefect flow. Each of its cells is a task, which runs a federation in its own process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Literal
from uuid import UUID

from prefect import flow, runtime, task
from prefect.artifacts import acreate_progress_artifact, aupdate_progress_artifact

from flows.coordinator.hooks import go_on
from flows.federation import run_name
from flows.suite.cell_process import run_cell
from flows.suite.deployed import run_deployed
from flows.suite.ending import leave
from flows.suite.handles import has_suite_handles, log_to_page, suite_handles
from flows.suite.schedule import Estimate, duration, run_all, slots_of
from flows.suite.tracked import TrackedSuite
from flows.views.prefect_page import artifact_key
from infra.orchestrator.flow_runs import PARENT_VARIABLE, tag_run
from infra.orchestrator.run_log import page_log
from infra.store.layout import FederationLayout
from tasks.errors import FedbenchError
from tasks.plain_text import plain
from tasks.spec.base import ScheduledName
from tasks.spec.suite import Cell, SuiteSpec
from tasks.spec.suite_records import CellRecord

log = logging.getLogger(__name__)

LOOK_SECONDS = 10.0  # between two looks at the rounds of running cells
_PROGRESS = "the progress on Prefect's page"


class CellFailed(FedbenchError):
    """A cell has ended without a result."""


class SuiteFailed(FedbenchError):
    """Cells have failed, or the result is worse than the accepted one. The report is written all the same."""


@flow(name="suite", flow_run_name=run_name, persist_result=False, on_crashed=[go_on])
async def suite(
    name: ScheduledName = None,
    preset: Literal["smoke", "cpu", "paper", "methods", "methods-final", "methods-smoke"] = "smoke",
    spec: SuiteSpec | None = None,
    compare: bool = True,
) -> str:
    """Run the cells of a suite that are not done yet, and write its report. Returns the suite run's name.

    Args:
        name: The suite run's name. An existing suite run of this name is continued: cells that the same code has done
            are not run again. Left out: deployment and scheduled time, so that every run is a new one.
        preset: The suite to run.
        spec: A suite of your own, in place of the preset.
        compare: Compare the result with the accepted one of the same suite, and fail if it is worse.

    Raises:
        SuiteFailed: cells failed, or the result is worse than the accepted one. The message names the cells, and for a
            worse figure the metric and its values before and after.
        FedbenchError, InfraError: the suite cannot start; the message says why.
    """
    if has_suite_handles():
        log_to_page(page_log().info)
        return await cells(compare=compare)
    return await run_deployed(name, preset, spec, lambda: cells(compare=compare))


async def cells(*, compare: bool) -> str:
    """Run the cells of the current suite run that are not done, then write the report. Return the suite run's name."""
    handles = suite_handles()
    plan = handles.plan
    with handles.views.showing("the tag of Prefect's run"):
        await tag_run(UUID(runtime.flow_run.get_id()), plan.name, kind="suite")
    all_cells = plan.to_run
    done = await asyncio.to_thread(plan.done)
    waiting = [cell for cell in all_cells if cell.name not in done]
    for note in await asyncio.to_thread(plan.notes_on_code, waiting):
        handles.say(note)
    weights = {cell.name: 1 if handles.settings.pools.used else slots_of(cell, handles.capacity) for cell in all_cells}
    progress = SuiteProgress(waiting, len(done), Estimate(weights, handles.capacity))
    await progress.open(done)
    tracked = TrackedSuite(handles)
    if waiting:
        await tracked.open()

    async def one(cell: Cell) -> None:
        async with progress.running(cell):
            with contextlib.suppress(CellFailed):  # the task run and the record show it, and other cells go on
                variables = tracked.variables(cell)
                await run_one.with_options(task_run_name=cell.name)(cell.name, weights[cell.name], variables)
        await tracked.cell_ended()

    with tracked.closed_on_failure():
        async with progress.reported():
            await run_all(waiting, weights, handles.capacity, one)
        problems = await leave(handles, compare=compare)
    if problems:
        raise SuiteFailed("\n".join(problems))
    return plan.name


@task(name="cell", persist_result=False)
async def run_one(name: str, slots: int, variables: dict[str, str]) -> str:
    """Run one cell to its end. Returns the name of its federation.

    variables: more environment variables for its process.

    Raises:
        CellFailed: the cell has ended without a result.
    """
    handles = suite_handles()
    cell = next(cell for cell in handles.plan.to_run if cell.name == name)
    record = await run_cell(
        handles.plan,
        cell,
        handles.folder,
        None if handles.settings.pools.used else slots,
        {**handles.environment, **variables, PARENT_VARIABLE: str(runtime.task_run.get_id())},
    )
    if record.state == "failed":
        raise CellFailed(f"{name}: {plain(record.reason or '')}")
    return record.federation


class SuiteProgress:
    """The progress of a suite, with an estimate of the time left: reported as lines, and on Prefect's page."""

    def __init__(self, waiting: Sequence[Cell], done: int, estimate: Estimate) -> None:
        self._handles = suite_handles()
        self._waiting, self._done, self._estimate = list(waiting), done, estimate
        self._total = len(waiting) + done
        self._running: dict[str, tuple[Cell, int]] = {}
        self._artifact: UUID | None = None
        self._last_line = ""

    async def open(self, done: Mapping[str, CellRecord]) -> None:
        """Begin to report. ``done``: the records of the cells that were done before, by name."""
        self._estimate.ended_before(self._handles.plan.to_run, done)
        with self._handles.views.showing(_PROGRESS):
            self._artifact = await acreate_progress_artifact(
                progress=self._per_cent(),
                key=artifact_key("suite-progress", self._handles.plan.name),
                description=self.line(),
            )

    @contextlib.asynccontextmanager
    async def running(self, cell: Cell) -> AsyncIterator[None]:
        self._waiting.remove(cell)
        rounds = await self._rounds(cell)
        self._running[cell.name] = (cell, rounds)
        self._estimate.began(cell, rounds)
        self._handles.say(f"{cell.name} begins" + (f" after round {rounds}" if rounds else ""))
        try:
            yield
        finally:
            del self._running[cell.name]
        self._done += 1
        record = await asyncio.to_thread(self._handles.plan.record, cell)
        if record is not None:
            self._estimate.ended(cell, record.seconds)
            how = "done" if record.state == "done" else f"failed: {plain(record.reason or '')}"
            self._handles.say(f"{cell.name} {how}, {duration(record.seconds)} · {self.line()}")

    @contextlib.asynccontextmanager
    async def reported(self) -> AsyncIterator[None]:
        """Report the progress regularly during the block."""
        reporting = asyncio.create_task(self._report())
        try:
            yield
        finally:
            reporting.cancel()
            await asyncio.gather(reporting, return_exceptions=True)
        await self._show()

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                await self._look()
            except Exception as error:  # store or Prefect is unreachable: the next look may reach it
                log.warning("progress: %s", error)

    async def _look(self) -> None:
        for name, (cell, _) in list(self._running.items()):
            rounds = await self._rounds(cell)
            if name in self._running:
                self._running[name] = (cell, rounds)
                self._estimate.stands_at(cell, rounds)
        line = self.line()
        if line != self._last_line:
            self._last_line = line
            self._handles.say(line)
        await self._show()

    async def _show(self) -> None:
        if self._artifact is not None:
            with self._handles.views.showing(_PROGRESS):
                await aupdate_progress_artifact(self._artifact, progress=self._per_cent(), description=self.line())

    async def _rounds(self, cell: Cell) -> int:
        """Return the number of committed rounds without the initial one."""
        layout = FederationLayout(self._handles.settings.s3.prefix, self._handles.plan.federation(cell))
        keys = await asyncio.to_thread(self._handles.plan.objects.list, layout.rounds)
        return max(len(layout.committed_rounds(keys)) - 1, 0)

    def _per_cent(self) -> float:
        rounds = sum(min(rounds / cell.spec.max_rounds, 1.0) for cell, rounds in self._running.values())
        return min(100.0 * (self._done + rounds) / self._total, 100.0) if self._total else 100.0

    def line(self) -> str:
        """Return the progress, as ``3 of 12 cells · street5.s1 round 4 of 10 · about 25 min left``."""
        parts = [f"{self._done} of {self._total} cells"]
        parts += [f"{name} round {rounds} of {cell.spec.max_rounds}" for name, (cell, rounds) in self._running.items()]
        if self._waiting or self._running:
            left = self._estimate.left(self._waiting)
            parts.append("time left not known yet" if left is None else f"about {duration(left)} left")
        return " · ".join(parts)
