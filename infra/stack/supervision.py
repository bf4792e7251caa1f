"""Supervise a stack until ``fedbench down``: restart its dead services as they were, and its crashed runs.

    python -m infra.stack.supervision PORT [FLOW …]

The supervisor is a process of the stack, and answers ``/health`` at ``PORT`` on loopback. It holds the stack's lock
while it starts a service, as ``up`` and ``down`` do, and starts nothing while they hold it. A run may start the same
service at the same time. The service's own lock decides which of the two does (:mod:`infra.processes.service`), and the
other waits.

Servers keep their ports, which clients know. While a port is taken, its server stays down. A service that lives but
does not answer is left alone: a worker is silent while Prefect's server is away, and ending it would end its runs.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from infra.errors import InfraError
from infra.plain_text import first_line, printable
from infra.processes.ports import LOOPBACK
from infra.processes.service import Service
from infra.servers.credentials import read_keys
from infra.settings import Settings, load_settings
from infra.settings_groups import S3Settings
from infra.stack.crashed_runs import CrashedRuns, Sightings
from infra.stack.environment_file import stack_environment
from infra.stack.services import (
    SERVERS,
    WORKERS,
    bare_service,
    stack_mlflow,
    stack_prefect,
    stack_s3,
    stack_worker,
)
from infra.stack.state import StackState, read_state, stack_lock

log = logging.getLogger("supervisor")

LOOK_SECONDS = 2.0
RUNS_SECONDS = 10.0  # between two looks for crashed runs
FAILED_SECONDS = 30.0  # after a look that failed
LONGEST_WAIT = 300.0  # seconds before a service that keeps dying is started again
STABLE_SECONDS = 600.0  # a service that was last started so long ago starts at once
BRINGING_BACK = "the stack's supervisor"


class BackOff:
    """Decides when a service may be started again: at once, then 2, 4, 8 … seconds after the last start."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._starts: dict[str, tuple[int, float]] = {}

    def wait(self, name: str) -> float:
        """Return the seconds until the service may be started; 0: now."""
        count, last = self._starts.get(name, (0, 0.0))
        age = self._clock() - last
        if count == 0 or age > STABLE_SECONDS:
            return 0.0
        return max(0.0, min(2.0**count, LONGEST_WAIT) - age)

    def started(self, name: str) -> None:
        """Note that the service was started, with or without success."""
        count, last = self._starts.get(name, (0, 0.0))
        now = self._clock()
        self._starts[name] = (1 if now - last > STABLE_SECONDS else count + 1, now)


@dataclass
class _Attempt:
    name: str
    service: Service
    failed: str | None = None


class Supervisor:
    """Restarts dead services of the stack of ``settings.home``, with the settings of the `up` that started it.

    flows: names of the flows whose crashed runs are restarted.
    """

    def __init__(self, settings: Settings, flows: Sequence[str] = (), back_off: BackOff | None = None) -> None:
        self._flows = flows
        self._settings = settings
        self._home = settings.home.absolute()
        self._back_off = back_off or BackOff()
        self._started: dict[str, Service] = {}
        self._next_runs = 0.0
        self._sightings = Sightings()

    def look(self) -> bool:
        """Start the dead services that may be started now. Return whether the stack is still up.

        Raises:
            ServiceFailed: the stack's state or credentials cannot be read.
        """
        for service in self._started.values():
            service.is_alive()  # polls it: one that has ended is a zombie until then
        state = read_state(self._home)
        if self._flows and state.up and state.addresses and state.workers:
            self._look_at_runs(state)
        # Without addresses, an `up` did not reach its end: the next `up` repairs that.
        if not state.up or not state.addresses or not self._due(state, (*SERVERS, *WORKERS)):
            return state.up
        lock = stack_lock(self._home)
        if not lock.acquire(note=BRINGING_BACK):
            return True
        try:
            state = read_state(self._home)  # `up` or `down` may have changed it before the lock was free
            if state.up and state.addresses:
                self._bring_back(state)
            return state.up
        finally:
            lock.release()

    def _look_at_runs(self, state: StackState) -> None:
        """Restart crashed runs. If Prefect's server is away, leave them to the next look."""
        now = time.monotonic()
        if now < self._next_runs:
            return
        self._next_runs = now + RUNS_SECONDS
        headers = stack_prefect(self._settings, state).health_headers()
        try:
            for name in CrashedRuns(self._address("prefect", state), headers, self._sightings).go_on(self._flows):
                # Anybody with Prefect's password may have chosen the name.
                log.info("run %s had crashed; it goes on", printable(name))
        except OSError as error:
            log.debug("Prefect's server does not list crashed runs: %s", error)

    def _due(self, state: StackState, names: tuple[str, ...]) -> list[str]:
        """Return those of ``names`` that are dead and may be started now."""
        return [
            name
            for name in names
            if (state.workers or name not in WORKERS)
            and self._back_off.wait(name) == 0.0
            and bare_service(name, self._settings, state.host).running() is None
        ]

    def _bring_back(self, state: StackState) -> None:
        store = stack_s3(self._settings, state).resolved(self._settings.s3, self._address("s3", state))
        servers = [_Attempt(name, self._server(name, state, store)) for name in self._due(state, SERVERS)]
        self._start(servers)
        # A worker ends at once when Prefect's server does not answer.
        if self._due(state, WORKERS) and self._answers("prefect", state):
            addresses = {name: self._address(name, state) for name in SERVERS}
            variables = stack_environment(self._home, addresses, store, read_keys(self._home / "services"))
            self._start(
                [_Attempt(name, stack_worker(name, self._settings, variables)) for name in self._due(state, WORKERS)]
            )

    def _server(self, name: str, state: StackState, store: S3Settings) -> Service:
        kinds: dict[str, Callable[[], Service]] = {
            "s3": lambda: stack_s3(self._settings, state),
            "prefect": lambda: stack_prefect(self._settings, state),
            "mlflow": lambda: stack_mlflow(self._settings, state, store),
        }
        service = kinds[name]()
        service.keeps_port = True
        return service

    def _start(self, attempts: list[_Attempt]) -> None:
        for step in (Service.begin, Service.complete):
            for attempt in attempts:
                if attempt.failed is None:
                    try:
                        step(attempt.service)
                    except InfraError as error:
                        attempt.failed = first_line(error)
        for name, service, failed in ((attempt.name, attempt.service, attempt.failed) for attempt in attempts):
            self._back_off.started(name)
            if failed is None:
                self._started[name] = service
                log.info("%s had died; it is back at %s", name, service.address)
            else:
                log.error(
                    "%s had died and did not come back, again in %.0f s: %s", name, self._back_off.wait(name), failed
                )

    def _address(self, name: str, state: StackState) -> str:
        """Return the server's current address. A run that restarted it may have used another port than clients know."""
        running = bare_service(name, self._settings, state.host).running()
        return (running.address if running is not None else None) or state.addresses[name]

    def _answers(self, name: str, state: StackState) -> bool:
        return stack_prefect(self._settings, state).answers_at(self._address(name, state))


class _Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing, because each `status` and `up` asks."""


def main() -> None:
    logging.basicConfig(stream=sys.stdout, format="%(asctime)s %(message)s", level="INFO")
    supervisor = Supervisor(load_settings(), sys.argv[2:])
    health = ThreadingHTTPServer((LOOPBACK, int(sys.argv[1])), _Health)
    threading.Thread(target=health.serve_forever, daemon=True).start()
    log.info("looking after the stack")
    up = True
    while up:
        try:
            up = supervisor.look()
        except Exception:  # a full disk or a damaged file may be mended, and nobody else supervises
            log.exception("this look failed; the next one is in %.0f s", FAILED_SECONDS)
            time.sleep(FAILED_SECONDS)
        time.sleep(LOOK_SECONDS)
    log.info("the stack has been ended")


if __name__ == "__main__":
    main()
