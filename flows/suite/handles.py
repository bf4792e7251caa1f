"""The handles of a suite run: its plan, this machine's settings, and the environment of its cells' processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path

from flows.coordinator.preflight import slot_count
from flows.suite.plan import SuitePlan
from infra.settings import Settings
from infra.views import Views
from tasks.spec.suite import SuiteSpec

DEFAULT_CELLS = 4  # at a time on work pools, whose workers divide their slots among the cells


@dataclass(frozen=True)
class SuiteHandles:
    """Handles of one suite run.

    settings: with the store's endpoint and keys filled in. folder: where this machine has the cells' logs and the
    report. capacity: the most slots at a time, or with work pools the most cells. environment: that of a cell's
    process. mlflow_artifacts: where MLflow keeps files; None: its default. say: called with a line of progress. views:
    notes which parts of the report or of the display failed.
    """

    plan: SuitePlan
    settings: Settings
    folder: Path
    capacity: int
    environment: Mapping[str, str]
    mlflow_uri: str
    mlflow_artifacts: str | None
    say: Callable[[str], None]
    views: Views


def suite_folder(settings: Settings, name: str) -> Path:
    """Return the folder of a suite run's logs and report on this machine."""
    return settings.home / "suites" / name


def capacity_of(settings: Settings, suite: SuiteSpec) -> int:
    """Return the number of slots of this machine; with work pools, the most cells at a time.

    Raises:
        SettingsError: a turn wants more than this machine has.
    """
    if settings.pools.used:
        return DEFAULT_CELLS
    return max(slot_count(settings, experiment.spec) for experiment in suite.experiments)


def child_environment(settings: Settings, **variables: str) -> dict[str, str]:
    """Return the environment of a child process with these settings: ours, without the variables of our Prefect run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    return {**kept, "FEDBENCH_HOME": str(settings.home), **variables}


_HANDLES: ContextVar[SuiteHandles] = ContextVar("fedbench_suite_handles")


def set_suite_handles(handles: SuiteHandles) -> None:
    """Make ``handles`` the current ones, for this context and all that it starts."""
    _HANDLES.set(handles)


def log_to_page(log: Callable[[str], None]) -> None:
    """Call ``log`` with the lines of progress of the current suite run too, from now on and in this context."""
    handles = _HANDLES.get()

    def say(line: str) -> None:
        handles.say(line)
        log(line)

    set_suite_handles(replace(handles, say=say))


def has_suite_handles() -> bool:
    return _HANDLES.get(None) is not None


def suite_handles() -> SuiteHandles:
    """Return the current handles.

    Raises:
        LookupError: no suite runs in this context.
    """
    return _HANDLES.get()
