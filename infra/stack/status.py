"""The current status of each service of a stack."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from infra.processes.service import Service
from infra.settings import Settings
from infra.stack.services import SERVERS, bare_service, stack_mlflow, stack_prefect, stack_s3
from infra.stack.state import StackState, read_state

State = Literal["up", "silent", "crashed", "down"]


@dataclass(frozen=True)
class ServiceStatus:
    """One line of ``fedbench status``.

    state: ``up``: answers, and accepts the credentials; ``silent``: lives, but does not answer (yet); ``crashed``: has
        ended without ``fedbench down``; ``down``.
    run: process id of a run that has a service of its own, outside any stack.
    """

    name: str
    state: State
    pid: int | None = None
    url: str | None = None
    since: datetime | None = None
    run: int | None = None


def bare_of(settings: Settings, name: str) -> Service:
    """Return the service of this home to look at or to end. It needs no credentials and no store."""
    return bare_service(name, settings, read_state(settings.home.absolute()).host)


def stack_service(settings: Settings, name: str, state: StackState) -> Service:
    """Return the service with the stack's credentials and ports, to look at. Only servers could be started from it."""
    kinds: dict[str, Callable[[], Service]] = {
        "s3": lambda: stack_s3(settings, state),
        "prefect": lambda: stack_prefect(settings, state),
        "mlflow": lambda: stack_mlflow(settings, state, settings.s3),
    }
    return kinds[name]() if name in kinds else bare_of(settings, name)


def service_status(settings: Settings, name: str, state: StackState) -> ServiceStatus:
    """Return the status of one service. Ask it at its address whether it answers."""
    running = bare_of(settings, name).running()
    if running is None:
        return ServiceStatus(name, "crashed" if state.up else "down")
    if not running.detached:
        return ServiceStatus(name, "down", run=running.pid)
    answers = running.address is not None and stack_service(settings, name, state).answers_at(running.address)
    return ServiceStatus(
        name,
        "up" if answers else "silent",
        running.pid,
        None if running.address is None else running.address.removesuffix("/api"),
        None if running.since is None else datetime.fromtimestamp(running.since, UTC),
    )


def running_addresses(settings: Settings) -> dict[str, str]:
    """Return the servers' current addresses. A run that restarted one may have found its port taken."""
    running = {name: bare_of(settings, name).running() for name in SERVERS}
    return {name: found.address for name, found in running.items() if found is not None and found.address}
