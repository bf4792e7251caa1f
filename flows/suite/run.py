"""``fedbench suite run``: a suite from the command line. After a kill, the same command goes on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flows.coordinator.session import OwnSession
from flows.suite.finished import REPORT, reported_result
from flows.suite.handles import SuiteHandles, capacity_of, child_environment, set_suite_handles, suite_folder
from flows.suite.plan import claim, default_name, pinned
from infra.files.private import private_process
from infra.settings import Settings
from infra.store.holding import Subject
from infra.store.leased import LeasedStore
from infra.tracking.client import turn_mlflow_to
from infra.views import Views
from tasks.spec.suite import SuiteSpec
from tasks.spec.suite_records import SuiteResult


@dataclass(frozen=True)
class SuiteOutcome:
    """The result of a suite run, and the folder of its report. already_finished: nothing was left to do."""

    name: str
    result: SuiteResult
    folder: Path
    already_finished: bool = False


def run_suite(
    name: str | None, suite: SuiteSpec, settings: Settings, say: Callable[[str], None], *, compare: bool
) -> SuiteOutcome:
    """Run the cells of ``suite`` that are not done yet under ``name`` (default: suite and digest).

    Raises:
        SuiteFailed: cells failed, or the result is worse than the accepted one; the report is written.
        FedbenchError, InfraError: the suite cannot start or go on; the message says why.
        KeyboardInterrupt: on Ctrl-C or SIGTERM, after the cells were stopped.
    """
    capacity = capacity_of(settings, suite)
    private_process(settings.home)
    say("reading data")
    suite = pinned(suite, settings)
    name = name or default_name(suite)
    folder = suite_folder(settings, name)
    with OwnSession(settings, Subject.suite(settings, name), say) as session:
        finished = session.with_store(
            lambda objects: reported_result(objects, settings.s3.prefix, name, suite, folder, compare=compare)
        )
        if finished is not None:
            say(f"{name} is finished; nothing was left to do.")
            return SuiteOutcome(name, finished, folder / REPORT.parent, already_finished=True)
        # Before session.start sets the variables of our Prefect: a cell sets those of its own.
        environment = child_environment(settings)
        plan = session.hold(
            "fedbench suite run",
            lambda objects, lease: claim(LeasedStore(objects, lease), settings.s3.prefix, name, suite),
        )
        session.start(("mlflow.tracking", "matplotlib.figure"))
        # Late: these import Prefect, which reads the environment that the session has set.
        from flows.suite.flow import suite as suite_flow
        from flows.suite.result import build_result
        from flows.views.mlflow_run import artifact_location

        resolved = settings.model_copy(update={"s3": session.store})
        turn_mlflow_to(resolved.s3)
        handles = SuiteHandles(
            plan=plan,
            settings=resolved,
            folder=folder,
            capacity=capacity,
            environment=environment,
            mlflow_uri=session.services.mlflow_tracking_uri,
            mlflow_artifacts=artifact_location(session.services.settings),
            say=say,
            views=Views(f"the same command, or fedbench suite report {name}"),
        )
        for attempt in session.attempts():
            with attempt:
                set_suite_handles(handles)
                session.run_flow(suite_flow(name=name, spec=plan.suite, compare=compare))
        return SuiteOutcome(name, build_result(plan, resolved), folder / REPORT.parent)
