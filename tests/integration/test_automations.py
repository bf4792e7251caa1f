"""The automation that closes dead runs, on a real Prefect server. It waits two minutes for missed heartbeats."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from flows.deployments.names import FLOWS
from infra.orchestrator.automations import (
    HEARTBEAT_SECONDS,
    HEARTBEAT_VARIABLE,
    NAME,
    SILENCE_SECONDS,
    dead_run_automation,
    ensure_automation,
)
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.embedded import EmbeddedServices
from tests.integration.homes import Home
from tests.waiting import eventually

pytestmark = [pytest.mark.integration, pytest.mark.slow]

FLOW = """
import asyncio, sys, threading, time
from pathlib import Path
from prefect import flow, runtime

async def wait(file):
    Path(sys.argv[2]).write_text(str(runtime.flow_run.id))
    while not Path(file).exists():
        if sys.argv[4] == "busy":
            sum(range(100_000))  # holds the interpreter and the loop, a little at a time
        await asyncio.sleep(0.5)

named = flow(name=sys.argv[1], persist_result=False)(wait)
asyncio.run(named(sys.argv[3]))
"""


Api = dict[str, str]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """Start a Prefect server with the automation. Yield the environment of its clients."""
    store = S3Settings(endpoint="http://127.0.0.1:9")  # no store is needed
    home = Home(tmp_path_factory.mktemp("automations"))
    with EmbeddedServices(Settings(home=home.path, s3=store)) as services:
        yield services.prefect_environment()


def at(api: Api, question: Callable[[Any], Any]) -> Any:
    """Return the result of ``question``, called with a client of the Prefect server at ``api``."""
    from prefect.client.orchestration import get_client
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    async def ask() -> Any:
        async with get_client() as client:
            return await question(client)

    names = {setting.name: setting for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with temporary_settings({names[name]: value for name, value in api.items()}):
        return asyncio.run(ask())


def state(api: Api, run: str) -> str:
    found = at(api, lambda client: client.read_flow_run(UUID(run)))
    return str(found.state.type.value)


def heartbeats(api: Api, run: str) -> int:
    """Return how many heartbeats of the run the server has received."""
    wanted = {"event": {"name": ["prefect.flow-run.heartbeat"]}, "resource": {"id": [f"prefect.flow-run.{run}"]}}
    answer = at(api, lambda client: client.request("POST", "/events/filter", json={"filter": wanted}))
    return int(answer.json()["total"])


class Run:
    """A process that runs a flow until a file appears."""

    def __init__(self, api: Api, folder: Path, flow: str, kind: str = "idle") -> None:
        folder.mkdir()
        self.started, self.end = folder / "started", folder / "end"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
        environment |= {**api, "PREFECT_HOME": str(folder), HEARTBEAT_VARIABLE: str(HEARTBEAT_SECONDS)}
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", FLOW, flow, str(self.started), str(self.end), kind],
                env=environment, stdout=log, stderr=log, cwd=folder,
            )  # fmt: skip

    def id(self) -> str:
        assert eventually(lambda: self.started.exists() and bool(self.started.read_text()), 180)
        return self.started.read_text()


def ensured(api: Api, automation: Any = None) -> UUID:
    async def ensure(client: Any) -> UUID:
        return (await ensure_automation(automation or dead_run_automation(FLOWS)))[0]

    return at(api, ensure)


def test_it_is_made_once_and_brought_up_to_date(api: Api) -> None:
    first = ensured(api)

    def changed_at() -> str:
        answer = at(api, lambda client: client.request("GET", "/automations/{id}", path_params={"id": first}))
        return str(answer.json()["updated"])

    before = changed_at()
    assert ensured(api) == first
    assert changed_at() == before  # a change would make the server forget the heartbeats that it has received
    changed = dead_run_automation(("another",))
    changed.trigger.within = timedelta(seconds=3600)  # type: ignore[union-attr]
    assert ensured(api, changed) == first
    assert changed_at() != before
    (found,) = at(api, lambda client: client.read_automations_by_name(NAME))
    assert found.trigger.within == timedelta(seconds=3600)
    at(api, lambda client: client.pause_automation(first))
    assert ensured(api) == first
    (found,) = at(api, lambda client: client.read_automations_by_name(NAME))
    assert found.trigger.within == timedelta(seconds=SILENCE_SECONDS)
    assert not found.enabled  # a user disabled it
    at(api, lambda client: client.resume_automation(first))


def test_a_killed_run_is_closed_and_a_starved_one_is_not(api: Api, tmp_path: Path) -> None:
    ensured(api)
    killed = Run(api, tmp_path / "killed", "federation")
    starved = Run(api, tmp_path / "starved", "round", "busy")
    foreign = Run(api, tmp_path / "foreign", "somebody-elses")
    runs = (killed, starved, foreign)
    try:
        names = [run.id() for run in runs]
        # The first heartbeats are sent when a flow begins.
        assert eventually(lambda: all(heartbeats(api, name) > 0 for name in names), 60)
        killed.process.kill()
        foreign.process.kill()
        died = time.monotonic()
        # As on an overloaded machine: the run gets no CPU time for more than two heartbeats.
        starved.process.send_signal(signal.SIGSTOP)
        time.sleep(2.5 * HEARTBEAT_SECONDS)
        starved.process.send_signal(signal.SIGCONT)
        assert [state(api, name) for name in names] == ["RUNNING"] * 3
        assert eventually(lambda: state(api, names[0]) == "CRASHED", SILENCE_SECONDS)
        assert time.monotonic() - died >= SILENCE_SECONDS - 2 * HEARTBEAT_SECONDS
        assert state(api, names[1]) == "RUNNING"
        assert state(api, names[2]) == "RUNNING"  # not a flow of fedbench
        message = at(api, lambda client: client.read_flow_run(UUID(names[0]))).state.message
        assert "No heartbeat for 120 s" in message
        starved.end.touch()
        assert starved.process.wait(60) == 0
        assert state(api, names[1]) == "COMPLETED"
    finally:
        for run in runs:
            run.process.kill()
            run.process.wait()
