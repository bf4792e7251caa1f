"""A real Prefect server, its workers and their runs, for the tests and the benchmark of the worker."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from prefect import Flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra.processes.launch import launcher
from infra.servers.prefect_server import PrefectService
from tests.integration.databases import copy_databases
from tests.waiting import eventually

ROOT = Path(__file__).resolve().parents[2]
TYPE = "fedbench-gpu"


@contextmanager
def prefect_server(home: Path) -> Iterator[str]:
    """Start a server, and direct this process's Prefect client to it."""
    service = PrefectService(home)
    home.mkdir(parents=True, exist_ok=True)
    copy_databases(home)
    service.ensure()
    try:
        with temporary_settings({PREFECT_API_URL: service.address, PREFECT_API_AUTH_STRING: service.auth}):
            yield service.address
    finally:
        service.stop()


def client_variables() -> dict[str, str]:
    """Return variables that name this context's Prefect server and its credentials for another process."""
    auth = PREFECT_API_AUTH_STRING.value()
    named = {"PREFECT_API_URL": PREFECT_API_URL.value() or ""}
    return named if auth is None else {**named, "PREFECT_API_AUTH_STRING": auth}


class Worker:
    """The command ``prefect worker start`` on ``pool``, with a home of its own."""

    def __init__(self, home: Path, pool: str, *arguments: str, kind: str = TYPE, **variables: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.log = home / "worker.log"
        foreign = ("FEDBENCH_", "PREFECT_", "CUDA_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        environment = kept | {
            **client_variables(),
            "PREFECT_HOME": str(home / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": "0.5",
            "PREFECT_WORKER_HEARTBEAT_SECONDS": "5",
            "FEDBENCH_HOME": str(home),
            "NO_COLOR": "1",
            **variables,
        }
        if registered := registration(home):
            environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), *registered])
        command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", kind, *arguments]
        # The launcher sets the signal handlers that a terminal would set, and ends the worker with this process.
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*launcher(), *command], env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=home
            )

    def text(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")

    def family(self) -> list[psutil.Process]:
        """Return the worker's descendants: the warm process and the processes forked from it."""
        return [one for one in psutil.Process(self.process.pid).children(recursive=True) if not _is_of_tests(one)]

    def fork_server(self) -> psutil.Process:
        """Return the worker's warm process, which forks those of the runs."""
        (found,) = [one for one in psutil.Process(self.process.pid).children() if not _is_of_tests(one)]
        return found

    def await_ready(self) -> Worker:
        eventually(lambda: "started!" in self.text() or self.process.poll() is not None, 180)
        assert self.process.poll() is None, self.text()
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()


def _is_of_tests(process: psutil.Process) -> bool:
    """Return whether it is the process of :mod:`tests.warm` from which a worker's processes are forked in tests."""
    return any(part.endswith("tests/warm.py") for part in process.cmdline())


def registration(home: Path) -> list[str]:
    """Return a folder for ``PYTHONPATH`` that registers the worker type with Prefect; none if fedbench is installed."""
    if any(point.name == "fedbench" for point in entry_points(group="prefect.collections")):
        return []
    note = home / "registered" / "fedbench_checkout-0.dist-info"
    note.mkdir(parents=True, exist_ok=True)
    (note / "METADATA").write_text("Metadata-Version: 2.1\nName: fedbench-checkout\nVersion: 0\n")
    (note / "entry_points.txt").write_text("[prefect.collections]\nfedbench = fedbench:GpuWorker\n")
    return [str(note.parent)]


def make_pool(name: str, kind: str, template: dict[str, Any]) -> None:
    async def make() -> None:
        async with get_client() as client:
            await client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template))

    asyncio.run(make())


def deploy(entrypoint: str, folder: Path, pool: str) -> UUID:
    """Deploy ``entrypoint`` (``file.py:flow``), in ``folder``, on ``pool``. Return the deployment's id."""

    async def make() -> UUID:
        flow: Flow[..., Any] = await Flow.afrom_source(str(folder), entrypoint)
        return await flow.adeploy(
            f"{flow.name}-{pool}", work_pool_name=pool, build=False, push=False, print_next_steps=False
        )

    return asyncio.run(make())


def submit(deployment: UUID, parameters: dict[str, Any], **variables: Any) -> UUID:
    """Create a run of the deployment, due now. Return its id. ``variables`` are job variables."""

    async def make() -> UUID:
        async with get_client() as client:
            run = await client.create_flow_run_from_deployment(
                deployment, parameters=parameters, job_variables=variables
            )
            return run.id

    return asyncio.run(make())


def read(run: UUID) -> FlowRun:
    async def ask() -> FlowRun:
        async with get_client() as client:
            return await client.read_flow_run(run)

    return asyncio.run(ask())


def ended(run: UUID, seconds: float = 120.0) -> FlowRun:
    """Wait until the run's state is final. Return the run."""
    found: list[FlowRun] = []

    def final() -> bool:
        found[:] = [read(run)]
        return found[0].state is not None and found[0].state.is_final()

    assert eventually(final, seconds), f"not ended after {seconds:g} s: {found[0].state}"
    return found[0]


def alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
