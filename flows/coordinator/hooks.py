"""Hooks for flow runs that were cancelled or have crashed. The run's worker or its own process calls them."""

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
    """Cancel the federation's residents, so that they free their slots in work pools. Nothing else would."""
    await cancel_residents(str(flow_run.id))


async def go_on(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Start a crashed run of a deployment again, as the same flow run. It goes on from its last commit.

    A small process that outlives this one does it (:mod:`infra.stack.crashed_runs`). An automation would not do: after
    a restart of its server, Prefect can delay events that follow others by up to 15 minutes. It would then start a run
    again that somebody has started in the meantime.
    """
    if flow_run.deployment_id is None:
        return  # started by the command line, which goes on by itself
    auth = PREFECT_API_AUTH_STRING.value()
    environment = {**os.environ, "PREFECT_API_URL": str(PREFECT_API_URL.value())}
    if auth is not None:
        environment["PREFECT_API_AUTH_STRING"] = auth
    subprocess.Popen(
        [sys.executable, "-P", "-m", "infra.stack.crashed_runs", str(flow_run.id)],
        env=environment,
        cwd="/",  # the run's own folder is removed with the run
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
