"""The session of a run that Prefect started from a deployment, in a worker's process and without a terminal.

It differs from a session of the command line (:mod:`flows.coordinator.session`) in three things: it uses the servers
that this machine's settings name, its turns go to work pools, and it logs to its flow run.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect import runtime
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL

from flows.coordinator.handles import open_handles
from flows.coordinator.interrupts import was_stopped
from flows.coordinator.preflight import claim_federation, pin
from flows.coordinator.restarts import Attempts
from flows.views.header import show_header
from flows.views.mlflow_run import RunReport
from flows.views.terminal import LogProgress
from infra.environment.certificates import trust
from infra.errors import SettingsError
from infra.orchestrator.flow_runs import close_dead_runs
from infra.servers.database import mlflow_database_uri
from infra.settings import Settings, load_settings, run_folder
from infra.stack.embedded import EmbeddedServices, supervised
from infra.stack.services import local_store
from infra.store.holding import Subject, machine_held
from infra.store.lease import StoreLease
from infra.store.leased import have
from infra.store.objects import ObjectStore
from tasks.handles import set_handles
from tasks.spec.federation import FederationSpec


@dataclass
class NamedServices:
    """The servers that this machine's settings name; none is started."""

    settings: Settings

    @property
    def prefect_api_url(self) -> str:
        return self.settings.prefect_api_url or ""

    @property
    def prefect_stays(self) -> bool:
        return True

    @property
    def mlflow_tracking_uri(self) -> str:
        return self.settings.mlflow_tracking_uri or mlflow_database_uri(self.settings)


class DeployedSession:
    """A session of a worker's process: it holds a federation or suite run on this machine, and supervises its stack.

    A context manager.
    """

    def __init__(self, settings: Settings, subject: Subject, say: Callable[[str], None]) -> None:
        self.settings, self.subject, self._say = settings, subject, say
        self._held = contextlib.ExitStack()

    def __enter__(self) -> DeployedSession:
        with contextlib.ExitStack() as held:
            held.enter_context(machine_held(self.settings, self.subject))
            services = EmbeddedServices(self.settings)
            if services.uses_stack:  # its dead servers are restarted, even if its supervisor has died too
                held.enter_context(supervised(services))
            self._held = held.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._held.close()

    @contextlib.asynccontextmanager
    async def hold(self, command: str) -> AsyncIterator[StoreLease]:
        """Hold the subject's lease in the store.

        command: named in the message of other processes that find the lease held.

        Raises:
            RunLocked: another process holds the subject; the message names it.
        """
        objects = ObjectStore(self.settings.s3)
        await asyncio.to_thread(objects.ensure_bucket)
        async with have(self.subject.lease(objects, self.settings, command, self._say)) as lease:
            yield lease


def deployed_name() -> str:
    """Return deployment and scheduled time, as ``street5-laptop-20261125T030000``. So every scheduled run is new."""
    deployment = runtime.deployment.name or "federation"
    scheduled = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{deployment}-{scheduled.astimezone(UTC):%Y%m%dT%H%M%S}"


def deployed_settings() -> Settings:
    """Return this machine's settings. Without an address of Prefect's API, they get the worker's.

    Raises:
        SettingsError: they name no store that workers on other machines can reach too.
    """
    settings = load_settings()
    trust(os.environ, settings.ca_file)
    if settings.s3.endpoint is None:
        raise SettingsError(
            "s3.endpoint: expected the URL of the store that coordinator and workers share, found none; "
            "set FEDBENCH_S3__ENDPOINT (fedbench up writes it into its environment file)"
        )
    if settings.prefect_api_url is None:
        settings = settings.model_copy(update={"prefect_api_url": PREFECT_API_URL.value()})
    return settings.model_copy(update={"s3": local_store(settings)})


def deployed_attempts() -> Attempts:
    """Return attempts at a deployment's run. They log to its flow run."""
    logger = get_run_logger()
    return Attempts(deployed_settings().home, lambda line: logger.warning("%s", line, exc_info=True))


async def run_deployed(
    name: str | None, spec: FederationSpec, rounds: Callable[[str, FederationSpec], Awaitable[int]]
) -> int:
    """Run ``rounds`` for a deployment's federation. If the store or a server fails, go on from the last commit.

    Returns the result of ``rounds``.

    Raises:
        FedbenchError, InfraError: the federation cannot start or go on; the message says why.
    """
    name = name or deployed_name()
    async for attempt in deployed_attempts():
        with attempt:
            last = await _attempt(name, spec, rounds)
    return last


async def _attempt(name: str, spec: FederationSpec, rounds: Callable[[str, FederationSpec], Awaitable[int]]) -> int:
    """Run ``rounds`` once. Everything is checked before a slot is taken."""
    settings, progress = deployed_settings(), LogProgress(get_run_logger())
    with DeployedSession(settings, Subject.federation(settings, name), progress.message) as session:
        spec = await asyncio.to_thread(pin, spec, settings, progress.message)
        async with session.hold("a deployment's run") as lease:
            await asyncio.to_thread(claim_federation, lease.objects, settings, name, spec, progress.message)
            await close_dead_runs(name, keep=UUID(runtime.flow_run.id))
            show_header(progress, name, spec)
            report = RunReport(
                name,
                spec,
                settings,
                NamedServices(settings),
                run_folder(settings, name),
                deployment=runtime.deployment.name,
            )
            handles = await asyncio.to_thread(open_handles, name, spec, settings, progress, report, lease)
            set_handles(handles)
            try:
                return await rounds(name, spec)
            except BaseException as error:
                await asyncio.to_thread(report.close, "KILLED" if was_stopped(error) else "FAILED")
                raise
            finally:
                await handles.slots.close()
