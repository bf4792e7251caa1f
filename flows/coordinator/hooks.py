"""What is done when a federation's flow run ends otherwise than by itself: hooks, run by its worker or its process."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

from prefect import Flow
from prefect.client.schemas.objects import FlowRun, State
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL

from infra.turns.resident_runs import cancel_residents


async def let_residents_go(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Nobody else frees the slots that the federation holds in work pools."""
    await cancel_residents(str(flow_run.id))


async def go_on(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """A crashed run of a deployment is started again, from its last committed round, as the same flow run.

    By a small process that outlives this one (:mod:`infra.stack.crashed_runs`). Not by an automation: after a
    restart of its server Prefect holds events that follow earlier ones back for up to 15 minutes, and would then start
    a run again that somebody has started meanwhile.
    """
    if flow_run.deployment_id is None:
        return  # its command line goes on by itself
    auth = PREFECT_API_AUTH_STRING.value()
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    if auth is not None:
        environment["PREFECT_API_AUTH_STRING"] = auth
    subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.stack.crashed_runs", str(flow_run.id)],
        env=environment,
        cwd="/",  # that of the run goes with it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
