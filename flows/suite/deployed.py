"""Run a suite that Prefect started from a deployment, on its schedule or from the page, in a worker's process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from prefect.logging import get_run_logger

from flows.coordinator.deployed import (
    DeployedSession,
    NamedServices,
    deployed_attempts,
    deployed_name,
    deployed_settings,
)
from flows.suite.handles import SuiteHandles, capacity_of, child_environment, set_suite_handles, suite_folder
from flows.suite.plan import claim, pinned
from flows.views.mlflow_run import artifact_location
from infra.store.holding import Subject
from infra.store.leased import LeasedStore
from infra.tracking.client import turn_mlflow_to
from infra.views import Views
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_presets import suite_preset


async def run_deployed(
    name: str | None, preset: str, spec: SuiteSpec | None, cells: Callable[[], Awaitable[str]]
) -> str:
    """Run ``cells`` for a deployment's suite. If the store or a server fails, go on with the cells that are not done.

    Returns the result of ``cells``.

    Raises:
        FedbenchError, InfraError: the suite cannot start or go on; the message says why.
    """
    name = name or deployed_name()
    views = Views(f"a run of the same name, or fedbench suite report {name}")
    async for attempt in deployed_attempts():
        with attempt:
            done = await _attempt(name, spec or suite_preset(preset), views, cells)
    return done


async def _attempt(name: str, suite: SuiteSpec, views: Views, cells: Callable[[], Awaitable[str]]) -> str:
    settings, say = deployed_settings(), get_run_logger().info
    with DeployedSession(settings, Subject.suite(settings, name), say) as session:
        suite = await asyncio.to_thread(pinned, suite, settings)
        async with session.hold("a deployment's suite run") as lease:
            objects = LeasedStore(lease.objects, lease)
            plan = await asyncio.to_thread(claim, objects, settings.s3.prefix, name, suite)
            turn_mlflow_to(settings.s3)
            set_suite_handles(
                SuiteHandles(
                    plan=plan,
                    settings=settings,
                    folder=suite_folder(settings, name),
                    capacity=capacity_of(settings, suite),
                    environment=child_environment(settings, FEDBENCH_PREFECT_API_URL=settings.prefect_api_url or ""),
                    mlflow_uri=NamedServices(settings).mlflow_tracking_uri,
                    mlflow_artifacts=artifact_location(settings),
                    say=say,
                    views=views,
                )
            )
            return await cells()
