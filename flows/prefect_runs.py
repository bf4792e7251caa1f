"""A federation's runs in Prefect: how they are tagged, found again, and closed when their process is gone."""

from __future__ import annotations

import logging
from contextlib import AbstractContextManager
from typing import Any

import prefect
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    FlowRunFilterTags,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled, Crashed, State

log = logging.getLogger(__name__)

OPEN_STATES = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.CANCELLING]


def federation_tag(name: str) -> str:
    return f"federation:{name}"


def federation_tags(name: str) -> AbstractContextManager[Any]:
    """Every run that is made inside carries the federation's tag."""
    return prefect.tags(federation_tag(name))


async def close_dead_runs(name: str, *, interrupted: bool = False) -> int:
    """Set runs of ``name`` that are open although their process is gone to Crashed (or Cancelled, after Ctrl-C).

    The caller holds the federation's lock, so no other process can be running them. Returns how many there were.
    """
    state: State[Any] = (
        Cancelled(message="Interrupted from the command line.")
        if interrupted
        else Crashed(message="The process of this run is gone; the federation goes on in a new one.")
    )
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(
                tags=FlowRunFilterTags(all_=[federation_tag(name)]),
                state=FlowRunFilterState(type=FlowRunFilterStateType(any_=OPEN_STATES)),
            )
        )
        for run in runs:
            await client.set_flow_run_state(run.id, state, force=True)
            log.info("closed Prefect run %s as %s", run.name, state.name)
    return len(runs)


async def newest_run(name: str) -> FlowRun | None:
    """The newest run of the federation's flow itself, for its page."""
    async with get_client() as client:
        runs = await client.read_flow_runs(
            flow_run_filter=FlowRunFilter(tags=FlowRunFilterTags(all_=[federation_tag(name)])),
            sort=FlowRunSort.START_TIME_DESC,
            limit=200,
        )
    return next((run for run in runs if run.name == name), None)
