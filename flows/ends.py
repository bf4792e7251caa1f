"""What is done when a federation's flow run ends otherwise than by itself: hooks, run by its worker or its process."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State
from prefect.states import AwaitingRetry

from infra.residents.runs import cancel_residents
from infra.services.crashed_runs import MOST_STARTS, had_begun, message_of

log = logging.getLogger(__name__)

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
                in_order = sorted(history, key=lambda item: item.timestamp)
                if not had_begun([item.type.value for item in in_order]) or current.run_count >= MOST_STARTS:
                    return
                retry: State[Any] = AwaitingRetry(message=message_of(current.run_count))
                await client.set_flow_run_state(flow_run.id, retry, force=True)
                return
        except Exception as error:
            log.warning("Prefect does not answer yet, attempt %d: %s", attempt, error)
            await asyncio.sleep(2**attempt)
