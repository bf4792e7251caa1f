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
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.interrupts import interrupts_deferred, terminate_as_interrupt
from flows.planted import hold_back_planted
from flows.progress import Progress
from flows.registration import noted
from flows.start import PRELOAD, claim_name, pin, require_weights, run_folder, slot_count
from flows.stored import read_history, require_scores, stopped
from infra.automations import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE
from infra.errors import StoreUnavailable
from infra.lock import require_free_disk, run_lock
from infra.private import private_process
from infra.services.embedded import EmbeddedServices, supervised
from infra.services.login_page import how_to_log_in
from infra.services.own_environment import use_own_environment
from infra.settings import Settings
from infra.slots import end_fork_server, start_fork_server
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord

if TYPE_CHECKING:
    from flows.report import RunReport

log = logging.getLogger(__name__)

# The file of a run's folder that its report writes last.
REPORTED = "rounds.png"
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
    """

    records: list[RoundRecord]
    folder: Path
    already_finished: bool
    model: str | None


def run_federation(name: str, spec: FederationSpec, settings: Settings, progress: Progress) -> Outcome:
    """Run ``spec`` under ``name`` to its end, from wherever it stands.

    Raises:
        FedbenchError, InfraError: it cannot start or go on; the message says why.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the runs are marked and our services stopped.
    """
    if not settings.pools.used:  # else this machine need not have what a turn asks
        slot_count(settings, spec)
    private_process(settings.home)
    require_free_disk(settings.home, settings.min_free_megabytes, "a run's weights and logs (min_free_megabytes)")
    folder = run_folder(settings, name)
    with run_lock(settings.home, name), EmbeddedRun(settings) as services, terminate_as_interrupt():
        progress.message("reading data, opening the store")
        spec = pin(spec, settings, progress.message)
        history = _claimed(services, settings, name, spec)
        if stopped(spec, history) and (folder / REPORTED).exists():
            require_scores(name, history)
            model = noted(folder, history)
            if model is not None:
                return Outcome(history, folder, already_finished=True, model=model)
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
            return _run_until_done(name, spec, settings, services, progress)


def _claimed(services: EmbeddedRun, settings: Settings, name: str, spec: FederationSpec) -> list[RoundRecord]:
    """The name is ``spec``'s in the store; what it has of it. A store of our own that dies meanwhile is started again:
    nobody else looks after it yet.
    """
    layout = FederationLayout(settings.s3.prefix, name)
    attempts = 1 if services.s3 is None else STORE_ATTEMPTS
    while True:
        attempts -= 1
        services.start_store()
        try:
            objects = ObjectStore(services.s3_endpoint())
            objects.ensure_bucket()
            if objects.get_json(layout.spec) is None:
                require_weights(spec, settings)
            claim_name(objects, layout, spec)
            return read_history(objects, layout)
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
) -> Outcome:
    # Late: these import prefect, torch and mlflow, which must see the environment set above, and take seconds.
    from flows.coordinator import Restarts
    from flows.report import RunReport

    report = RunReport(name, spec, settings, services, run_folder(settings, name))
    restarts = Restarts()
    while True:
        try:
            if restarts.count:
                time.sleep(restarts.pause)
                services.ensure()
            return _attempt(name, spec, settings, services, progress, report)
        except KeyboardInterrupt:
            report.close("KILLED")
            _close_open_runs(name, interrupted=True)
            raise
        except Exception as error:
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
    from flows.prefect_runs import close_dead_runs

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
) -> Outcome:
    from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

    from flows.coordinator import open_place
    from flows.federation import federation
    from flows.prefect_runs import call, close_dead_runs
    from infra.federation_lease import FederationLease
    from infra.place import set_place

    # Prefect's import has these written to the terminal, whatever its settings say: through the live display.
    internal = logging.getLogger("prefect._internal")
    internal.handlers, internal.propagate = [], True
    resolved = settings.model_copy(update={"s3": services.s3_endpoint()})
    place = open_place(name, spec, resolved, progress, report)
    set_place(place)

    async def run() -> None:
        lease = FederationLease(place.objects, place.layout, settings.home, progress.message)
        async with lease if services.shared else contextlib.nullcontext():
            try:
                await close_dead_runs(name)
                await call(federation, name=name, spec=spec)
            finally:
                await place.slots.close()

    # Prefect keeps the address that it read first; a server that lost its port comes back at another.
    names = {setting.name: setting for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
    with temporary_settings({names[name]: value for name, value in services.prefect_environment().items()}):
        asyncio.run(run())
    return Outcome(place.history, report.folder, already_finished=False, model=report.model)


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
