"""What is done when a federation's flow run ends otherwise than by itself: hooks, run by its worker or its process."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry

from infra.residents.runs import cancel_residents

log = logging.getLogger(__name__)

MOST_STARTS = 5  # of one flow run, its first included
ATTEMPTS = 6  # of asking a Prefect server that may itself be coming back


async def let_residents_go(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Nobody else frees the slots that the federation holds in work pools."""
    await cancel_residents(str(flow_run.id))


async def go_on(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A crashed run of a deployment is started again, from its last committed round, as the same flow run.

    Not by an automation: after a restart of its server Prefect holds events that follow earlier ones back for up to
    15 minutes, and would then start a run again that somebody has started meanwhile.
    """
    if flow_run.deployment_id is None:
        return  # its command line goes on by itself
    for attempt in range(1, ATTEMPTS + 1):
        try:
            async with get_client() as client:
                current = await client.read_flow_run(flow_run.id)
                history = await client.read_flow_run_states(flow_run.id)
                if current.state is None or not current.state.is_crashed():
                    return
                if not had_begun(history) or current.run_count >= MOST_STARTS:
                    return
                message = f"It goes on from its last committed round (start {current.run_count + 1} of {MOST_STARTS})."
                await client.set_flow_run_state(flow_run.id, AwaitingRetry(message=message), force=True)
                return
        except Exception as error:
            log.warning("Prefect does not answer yet, attempt %d: %s", attempt, error)
            await asyncio.sleep(2**attempt)


def had_begun(history: Sequence[State[Any]]) -> bool:
    """Whether the run was Running since it was last scheduled: one that cannot begin would crash for ever."""
    begun = False
    for state in sorted(history, key=lambda item: item.timestamp):
        if state.is_scheduled():
            begun = False
        elif state.is_running():
            begun = True
    return begun
