"""Flow runs of residents in Prefect: requesting them, reading their states, cancelling them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.deployments import arun_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelled, Cancelling

from infra.errors import PoolUnusable

log = logging.getLogger(__name__)

# States of runs that have not ended.
OPEN_STATES = [
    StateType.SCHEDULED,
    StateType.PENDING,
    StateType.RUNNING,
    StateType.PAUSED,
    StateType.CANCELLING,
]


def session_tag(session: str) -> str:
    return f"session:{session}"


def coordinator_tag(flow_run: str) -> str:
    """Return the tag of the residents that the federation's flow run ``flow_run`` requested."""
    return f"coordinator:{flow_run}"


async def require_pool(pool: str, deployment: str) -> None:
    """Check that ``pool`` and the ``deployment`` (``flow/deployment``) of its residents exist.

    Raises:
        PoolUnusable: one of them does not.
    """
    async with get_client() as client:
        try:
            await client.read_work_pool(pool)
            await client.read_deployment_by_name(deployment)
        except ObjectNotFound:
            raise PoolUnusable(
                f"pools: expected the work pool {pool} with the deployment {deployment} at {client.api_url}, "
                "found none; make them: fedbench deploy"
            ) from None


async def submit(
    deployment: str, *, name: str, parameters: dict[str, Any], tags: Sequence[str], job_variables: dict[str, Any]
) -> FlowRun:
    """Request a run of ``deployment``, that of a pool's residents. Prefect shows it as a subflow of this flow run.

    Raises:
        PoolUnusable: the deployment does not exist any more.
    """
    try:
        return await arun_deployment(
            deployment,
            parameters=parameters,
            flow_run_name=name,
            tags=list(tags),
            job_variables=job_variables,
            timeout=0,
        )
    except ObjectNotFound:
        raise PoolUnusable(f"pools: no deployment {deployment}; make it: fedbench deploy") from None


async def states(runs: Sequence[UUID]) -> dict[UUID, State[Any] | None]:
    """Return the present state of each run; None for a run that was deleted."""
    async with get_client() as client:
        found: dict[UUID, State[Any] | None] = dict.fromkeys(runs)
        for start in range(0, len(runs), 200):
            wanted = FlowRunFilter.model_validate({"id": {"any_": list(runs[start : start + 200])}})
            found |= {run.id: run.state for run in await client.read_flow_runs(flow_run_filter=wanted, limit=200)}
    return found


async def cancel(run: UUID) -> None:
    """Cancel a resident's run.

    A run that is only scheduled is set to Cancelled at once. The process of any other is killed by its worker.
    """
    async with get_client() as client:
        try:
            current = (await client.read_flow_run(run)).state
            if current is None or current.is_final() or current.is_cancelling():
                return
            waiting = current.is_scheduled()
            await client.set_flow_run_state(run, Cancelled() if waiting else Cancelling(), force=waiting)
        except ObjectNotFound:
            return


async def cancel_residents(coordinator: str) -> int:
    """Cancel the open residents of the federation's flow run ``coordinator``. Return their number."""
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[coordinator_tag(coordinator)]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN_STATES)),
            ),
            limit=200,
        )
    await asyncio.gather(*(cancel(run.id) for run in runs))
    return len(runs)


async def workers_online(pool: str) -> int:
    async with get_client() as client:
        workers = await client.read_workers_for_work_pool(pool)
    return sum(worker.status == WorkerStatus.ONLINE for worker in workers)
