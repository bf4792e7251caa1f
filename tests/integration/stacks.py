"""``fedbench up`` in a test's home, and requests from this process to its servers."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psutil
import yaml
from prefect.client.orchestration import PrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

from infra.servers.credentials import StackKeys, basic_auth, read_keys
from tests.integration.homes import PLOTS, Home

FORK_SERVER = "infra.worker.fork_server"
PATIENCE = 600.0  # seconds, for servers and runs on a loaded machine
SERVERS = ("s3", "prefect", "mlflow")
SERVICES = (*SERVERS, "worker", "coordinator", "supervisor")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class RunningStack:
    """A running stack: the requested ports, the output of `up`, and the variables of its environment file."""

    home: Home
    ports: dict[str, int]
    output: str
    variables: dict[str, str]

    @property
    def prefect(self) -> str:
        """Return the URL of Prefect's page."""
        return self.variables["PREFECT_API_URL"].removesuffix("/api")

    @property
    def mlflow(self) -> str:
        """Return the URL of MLflow's page."""
        return self.variables["MLFLOW_TRACKING_URI"]

    @property
    def keys(self) -> StackKeys:
        return read_keys(self.home.path / "services")

    def call(self, path: str, body: dict[str, Any] | None = None, *, known: bool = True) -> Any:
        """Return the JSON answer of Prefect's API (``/api/…``) or MLflow's (``/api/2.0/…``).

        known: send the credentials.
        """
        tracking = path.startswith("/api/2.0/")
        auth = self.keys.mlflow_auth if tracking else self.keys.prefect_auth
        request = urllib.request.Request(
            (self.mlflow if tracking else self.prefect) + path,
            None if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json"} | (basic_auth(auth) if known else {}),
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=60) as answer:
            return json.load(answer)

    def tracked(self) -> dict[str, dict[str, Any]]:
        """Return MLflow's data about each run, by the run's name."""
        experiment = self.call("/api/2.0/mlflow/experiments/get-by-name?experiment_name=fedbench")["experiment"]
        body = {"experiment_ids": [experiment["experiment_id"]], "max_results": 100}
        runs = self.call("/api/2.0/mlflow/runs/search", body)["runs"]
        return {run["info"]["run_name"]: run["info"] for run in runs}

    def states(self) -> tuple[int, dict[str, str]]:
        """Return the exit code of `status`, and the state of each service."""
        result = self.home.run("status", timeout=PATIENCE)
        rows = [line.split() for line in result.stdout.splitlines()]
        return result.returncode, {row[0]: row[1] for row in rows if row and row[0] in SERVICES}

    def ask(self, question: Callable[[PrefectClient], Awaitable[Answer]]) -> Answer:
        """Return the result of ``question``, called with a client of the stack's Prefect server."""

        async def run() -> Answer:
            async with get_client() as client:
                return await question(client)

        named = {PREFECT_API_URL: "PREFECT_API_URL", PREFECT_API_AUTH_STRING: "PREFECT_API_AUTH_STRING"}
        with temporary_settings({setting: self.variables[name] for setting, name in named.items()}):
            return asyncio.run(run())

    def start(self, deployment: str, parameters: dict[str, Any]) -> UUID:
        """Create a run of the deployment, due now."""

        async def create(client: PrefectClient) -> UUID:
            found = await client.read_deployment_by_name(deployment)
            return (await client.create_flow_run_from_deployment(found.id, parameters=parameters)).id

        return self.ask(create)

    def read(self, run: UUID) -> FlowRun:
        return self.ask(lambda client: client.read_flow_run(run))

    def runs(self) -> list[FlowRun]:
        """Return all flow runs."""
        return self.ask(lambda client: client.read_flow_runs(limit=200))

    def runs_of(self, name: str) -> dict[str, str]:
        """Return the state of each flow run of a federation, by the flow run's name."""
        mine = [run for run in self.runs() if run.name == name or run.name.startswith(f"{name} · ")]
        return {run.name: run.state.type.value for run in mine if run.state is not None}

    def pid(self, service: str) -> int:
        pid: int = json.loads((self.home.path / "services" / f"{service}.json").read_bytes())["pid"]
        return pid

    def pids(self) -> dict[str, int]:
        """Return the process ids of the servers."""
        return {name: self.pid(name) for name in SERVERS}


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


def environment_of(home: Home) -> dict[str, str]:
    """Return the variables that the stack's file sets in a shell that sources it."""
    script = 'source "$1"; exec "$2" -c "import json, os; print(json.dumps(dict(os.environ)))"'
    command = ["bash", "-c", script, "-", str(home.path / "stack.env"), sys.executable]
    found: dict[str, str] = json.loads(subprocess.check_output(command, text=True, env={}))
    return found


@contextmanager
def running_stack(
    path: Path,
    *options: str,
    settings: dict[str, Any] | None = None,
    databases: bool = True,
    plots: bool = False,
) -> Iterator[RunningStack]:
    """``fedbench up`` with ``options``, on free ports unless the settings name some. Then ``fedbench down``.

    databases: passed to :class:`Home`. plots: whether deployed runs draw them.
    """
    home = Home(path, databases=databases)
    document = {"ports": dict(zip(SERVERS, free_ports(len(SERVERS)), strict=True)), **(settings or {})}
    (path / "settings.yaml").write_text(yaml.safe_dump(document))
    (path / "settings.yaml").chmod(0o600)  # it may hold a password
    variables = PLOTS if plots else {}
    result = home.run("up", *options, timeout=PATIENCE, environment=home.environment() | variables)
    try:
        assert result.returncode == 0, result.stdout
        yield RunningStack(home, document["ports"], result.stdout, environment_of(home))
    finally:
        home.run("down", timeout=PATIENCE)
        home.remove_weights()


def in_a_slot(process: psutil.Process) -> bool:
    """Return whether the process is a run: forked from a worker's warm process, whose command line it still has."""
    parent = process.parent()
    return parent is not None and all(FORK_SERVER in other.cmdline() for other in (process, parent))
