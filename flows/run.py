"""One federation from the command line: services, lock, resume, tracking, and what happens when something dies.

The store is the truth: whatever is killed, the same command goes on from the last ``round.json``.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from flows.coordinator.holding import federation_lease
from flows.coordinator.interrupts import interrupts_deferred, terminate_as_interrupt
from flows.coordinator.planted import hold_back_planted
from flows.coordinator.preflight import PRELOAD, claim_name, pin, require_name, require_weights, slot_count
from flows.stored.runs import readable_history, require_scores, stopped
from flows.stored.spec_copy import keep_spec
from flows.views.registration import noted
from flows.views.terminal import Progress
from infra.environment.own_environment import use_own_environment
from infra.errors import DiskFull, StoreUnavailable
from infra.files.disk import full_disk_named
from infra.files.lock import require_free_disk, run_lock
from infra.files.private import private_process
from infra.orchestrator.automations import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE
from infra.servers.login_page import how_to_log_in
from infra.settings import Settings, run_folder
from infra.stack.embedded import EmbeddedServices, supervised
from infra.store.layout import FederationLayout
from infra.store.lease import StoreLease
from infra.store.objects import ObjectStore
from infra.turns.local import end_fork_server, start_fork_server
from infra.views import Views
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.whole import DamagedObject

if TYPE_CHECKING:
    from flows.views.mlflow_run import RunReport

log = logging.getLogger(__name__)

Result = TypeVar("Result")

# The file of a run's folder that its report writes last; beside it, which parts of the report failed.
REPORTED = "rounds.png"
FAILED_FILE = "report.json"
# What this process needs of the learning, and takes seconds to import.
LEARNING = ("torch", "torchvision.ops", "mlflow.tracking", "mlflow.pyfunc", "matplotlib.figure")
STORE_ATTEMPTS = 3
POLL_SECONDS = 0.1
CLOSE_SECONDS = 10.0
DRAIN_SECONDS = 20.0


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves: its records, its folder of plots, and whether there was anything left to do.

    model: URI of the best model in MLflow's registry; None when MLflow failed.
    failed: the reason of each part of the report that failed, by what it is.
    """

    records: list[RoundRecord]
    folder: Path
    already_finished: bool
    model: str | None
    failed: Mapping[str, str] = field(default_factory=dict)


def run_federation(
    name: str,
    spec: FederationSpec,
    settings: Settings,
    progress: Progress,
    *,
    again: str | None = None,
    report_only: bool = False,
) -> Outcome:
    """Run ``spec`` under ``name`` to its end, from wherever it stands.

    again: the command that makes the report of a finished federation once more, for warnings. report_only: this is
    that command; the federation is finished.

    Raises:
        FedbenchError, InfraError: it cannot start or go on; the message says why.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs are marked and our services stopped.
    """
    if not settings.pools.used:  # else this machine need not have what a turn asks
        slot_count(settings, spec)
    private_process(settings.home)
    require_free_disk(settings.home, settings.min_free_megabytes, "a run's weights and logs (min_free_megabytes)")
    with (
        run_lock(settings.home, name),
        EmbeddedRun(settings) as services,
        terminate_as_interrupt(),
        contextlib.ExitStack() as held,
    ):
        progress.message("reading data, opening the store")
        spec = pin(spec, settings, progress.message)
        finished = None if report_only else _finished(services, settings, name, spec, progress, again)
        if finished is not None:
            return finished
        lease = held.enter_context(_claimed(services, settings, name, spec, progress))
        progress.message("starting services")
        own_prefect(settings)
        start_services(services, LEARNING, preload=PRELOAD)
        # This process aggregates while slots compute: a second thread that waits for a core costs more than it brings
        # (five updates of 35 MB beside two busy slots: 5.9 s with two threads, 0.07 s with one).
        sys.modules["torch"].set_num_threads(1)
        # Read when this process imports Prefect: from here on it may.
        os.environ.update(services.prefect_environment())
        if services.prefect is not None:
            progress.message(f"Prefect's page: {services.prefect.ui_url} · {how_to_log_in_to(services)}")
        hold_back_planted(settings, services.prefect, progress.message)
        with supervised(services), prefect_drained():
            return _run_until_done(name, spec, settings, services, progress, lease, again)


def _finished(
    services: EmbeddedRun,
    settings: Settings,
    name: str,
    spec: FederationSpec,
    progress: Progress,
    again: str | None,
) -> Outcome | None:
    """What a run that has nothing left to do returns; None: there is something, or it cannot be told yet."""
    folder = run_folder(settings, name)
    if not (folder / REPORTED).exists():
        return None

    def look(objects: ObjectStore) -> Outcome | None:
        layout = FederationLayout(settings.s3.prefix, name)
        try:
            if not require_name(objects, layout, spec):
                return None
        except DamagedObject:  # mended once the lease is held
            return None
        found = readable_history(objects, layout)
        if found.damage is not None or not stopped(spec, found.records):
            return None
        require_scores(name, found.records)
        model = noted(folder, found.records)
        if model is None:
            return None
        views = Views(again or "", folder / FAILED_FILE)
        views.recall()
        views.tell(progress.warning)
        return Outcome(found.records, folder, already_finished=True, model=model, failed=views.failed)

    return _with_store(services, look)


def _claimed(
    services: EmbeddedRun, settings: Settings, name: str, spec: FederationSpec, progress: Progress
) -> StoreLease:
    """Have the federation's lease, and the name for ``spec``."""
    layout = FederationLayout(settings.s3.prefix, name)

    def claim(objects: ObjectStore) -> StoreLease:
        with contextlib.ExitStack() as held:
            lease = held.enter_context(federation_lease(objects, settings, name, "fedbench run", progress.message))
            lease.acquire()
            if not objects.exists(layout.spec):
                require_weights(spec, settings)
            for line in claim_name(objects, layout, spec):
                progress.message(line)
            keep_spec(settings, name, spec)
            readable_history(objects, layout)  # what cannot be read at all is said before services start
            held.pop_all()
            return lease

    return _with_store(services, claim)


def _with_store(services: EmbeddedRun, use: Callable[[ObjectStore], Result]) -> Result:
    """``use`` the store. One of our own that dies meanwhile is started again: nobody else looks after it yet."""
    attempts = 1 if services.s3 is None else STORE_ATTEMPTS
    while True:
        attempts -= 1
        services.start_store()
        try:
            objects = ObjectStore(services.s3_endpoint())
            objects.ensure_bucket()
            return use(objects)
        except StoreUnavailable:
            if not attempts:
                raise


def start_services(services: EmbeddedServices, modules: Sequence[str], *, preload: Sequence[str] = ()) -> None:
    """Start what is to run, and meanwhile import ``modules``, and ``preload`` in the fork server, if it is to have any:
    all take seconds. Ctrl-C and SIGTERM end it.

    Raises:
        ServiceFailed: a server did not come up.
        KeyboardInterrupt: the services were stopped.
    """
    with interrupts_deferred() as interrupts, ThreadPoolExecutor(1) as starting:
        started = starting.submit(services.start)
        try:
            if preload:
                start_fork_server(preload)
            for module in modules:
                interrupts.check()
                importlib.import_module(module)
            while not wait([started], timeout=POLL_SECONDS).done:
                interrupts.check()
            started.result()
        except BaseException:
            services.stop()  # ends the wait for a server to come up, Ctrl-C's too
            end_fork_server()
            raise


class EmbeddedRun(EmbeddedServices):
    """Services that are stopped on the way out, and started only when asked."""

    def __enter__(self) -> EmbeddedRun:
        return self


def how_to_log_in_to(services: EmbeddedServices) -> str:
    """One line about the file that opens the pages of our Prefect server while a run goes on."""
    path = services.login_page("run")
    assert path is not None, "our Prefect server is up"
    return how_to_log_in(path)


def own_prefect(settings: Settings) -> None:
    """Our own server has nothing to do with the user's own Prefect. Set before anything imports Prefect."""
    use_own_environment(settings)
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ[HEARTBEAT_VARIABLE] = str(HEARTBEAT_SECONDS)
    os.environ.setdefault("DO_NOT_TRACK", "1")


def _run_until_done(
    name: str,
    spec: FederationSpec,
    settings: Settings,
    services: EmbeddedServices,
    progress: Progress,
    lease: StoreLease,
    again: str | None,
) -> Outcome:
    # Late: these import prefect, torch and mlflow, which must see the environment set above, and take seconds.
    from flows.coordinator.handles import Restarts, place_failed
    from flows.views.mlflow_run import RunReport

    report = RunReport(name, spec, settings, services, run_folder(settings, name), again)
    restarts = Restarts()
    while True:
        try:
            with full_disk_named(settings.home, place_failed):
                if restarts.count:
                    time.sleep(restarts.pause)
                    for line in services.mend():
                        progress.message(line)
                    services.ensure()
                return _attempt(name, spec, settings, services, progress, report, lease)
        except KeyboardInterrupt:
            report.close("KILLED")
            _close_open_runs(name, interrupted=True)
            raise
        except Exception as error:
            if isinstance(error, DiskFull):
                error.goes_on = True
            if not restarts.allow(error):
                report.close("FAILED")
                _close_open_runs(name, interrupted=False)
                raise
            log.warning("the place failed, going on from the last commit: %s", error, exc_info=True)
            progress.message(restarts.told(error))


@contextlib.contextmanager
def prefect_drained() -> Iterator[None]:
    """Prefect sends task runs' states and logs in the background, and waits for that when the interpreter exits:
    without end, if its server has been stopped. So they go out here, while the server is up.
    """
    try:
        yield
    finally:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=DRAIN_SECONDS)


def _close_open_runs(name: str, *, interrupted: bool) -> None:
    """Leave no Prefect run open, as far as its API answers: whoever ends a run must not wait long for that."""
    from infra.orchestrator.flow_runs import close_dead_runs

    async def close() -> None:
        async with asyncio.timeout(CLOSE_SECONDS):
            await close_dead_runs(name, interrupted=interrupted)

    try:
        asyncio.run(close())
    except Exception as error:
        log.warning("Prefect's runs of %s stay open until it goes on: %s", name, error or type(error).__name__)


def _attempt(
    name: str,
    spec: FederationSpec,
    settings: Settings,
    services: EmbeddedServices,
    progress: Progress,
    report: RunReport,
    lease: StoreLease,
) -> Outcome:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows.coordinator.handles import open_place
    from flows.federation import federation
    from infra.handles import set_place
    from infra.orchestrator.flow_runs import call, close_dead_runs

    # Prefect's import has these written to the terminal, whatever its settings say: through the live display.
    internal = logging.getLogger("prefect._internal")
    internal.handlers, internal.propagate = [], True
    resolved = settings.model_copy(update={"s3": services.s3_endpoint()})
    place = open_place(name, spec, resolved, progress, report, lease)
    set_place(place)

    async def run() -> None:
        async with lease.ends_with_it():
            try:
                await close_dead_runs(name)
                await call(federation, name=name, spec=spec)
            finally:
                await place.slots.close()

    # Prefect keeps the address that it read first; a server that lost its port comes back at another.
    names = {setting.name: setting for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with temporary_settings({names[name]: value for name, value in services.prefect_environment().items()}):
        asyncio.run(run())
    return Outcome(place.history, report.folder, already_finished=False, model=report.model, failed=report.views.failed)


def describe(spec: FederationSpec) -> str:
    """One line: data, detector, clients, local epochs."""
    data: Any = spec.data
    clients = "all clients" if spec.clients is None else f"{len(spec.clients)} clients"
    if spec.data.pooled:
        clients = "centralised"
    epochs = spec.training.local_epochs
    return (
        f"{data.kind} · {spec.detector.kind} {spec.detector.width}x{spec.detector.height} · {clients} · "
        f"{epochs} local epoch{'s' if epochs > 1 else ''} · {spec.strategy.kind}"
    )
