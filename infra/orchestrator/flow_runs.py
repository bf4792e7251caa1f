"""A federation's runs in Prefect: start them, find them again, and close those whose process is gone."""

from __future__ import annotations

import logging
import os
from typing import Any, TypeVar, cast
from uuid import UUID

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterName,
    FlowRunFilterParentFlowRunId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.flow_engine import run_flow
from prefect.states import Cancelled, Crashed, State
from prefect.utilities.annotations import quote

from infra.orchestrator.run_log import calm_cancellations
from infra.orchestrator.stored_results import refuse_stored_results
from infra.turns.resident_runs import OPEN_STATES, cancel

refuse_stored_results()  # in every process that runs federations or suites, or reads their states
calm_cancellations()

log = logging.getLogger(__name__)

LIMIT = 200  # of the runs in one answer of Prefect's server

# Id of the task run (a suite's cell) of which a federation's flow run is a child.
PARENT_VARIABLE = "FEDBENCH_PARENT_TASK_RUN"

Records = TypeVar("Records")


def unsearched(records: Records) -> Records:
    """Return ``records`` marked, for use as a task's parameter, so that Prefect does not search them for futures.

    The search takes 0.1 s a task for the records of 1,000 clients.
    """
    return cast(Records, quote(records))


async def tag_run(flow_run_id: UUID, name: str, *, kind: str) -> None:
    """Tag the flow run of ``name`` as ``kind:name``, for the UI's filter, beside the tags of its deployment.

    ``prefect.tags`` would tag every task run too, and each would then request a concurrency slot for its tag.
    """
    async with get_client() as client:
        tags = (await client.read_flow_run(flow_run_id)).tags
        await client.update_flow_run(flow_run_id, tags=list(dict.fromkeys([*tags, f"{kind}:{name}"])))


async def call(flow: Flow[..., Any], run_name: str, **parameters: Any) -> Any:
    """Run ``flow`` in this process and return its result. If the environment names a task run, it is the parent.

    The flow run has its name from the beginning. Prefect would name it when it starts, so a run that was stopped before
    would not be found again.
    """
    parent = os.environ.get(PARENT_VARIABLE)
    async with get_client() as client:
        run = await client.create_flow_run(
            flow, parameters=parameters, name=run_name, parent_task_run_id=None if parent is None else UUID(parent)
        )
    return await run_flow(flow, flow_run=run, parameters=parameters)  # type: ignore[misc]


async def newest_run(name: str) -> FlowRun | None:
    """Return the newest run of the federation's own flow; None if there is none."""
    return next(iter(await _own_runs(name, limit=1)), None)


async def _own_runs(name: str, limit: int = LIMIT) -> list[FlowRun]:
    """Return the runs of the federation's own flow, without those of its rounds, the newest first."""
    async with get_client() as client:
        return await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(any_=[name])),
            sort=FlowRunSort.START_TIME_DESC,
            limit=limit,
        )


async def _open_runs(name: str) -> list[FlowRun]:
    """Return the open flow runs of the federation, its rounds and its residents.

    Prefect names a round's run when it starts. One that was stopped before is found as a child of the federation's.
    """
    state = FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN_STATES))
    parents = [run.id for run in await _own_runs(name)]
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(name=FlowRunFilterName(like_=name), state=state), limit=LIMIT
        )
        runs = [run for run in runs if run.name == name or run.name.startswith(f"{name} · ")]
        if parents:
            below = FlowRunFilterParentFlowRunId(any_=parents)
            runs += await client.read_flow_runs(
                flow_run_filter=FlowRunFilter(parent_flow_run_id=below, state=state), limit=LIMIT
            )
    return list({run.id: run for run in runs}.values())


async def close_dead_runs(name: str, *, interrupted: bool = False, keep: UUID | None = None) -> int:
    """Close the open runs of ``name``, whose process is gone. Return their number.

    The caller holds the federation's lock, so no other process can be running them. Residents of a coordinator that
    is gone may still run, so they are cancelled. All other runs are set to Crashed.

    interrupted: set them to Cancelled instead, after Ctrl-C. keep: the caller's own run, which stays open.
    """
    state: State[Any] = (
        Cancelled(message="Interrupted from the command line.")
        if interrupted
        else Crashed(message="The process of this run is gone; the federation goes on in a new one.")
    )
    runs = [run for run in await _open_runs(name) if run.id != keep]
    async with get_client() as client:
        for run in runs:
            if is_resident(name, run):
                await cancel(run.id)
                continue
            await client.set_flow_run_state(run.id, state, force=True)
            log.info("closed Prefect run %s as %s", run.name, state.name)
    return len(runs)


def is_resident(name: str, run: FlowRun) -> bool:
    return run.name.startswith(f"{name} · resident ")
