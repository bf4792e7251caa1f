"""A suite that Prefect started: from a deployment, on its schedule or from the page, in a process of a worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from prefect.logging import get_run_logger

from flows.coordinator.deployed import NamedServices, default_name, place_settings, stack_supervised
from flows.coordinator.handles import Restarts, place_failed, turn_mlflow_to
from flows.coordinator.holding import suite_lease
from flows.suite.handles import SuitePlace, capacity_of, child_environment, set_suite_place, suite_folder
from flows.suite.plan import claim, pinned
from flows.views.mlflow_run import artifact_location
from infra.files.disk import full_disk_named
from infra.files.lock import require_free_disk, run_lock
from infra.files.private import private_process
from infra.store.leased import LeasedStore, have
from infra.store.objects import ObjectStore
from infra.views import Views
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_presets import suite_preset


async def run_deployed(
    name: str | None, preset: str, spec: SuiteSpec | None, cells: Callable[[], Awaitable[str]]
) -> str:
    """``cells`` at a place made from this machine's settings, which name store and servers.

    Raises:
        FedbenchError, InfraError: it cannot start; the message says why.
    """
    settings, logger = place_settings(), get_run_logger()
    name = name or default_name()
    private_process(settings.home)
    require_free_disk(settings.home, settings.min_free_megabytes, "runs' weights and logs (min_free_megabytes)")
    async with contextlib.AsyncExitStack() as held:
        held.enter_context(run_lock(settings.home, f"suite-{name}"))
        held.enter_context(stack_supervised(settings))
        suite = await asyncio.to_thread(pinned, spec or suite_preset(preset), settings)
        objects = ObjectStore(settings.s3)
        await asyncio.to_thread(objects.ensure_bucket)
        lease = suite_lease(objects, settings, name, "a deployment's suite run", logger.info)
        objects = LeasedStore(objects, await held.enter_async_context(have(lease)))
        plan = await asyncio.to_thread(claim, objects, settings.s3.prefix, name, suite)
        turn_mlflow_to(settings.s3)
        set_suite_place(
            SuitePlace(
                plan=plan,
                settings=settings,
                folder=suite_folder(settings, name),
                capacity=capacity_of(settings, suite),
                environment=child_environment(settings, FEDBENCH_PREFECT_API_URL=settings.prefect_api_url or ""),
                mlflow_uri=NamedServices(settings).mlflow_tracking_uri,
                mlflow_artifacts=artifact_location(settings),
                say=logger.info,
                views=Views(f"a run of the same name, or fedbench suite report {name}"),
            )
        )
        restarts = Restarts()
        while True:
            try:
                with full_disk_named(settings.home, place_failed):
                    return await cells()
            except Exception as error:
                if not restarts.allow(error):
                    raise
                logger.warning("%s", restarts.told(error), exc_info=True)
                await asyncio.sleep(restarts.pause)
