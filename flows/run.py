"""``fedbench run``: one federation from the command line, from its last commit to its end.

The store holds the whole state. Whichever process is killed, the same command goes on from the last ``round.json``.
"""

from __future__ import annotations

import sys

from flows.coordinator.outcome import Outcome
from flows.coordinator.preflight import PRELOAD, claim_federation, pin, require_name, slot_count
from flows.coordinator.session import OwnSession
from flows.stored.runs import StoredRun, read_tuned, readable_history, require_scores, stopped
from flows.views.files import FAILED_FILE, reported
from flows.views.progress import Progress
from flows.views.registration import best_figure, noted
from infra.errors import DiskFull
from infra.settings import Settings, run_folder
from infra.store.holding import Subject
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.tracking.cell import this_cell
from infra.views import Views
from tasks.spec.federation import FederationSpec
from tasks.whole import DamagedObject

# Modules for training and tracking that this process needs. Their import takes seconds.
LEARNING = ("torch", "mlflow.tracking", "mlflow.pyfunc", "matplotlib.figure")


def run_federation(
    name: str,
    spec: FederationSpec,
    settings: Settings,
    progress: Progress,
    *,
    again: str | None = None,
    report_only: bool = False,
    pinned: bool = False,
) -> Outcome:
    """Run ``spec`` under ``name`` to its end, from its last commit.

    again: the command that makes the report of a finished federation again; warnings name it. report_only: this is
    that command, and the federation is finished. pinned: this process has read the data already, and ``spec`` has
    their digest.

    Raises:
        FedbenchError, InfraError: the federation cannot start or go on; the message says why.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the runs were marked and our services stopped.
    """
    if not settings.pools.used:  # with work pools, turns do not run on this machine
        slot_count(settings, spec)
    with OwnSession(settings, Subject.federation(settings, name), progress.message) as session:
        if not pinned:
            progress.message("reading data, opening the store")
            spec = pin(spec, settings, progress.message)
        if not report_only:
            finished = _finished(session, name, spec, progress, again)
            if finished is not None:
                return finished
        session.hold(
            "fedbench run",
            lambda objects, lease: claim_federation(objects, settings, name, spec, progress.message),
        )
        session.start(LEARNING, preload=PRELOAD)
        # This process aggregates while slots compute, so a second thread would wait for a core: five updates of 35 MB
        # beside two busy slots take 5.9 s with two threads, and 0.07 s with one.
        sys.modules["torch"].set_num_threads(1)
        # Late: these import Prefect, which reads the environment that the session has set.
        from flows.coordinator.until_done import run_until_done
        from flows.federation import federation

        try:
            return run_until_done(session, federation, name, spec, progress, again)
        except DiskFull as error:
            error.goes_on = True
            raise


def _finished(
    session: OwnSession, name: str, spec: FederationSpec, progress: Progress, again: str | None
) -> Outcome | None:
    """Return the outcome of a federation that has nothing left to do; None if it has, or if that is not known yet."""
    settings = session.settings
    folder = run_folder(settings, name)
    if not reported(folder):
        return None

    def look(objects: ObjectStore) -> Outcome | None:
        layout = FederationLayout(settings.s3.prefix, name)
        try:
            if not require_name(objects, layout, spec):
                return None
        except DamagedObject:  # it is mended once the lease is held
            return None
        found = readable_history(objects, layout)
        if found.damage is not None or not stopped(spec, found.records):
            return None
        require_scores(name, found.records)
        model = noted(folder, found.records)
        try:
            tuned = read_tuned(objects, settings, StoredRun(name, spec, found.records, "finished"))
        except DamagedObject:  # the clients' models are looked for again, and the record is written again
            return None
        if spec.fine_tuning is not None and tuned is None:
            return None
        if best_figure(found.records) is None:
            model = None  # an earlier version registered one all the same
        # Without a shared model none is registered. The models of a suite's cells are the suite's to register.
        elif model is None and spec.strategy.shared_model and this_cell() is None:
            return None
        views = Views(again or "", folder / FAILED_FILE)
        views.recall()
        views.tell(progress.warning)
        return Outcome(found.records, folder, already_finished=True, model=model, failed=views.failed, tuned=tuned)

    return session.with_store(look)
