"""The stack of ``fedbench up``: services of one home that outlive the command that started them.

Each is a detached process (:mod:`infra.processes.service`). ``status`` calls one that died *crashed*. The stack's
supervisor (:mod:`infra.stack.supervision`), the next ``up``, or a run that needs it starts it again, with its port and
its data. Runs without a stack use the same data: the same S3 folder and databases.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime

from infra.errors import HomeInUse
from infra.files.private import private_home
from infra.files.sqlite_urls import sqlite_url
from infra.orchestrator.page_links import front_page
from infra.processes.ports import LOOPBACK
from infra.processes.service import Service
from infra.servers.credentials import draw_keys, read_keys
from infra.servers.login_page import MLFLOW_FRONT, write_login_page
from infra.servers.mlflow_server import default_tracking_uri
from infra.servers.prefect_server import PrefectService
from infra.settings import Settings
from infra.stack.asked import check_databases, foreign_addresses, with_databases, with_host
from infra.stack.environment_file import remove_environment, stack_environment, write_environment
from infra.stack.port_choice import moved_ports, with_asked_ports
from infra.stack.services import (
    SERVERS,
    SERVICES,
    SUPERVISOR,
    WORKERS,
    stack_mlflow,
    stack_prefect,
    stack_s3,
    stack_worker,
)
from infra.stack.state import (
    AT_WORK,
    PortChoice,
    StackState,
    read_state,
    stack_lock,
    write_state,
)
from infra.stack.status import ServiceStatus, bare_of, running_addresses, service_status, stack_service
from infra.stack.supervisor_service import SupervisorService

WAIT_SECONDS = 600.0  # for another `up` or `down` of the same home


class Stack:
    """The stack of ``settings.home``. It does not use addresses in the settings: they name other services."""

    def __init__(self, settings: Settings, flows: Sequence[str] = ()) -> None:
        """flows: names of the flows whose crashed runs are restarted while the stack is up."""
        self.settings, self._flows = settings, flows
        self.home = settings.home.absolute()

    def status(self) -> list[ServiceStatus]:
        """Return the current status of each service."""
        state = read_state(self.home)
        return [service_status(self.settings, name, state) for name in SERVICES if state.workers or name not in WORKERS]

    def up(self, say: Callable[[str], None], look: Callable[[PrefectService], None]) -> bool:
        """Start the servers that are not up. Return whether there was anything to do.

        say: called with lines for the user, also about what takes time.
        look: called with Prefect's server once it answers, before anything can run what its database has.

        Raises:
            HomeInUse: a run has services of its own open.
            SettingsError: a database URL cannot be used, or is not that of the stack that is up.
            InfraError: a database cannot be reached, or a service did not come up.
        """
        private_home(self.home)
        with self._alone(say):
            draw_keys(self.home / "services")
            found_state = read_state(self.home)
            state = with_host(self.settings, with_databases(self.settings, found_state))
            if state.host != LOOPBACK:
                say(
                    f"listening at {state.host}, not on loopback alone: the credentials are all that protects the "
                    "servers, and nothing is encrypted"
                )
            for setting, address in foreign_addresses(self.settings, state).items():
                say(f"{setting} is set, so runs here use {address}, not this stack's")
            before = [service_status(self.settings, name, found_state) for name in SERVERS]
            for found in before:
                if found.run is not None:
                    raise HomeInUse(
                        f"{found.name}: process {found.run} (a run, or fedbench ui) has it open on {self.home}, and "
                        "its data must not be opened twice; wait for it to end, then: fedbench up"
                    )
            if (
                state.up
                and all(found.state == "up" for found in before)
                and running_addresses(self.settings) == state.addresses
            ):
                self._write_client_files(state)  # the file may have been removed
                for line in moved_ports(self.settings, state):
                    say(line)
                look(self._answering_prefect(state))
                return self._supervise(state)
            check_databases(state)
            if not found_state.up:  # while it is up, its clients have the addresses
                state = with_asked_ports(state, (found.name for found in before if found.state == "down"))
            state = state.model_copy(update={"up": True})
            write_state(self.home, state)
            try:
                self._start(state, before, say)
                look(self._answering_prefect(read_state(self.home)))
            except BaseException:
                self._take_back(before)
                write_state(self.home, found_state)
                raise
            bare_of(self.settings, SUPERVISOR).end()  # so that the next one has the settings of this `up`
            self._supervise(state)
            return True

    def workers_up(self) -> bool:
        state = read_state(self.home)
        return state.workers and all(service_status(self.settings, name, state).state == "up" for name in WORKERS)

    def up_workers(self, say: Callable[[str], None]) -> bool:
        """Start the workers that are not up. Return whether there was anything to do.

        The servers must be up and have the work pools.

        Raises:
            ServiceFailed: one did not come up.
        """
        with self._alone(say):
            state = read_state(self.home)
            store = stack_s3(self.settings, state).resolved(self.settings.s3, state.addresses["s3"])
            variables = stack_environment(self.home, state.addresses, store, read_keys(self.home / "services"))
            pending = [
                stack_worker(name, self.settings, variables)
                for name in WORKERS
                if service_status(self.settings, name, state).state != "up"
            ]
            write_state(self.home, state.model_copy(update={"workers": True}))
            if pending:
                say("waiting for the workers …")
            try:
                for step in (Service.begin, Service.complete):
                    for service in pending:
                        step(service)
            except BaseException:
                for service in pending:
                    service.stop()
                raise
            return bool(pending)

    def down(self, say: Callable[[str], None]) -> tuple[str, ...] | None:
        """End all services of the stack, the last started first. Return those that were running.

        Return None if the stack was not up.
        """
        if not (self.home / "services").exists():
            return None
        supervisor = bare_of(self.settings, SUPERVISOR).end()  # before the lock: it holds that while a server comes up
        with self._alone(say):
            state = read_state(self.home)
            write_state(self.home, state.model_copy(update={"up": False, "workers": False}))
            remove_environment(self.home)
            ended = [name for name in reversed(SERVICES) if bare_of(self.settings, name).end()]
            if supervisor and SUPERVISOR not in ended:
                ended.insert(0, SUPERVISOR)
            return tuple(ended) if state.up or ended else None

    def databases(self) -> dict[str, str]:
        """Return the URIs of the databases that Prefect and MLflow use, by service."""
        state = read_state(self.home)
        sqlite = sqlite_url(self.home / "prefect" / "prefect.db")
        return {
            "prefect": state.prefect_database_url or sqlite,
            "mlflow": state.mlflow_database_uri or default_tracking_uri(self.home),
        }

    # Implementation.

    @contextmanager
    def _alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """Hold the stack's lock, after waiting for another holder."""
        lock = stack_lock(self.home)
        if not lock.acquire(note=AT_WORK):
            who = f"{lock.note() or AT_WORK} (process {lock.holder()}) is at work on {self.home}"
            say(f"{who}; waiting for it")
            if not lock.acquire(WAIT_SECONDS, note=AT_WORK):
                raise HomeInUse(who)
        try:
            yield
        finally:
            lock.release()

    def _answering_prefect(self, state: StackState) -> PrefectService:
        service = stack_prefect(self.settings, state)
        service.ensure()
        return service

    def _supervise(self, state: StackState) -> bool:
        """Start the supervisor unless it is up. Return whether it was started."""
        if service_status(self.settings, SUPERVISOR, state).state == "up":
            return False
        service = SupervisorService(self.home, self._flows)
        service.end()  # one that does not answer
        service.ensure()
        return True

    def _start(self, state: StackState, before: list[ServiceStatus], say: Callable[[str], None]) -> None:
        from infra.store.objects import ObjectStore  # imports boto3, which `status` does not need

        for found in before:
            if found.state == "silent":
                self._wait_or_end(found, state)
        s3 = stack_s3(self.settings, state)
        s3.ensure()
        store = s3.resolved(self.settings.s3, s3.address)
        ObjectStore(store).ensure_bucket()  # the first signed request
        mlflow = stack_mlflow(self.settings, state, store)
        if state.addresses.get("s3") not in (None, s3.address) and mlflow.end():
            say("mlflow: started again, because the store has another port")
        started: list[Service] = [s3, stack_prefect(self.settings, state), mlflow]
        say("waiting for Prefect's and MLflow's servers to answer …")
        try:
            for step in (Service.begin, Service.complete):
                for service in started:
                    step(service)
        except BaseException:
            for service in started:
                service.stop()  # what is not up yet is still held here
            raise
        addresses = {service.name: service.address for service in started}
        if state.workers and state.addresses != addresses:
            say("workers: started again, because a server has another port")
            for name in WORKERS:
                bare_of(self.settings, name).end()
        state = state.model_copy(
            update={
                "addresses": addresses,
                "ports": {
                    service.name: PortChoice(asked=getattr(self.settings.ports, service.name), chosen=service.port)
                    for service in started
                },
            }
        )
        write_state(self.home, state)
        self._write_client_files(state)
        for line in moved_ports(self.settings, state):
            say(line)

    def _wait_or_end(self, found: ServiceStatus, state: StackState) -> None:
        """Wait for a silent service that is coming up; end one that hangs."""
        service = stack_service(self.settings, found.name, state)
        age = 0.0 if found.since is None else (datetime.now(UTC) - found.since).total_seconds()
        # If the clock was set back since, the age is negative: never wait longer than for a whole start.
        patience = max(service.start_seconds - max(age, 0.0), service.patience_seconds)
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            running = service.running()
            if running is None or (running.address is not None and service.answers_at(running.address)):
                return
            time.sleep(0.5)
        service.end()

    def _take_back(self, before: list[ServiceStatus]) -> None:
        """End the servers that a failed `up` has started. Those that were up before stay."""
        kept = {found.name for found in before if found.state == "up"}
        for name in reversed(SERVERS):
            if name not in kept:
                bare_of(self.settings, name).end()

    def _write_client_files(self, state: StackState) -> None:
        """Write the environment file and the login page."""
        store = stack_s3(self.settings, state).resolved(self.settings.s3, state.addresses["s3"])
        keys, addresses = read_keys(self.home / "services"), state.addresses
        write_environment(self.home, addresses, store, keys)
        write_login_page(self.home, "up", keys, front_page(addresses["prefect"]), addresses["mlflow"] + MLFLOW_FRONT)
