"""The workers of a stack: one for turns, in slots of this machine, and one for the runs that coordinate them."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from infra.processes.ports import LOOPBACK
from infra.processes.service import Service

QUERY_SECONDS = 5  # between two looks for runs; Prefect's default is 10
DRAIN_SECONDS = 5  # `down` does not wait longer for runs; they go on with their next worker


class WorkerService(Service):
    """``prefect worker start``. Its address is that of the worker's health check.

    pool: the work pool that it serves.
    variables: by which the worker and its runs find the stack.
    """

    health_path = "/health"
    start_seconds: ClassVar[float] = 180.0
    patience_seconds: ClassVar[float] = 60.0
    type: ClassVar[str]

    def __init__(self, home: Path, pool: str = "", variables: Mapping[str, str] | None = None) -> None:
        super().__init__(home, detached=True)
        self._pool = pool
        self._variables = dict(variables or {})

    def environment(self, port: int) -> dict[str, str]:
        # This process's own settings, which differ between machines, such as data folders.
        own = {name: value for name, value in os.environ.items() if name.startswith("FEDBENCH_")}
        return {
            **own,
            **self._variables,
            "PREFECT_HOME": str(self.home / "prefect"),
            "PREFECT_WORKER_QUERY_SECONDS": str(QUERY_SECONDS),
            "PREFECT_WORKER_WEBSERVER_HOST": LOOPBACK,
            "PREFECT_WORKER_WEBSERVER_PORT": str(port),
            "FEDBENCH_WORKER__DRAIN_SECONDS": str(DRAIN_SECONDS),
            # The store's keys are among the variables; a profile of the user's belongs to other servers.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
        }

    def command(self, port: int) -> list[str]:
        return [
            *(sys.executable, "-m", "prefect", "worker", "start", "--with-healthcheck"),
            *("--pool", self._pool, "--type", self.type),
        ]


class TurnWorker(WorkerService):
    """Takes turns, one at a time in each slot of this machine."""

    name: ClassVar[str] = "worker"
    type: ClassVar[str] = "fedbench-gpu"


class CoordinatorWorker(WorkerService):
    """Starts the runs of federations and clean-ups, each in a process of its own."""

    name: ClassVar[str] = "coordinator"
    type: ClassVar[str] = "process"
