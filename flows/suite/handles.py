"""What the process of a suite run has: its plan, this machine, and the environment of its cells' processes."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from flows.coordinator.preflight import slot_count
from flows.suite.plan import SuitePlan
from infra.settings import Settings
from infra.views import Views
from tasks.spec.suite import SuiteSpec

DEFAULT_CELLS = 4  # at a time on work pools, whose workers share out their slots


@dataclass(frozen=True)
class SuiteHandles:
    """Handles of one suite run.

    settings: with the store's endpoint and keys filled in. folder: of the cells' logs and the report, on this machine.
    capacity: slots, or on work pools cells, at a time. environment: of a cell's process. mlflow_artifacts: where MLflow
    keeps files, None: where it likes. say: told a line of progress. views: within which all that only presents the
    suite is done.
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
    """Logs and report of a suite run on this machine."""
    return settings.home / "suites" / name


def capacity_of(settings: Settings, suite: SuiteSpec) -> int:
    """Slots of this machine; on work pools, cells at a time.

    Raises:
        SettingsError: a turn wants more than there is.
    """
    if settings.pools.used:
        return DEFAULT_CELLS
    return max(slot_count(settings, experiment.spec) for experiment in suite.experiments)


def child_environment(settings: Settings, **variables: str) -> dict[str, str]:
    """Return this process's environment for a child with the same settings, without what names its Prefect run."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT__")}
    return {**kept, "FEDBENCH_HOME": str(settings.home), **variables}


_HANDLES: ContextVar[SuiteHandles] = ContextVar("fedbench_suite_handles")


def set_suite_handles(handles: SuiteHandles) -> None:
    """Make ``handles`` the current ones, for this context and all that it starts."""
    _HANDLES.set(handles)


def has_suite_handles() -> bool:
    return _HANDLES.get(None) is not None


def suite_handles() -> SuiteHandles:
    """
    Raises:
        LookupError: no suite runs in this context.
    """
    return _HANDLES.get()
