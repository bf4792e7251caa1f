"""A suite from the command line: services of this machine, then the flow; killed, the same command goes on."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.coordinator.holding import suite_lease
from flows.coordinator.interrupts import terminate_as_interrupt
from flows.coordinator.planted import hold_back_planted
from flows.run import EmbeddedRun, how_to_log_in_to, own_prefect, prefect_drained, start_services
from flows.suite.handles import SuitePlace, capacity_of, child_environment, set_suite_place, suite_folder
from flows.suite.plan import claim, default_name, pinned
from infra.files.disk import full_disk_named
from infra.files.lock import require_free_disk, run_lock
from infra.files.private import private_process
from infra.settings import Settings
from infra.stack.embedded import supervised
from infra.store.leased import LeasedStore
from infra.store.objects import ObjectStore
from infra.views import Views
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_records import SuiteResult


@dataclass(frozen=True)
class SuiteOutcome:
    """What a suite run left: its result, and the folder of its report."""

    name: str
    result: SuiteResult
    folder: Path


def run_suite(
    name: str | None, suite: SuiteSpec, settings: Settings, say: Callable[[str], None], *, compare: bool
) -> SuiteOutcome:
    """Run what ``suite`` has not run yet under ``name`` (default: suite and digest).

    Raises:
        SuiteFailed: cells failed, or the result is worse than the accepted one; the report is there.
        FedbenchError, InfraError: it cannot start or go on; the message says why.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the cells were stopped.
    """
    capacity = capacity_of(settings, suite)
    private_process(settings.home)
    require_free_disk(settings.home, settings.min_free_megabytes, "runs' weights and logs (min_free_megabytes)")
    say("reading data")
    suite = pinned(suite, settings)
    name = name or default_name(suite)
    with (
        run_lock(settings.home, f"suite-{name}"),
        EmbeddedRun(settings) as services,
        terminate_as_interrupt(),
        contextlib.ExitStack() as held,
    ):
        say("starting services")
        services.start_store()
        resolved = settings.model_copy(update={"s3": services.s3_endpoint()})
        objects = ObjectStore(resolved.s3)
        objects.ensure_bucket()
        lease = held.enter_context(suite_lease(objects, settings, name, "fedbench suite run", say))
        objects = LeasedStore(objects, lease.acquire())
        plan = claim(objects, settings.s3.prefix, name, suite)
        environment = child_environment(settings)  # before our own Prefect's variables: a cell sets them for itself
        own_prefect(settings)
        start_services(services, ("mlflow.tracking", "matplotlib.figure"))
        os.environ.update(services.prefect_environment())
        if services.prefect is not None:
            say(f"Prefect's page: {services.prefect.ui_url} · {how_to_log_in_to(services)}")
        hold_back_planted(settings, services.prefect, say)
        folder = suite_folder(settings, name)
        from flows.coordinator.handles import turn_mlflow_to
        from flows.views.mlflow_run import artifact_location

        turn_mlflow_to(resolved.s3)
        place = SuitePlace(
            plan=plan,
            settings=resolved,
            folder=folder,
            capacity=capacity,
            environment=environment,
            mlflow_uri=services.mlflow_tracking_uri,
            mlflow_artifacts=artifact_location(services.settings),
            say=say,
            views=Views(f"the same command, or fedbench suite report {name}"),
        )
        with supervised(services), prefect_drained():
            _until_done(place, services, compare)
        from flows.suite.result import build_result

        return SuiteOutcome(name, build_result(plan, resolved), folder / "report")


def _until_done(place: SuitePlace, services: EmbeddedRun, compare: bool) -> None:
    """The flow, again from what is done while store or servers were away."""
    from flows.coordinator.handles import Restarts, place_failed

    restarts = Restarts()
    while True:
        try:
            with full_disk_named(place.settings.home, place_failed):
                return _flow(place, services, compare)
        except Exception as error:
            if not restarts.allow(error):
                raise
            place.say(restarts.told(error))
            time.sleep(restarts.pause)
            for line in services.mend():
                place.say(line)
            services.ensure()


def _flow(place: SuitePlace, services: EmbeddedRun, compare: bool) -> None:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows.suite.flow import suite

    set_suite_place(place)
    names = {setting.name: setting for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with temporary_settings({names[key]: value for key, value in services.prefect_environment().items()}):
        asyncio.run(suite(name=place.plan.name, spec=place.plan.suite, compare=compare))
