"""A federation that Prefect started: from a deployment, in a process of a worker, with nobody at a terminal.

The same as ``fedbench run`` from the command line (:mod:`flows.run`), but for what differs by place: the services are
those that this machine's settings name, turns go to work pools, and what happens is told by the run's own logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from prefect import runtime
from prefect.logging import get_run_logger
from prefect.settings import PREFECT_API_URL

from flows.coordinator.handles import Restarts, open_place, place_failed
from flows.coordinator.holding import federation_lease
from flows.coordinator.preflight import claim_name, pin, require_weights
from flows.run import describe
from flows.views.mlflow_run import RunReport
from flows.views.terminal import LogProgress
from infra.errors import SettingsError
from infra.files.disk import full_disk_named
from infra.files.lock import require_free_disk, run_lock
from infra.files.private import private_process
from infra.handles import set_place
from infra.orchestrator.flow_runs import close_dead_runs
from infra.servers.database import mlflow_database_uri
from infra.settings import Settings, load_settings, run_folder
from infra.stack.embedded import EmbeddedServices, supervised
from infra.stack.services import local_store
from infra.store.layout import FederationLayout
from infra.store.leased import have
from infra.store.objects import ObjectStore
from tasks.spec.federation import FederationSpec

log = logging.getLogger(__name__)


@dataclass
class NamedServices:
    """The servers that this machine's settings name; none is started."""

    settings: Settings

    @property
    def prefect_api_url(self) -> str:
        return self.settings.prefect_api_url or ""

    @property
    def mlflow_tracking_uri(self) -> str:
        return self.settings.mlflow_tracking_uri or mlflow_database_uri(self.settings)


def default_name() -> str:
    """``street5-laptop-20261125T030000``: deployment and scheduled time, so that every scheduled run is a new one."""
    deployment = runtime.deployment.name or "federation"
    scheduled = runtime.flow_run.scheduled_start_time or datetime.now(UTC)
    return f"{deployment}-{scheduled.astimezone(UTC):%Y%m%dT%H%M%S}"


def place_settings() -> Settings:
    """This machine's settings, with Prefect's API as the worker has it.

    Raises:
        SettingsError: there is no store that workers of other machines could reach too.
    """
    settings = load_settings()
    if settings.s3.endpoint is None:
        raise SettingsError(
            "s3.endpoint: expected the URL of the store that coordinator and workers share, found none; "
            "set FEDBENCH_S3__ENDPOINT (fedbench up writes it into its environment file)"
        )
    if settings.prefect_api_url is None:
        settings = settings.model_copy(update={"prefect_api_url": PREFECT_API_URL.value()})
    return settings.model_copy(update={"s3": local_store(settings)})


def stack_supervised(settings: Settings) -> contextlib.AbstractContextManager[None]:
    """What this machine's stack has lost comes back while the run goes on, though its supervisor be gone too."""
    services = EmbeddedServices(settings)
    return supervised(services) if services.uses_stack else contextlib.nullcontext()


@contextlib.asynccontextmanager
async def deployed(name: str, spec: FederationSpec) -> AsyncIterator[FederationSpec]:
    """A place for the federation, all checked before a slot is taken; let go of afterwards.

    Gives the specification with what this machine fills in.

    Raises:
        FedbenchError, InfraError: it cannot start; the message says why.
    """
    settings = place_settings()
    private_process(settings.home)
    require_free_disk(settings.home, settings.min_free_megabytes, "a run's weights and logs (min_free_megabytes)")
    own_run = UUID(runtime.flow_run.id)
    progress = LogProgress(get_run_logger())
    with run_lock(settings.home, name), stack_supervised(settings):
        objects, layout = ObjectStore(settings.s3), FederationLayout(settings.s3.prefix, name)
        spec = await asyncio.to_thread(pin, spec, settings, progress.message)
        await asyncio.to_thread(objects.ensure_bucket)
        async with have(federation_lease(objects, settings, name, "a deployment's run", progress.message)) as lease:
            if not await asyncio.to_thread(objects.exists, layout.spec):
                await asyncio.to_thread(require_weights, spec, settings)
            for line in await asyncio.to_thread(claim_name, objects, layout, spec):
                progress.message(line)
            await close_dead_runs(name, keep=own_run)
            progress.federation_started(name, describe(spec), spec.max_rounds)
            report = RunReport(name, spec, settings, NamedServices(settings), run_folder(settings, name))
            place = await asyncio.to_thread(open_place, name, spec, settings, progress, report, lease)
            set_place(place)
            try:
                yield spec
            except asyncio.CancelledError:
                await asyncio.to_thread(report.close, "KILLED")
                raise
            except BaseException:
                await asyncio.to_thread(report.close, "FAILED")
                raise
            finally:
                await place.slots.close()


async def run_deployed(
    name: str | None, spec: FederationSpec, rounds: Callable[[str, FederationSpec], Awaitable[int]]
) -> int:
    """``rounds`` at a place of the federation's, again from its last commit while store or servers are away."""
    name, restarts = name or default_name(), Restarts()
    while True:
        try:
            with full_disk_named(place_settings().home, place_failed):
                async with deployed(name, spec) as whole:
                    return await rounds(name, whole)
        except Exception as error:
            if not restarts.allow(error):
                raise
            get_run_logger().warning("%s", restarts.told(error), exc_info=True)
            await asyncio.sleep(restarts.pause)
