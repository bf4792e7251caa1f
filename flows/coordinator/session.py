"""The session of a run: it takes locks, lease and servers for a federation or a suite in order, and gives them back.

``fedbench run`` and ``fedbench suite run`` use an :class:`OwnSession`, and the deployments of both a
:class:`~flows.coordinator.deployed.DeployedSession`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from collections.abc import Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from types import TracebackType
from typing import Any, Self, TypeVar

from flows.coordinator.interrupts import interrupts_deferred, run_until_stopped, terminate_as_interrupt
from flows.coordinator.planted import hold_back_planted
from flows.coordinator.restarts import Attempts
from infra.environment.certificates import PREFECT, require_trusted
from infra.errors import StoreUnavailable
from infra.orchestrator.automations import HEARTBEAT_SECONDS, HEARTBEAT_VARIABLE
from infra.orchestrator.page_links import front_page
from infra.servers.login_page import how_to_log_in
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.embedded import EmbeddedServices, supervised
from infra.stack.own_environment import use_own_environment
from infra.store.holding import Subject, machine_held
from infra.store.lease import StoreLease
from infra.store.objects import ObjectStore
from infra.turns.local import end_fork_server, start_fork_server

Result = TypeVar("Result")

STORE_ATTEMPTS = 3
POLL_SECONDS = 0.1
DRAIN_SECONDS = 20.0


class OwnSession:
    """A session of the command line. It starts the servers that neither the settings nor a stack name.

    A context manager. On entry it holds the subject on this machine, and makes SIGTERM raise KeyboardInterrupt. On exit
    it gives back all that it has taken, in reverse. In between, call :meth:`with_store`, :meth:`hold`, :meth:`start`
    and :meth:`attempts`, in this order: Prefect reads the environment when it is imported, so nothing may import it
    before :meth:`start` has set the environment.

    say: called with a line for whoever watches the run.
    """

    lease: StoreLease

    def __init__(self, settings: Settings, subject: Subject, say: Callable[[str], None]) -> None:
        self.settings, self.subject, self._say = settings, subject, say
        self.services = EmbeddedServices(settings)
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as held:
            held.enter_context(machine_held(self.settings, self.subject))
            held.callback(self.services.stop)
            held.enter_context(terminate_as_interrupt())
            self._held = held.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.__exit__(kind, error, trace)

    @property
    def store(self) -> S3Settings:
        """The settings of the store with endpoint and keys. Read them again after a failure: the port may change."""
        return self.services.s3_endpoint()

    def with_store(self, use: Callable[[ObjectStore], Result]) -> Result:
        """Start the store if it is ours, call ``use`` with it, and return the result.

        If a store of ours dies meanwhile, it is started again, and ``use`` is called again. Nothing else would restart
        it, because :meth:`start` has not yet begun to supervise it.

        Raises:
            StoreUnavailable, ServiceFailed: the store does not answer.
        """
        attempts = 1 if self.services.s3 is None else STORE_ATTEMPTS
        while True:
            attempts -= 1
            self.services.start_store()
            try:
                objects = ObjectStore(self.store)
                objects.ensure_bucket()
                return use(objects)
            except StoreUnavailable:
                if not attempts:
                    raise

    def hold(self, command: str, claim: Callable[[ObjectStore, StoreLease], Result]) -> Result:
        """Acquire the subject's lease until the session ends, call ``claim`` with store and lease, return the result.

        command: named in the message of other processes that find the lease held.

        Raises:
            RunLocked: another process holds the subject; the message names it.
        """

        def acquire(objects: ObjectStore) -> Result:
            with contextlib.ExitStack() as held:
                lease = held.enter_context(self.subject.lease(objects, self.settings, command, self._say))
                lease.acquire()
                claimed = claim(objects, lease)
                self._held.push(held.pop_all())
            self.lease = lease
            return claimed

        return self.with_store(acquire)

    def start(self, modules: Sequence[str], *, preload: Sequence[str] = ()) -> None:
        """Set the environment, start the servers and import ``modules`` meanwhile. Then supervise the servers.

        preload: modules that the fork server of local slots imports.

        Raises:
            ServiceFailed: a server did not come up.
            SettingsError: the certificate of a Prefect server that the settings name is refused.
            KeyboardInterrupt: Ctrl-C or SIGTERM; the servers are stopped.
        """
        self._say("starting services")
        own_prefect(self.settings)
        start_services(self.services, modules, preload=preload)
        require_trusted(self.settings.prefect_api_url, PREFECT, os.environ)
        os.environ.update(self.services.prefect_environment())  # from here on, Prefect may be imported
        prefect = self.services.prefect
        if prefect is not None:
            path = self.services.login_page("run")
            assert path is not None, "our Prefect server is up"
            self._say(f"Prefect's page: {front_page(prefect.address)} · {how_to_log_in(path)}")
        hold_back_planted(self.settings, prefect, self._say)
        self._held.enter_context(supervised(self.services))
        self._held.enter_context(prefect_drained())

    def attempts(self) -> Attempts:
        """Return attempts at the run. Each but the first brings the servers back before its work."""
        return Attempts(self.settings.home, self._say, self._recover)

    def _recover(self) -> None:
        for line in self.services.mend():
            self._say(line)
        self.services.ensure()

    def run_flow(self, work: Coroutine[Any, Any, Result]) -> Result:
        """Run ``work``, which calls flows, with Prefect's clients at the present address of its server.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM cancelled the work.
        """
        from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

        from infra.orchestrator.prefect_private import own_sigterm

        # Prefect keeps the address that it read first, but a restarted server may have another port.
        names = {setting.name: setting for setting in (PREFECT_API_URL, PREFECT_API_AUTH_STRING)}
        variables = self.services.prefect_environment()
        with temporary_settings({names[name]: value for name, value in variables.items()}), own_sigterm():
            return run_until_stopped(work)


def own_prefect(settings: Settings) -> None:
    """Keep the user's own Prefect, profile and proxies out of this process. Call it before anything imports Prefect."""
    use_own_environment(settings)
    os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
    os.environ[HEARTBEAT_VARIABLE] = str(HEARTBEAT_SECONDS)
    os.environ.setdefault("DO_NOT_TRACK", "1")


def start_services(services: EmbeddedServices, modules: Sequence[str], *, preload: Sequence[str] = ()) -> None:
    """Start the servers. Meanwhile import ``modules`` here, and ``preload`` in the fork server: each takes seconds.

    Raises:
        ServiceFailed: a server did not come up.
        KeyboardInterrupt: Ctrl-C or SIGTERM; the servers were stopped.
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
            services.stop()  # the thread then stops waiting for its servers
            end_fork_server()
            raise


@contextlib.contextmanager
def prefect_drained() -> Iterator[None]:
    """Send Prefect's queued states, logs and events at the end of the block, while its server is up.

    Otherwise Prefect sends them when the interpreter exits, and waits forever if its server has been stopped by then.
    """
    try:
        yield
    finally:
        from prefect.events.worker import EventsWorker
        from prefect.logging.handlers import APILogWorker

        for worker in (EventsWorker, APILogWorker):
            worker.drain_all(timeout=DRAIN_SECONDS)
