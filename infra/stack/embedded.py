"""The services of a run: those that the settings name, those of a running stack, else its own on loopback."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from infra.errors import InfraError, ServiceFailed
from infra.files.private import private_home
from infra.orchestrator.page_links import front_page
from infra.processes.service import Service
from infra.servers.credentials import StackKeys, draw_keys
from infra.servers.database import mlflow_database_uri, prefect_database_url
from infra.servers.login_page import write_login_page
from infra.servers.mlflow_server import MlflowService
from infra.servers.prefect_server import PrefectService
from infra.servers.s3 import S3Service
from infra.settings import Settings
from infra.settings_groups import S3Settings
from infra.stack.services import running_stack, stack_mlflow, stack_prefect, stack_s3
from infra.stack.state import StackState, read_state, without_own_addresses

log = logging.getLogger(__name__)

SUPERVISE_SECONDS = 2.0


class EmbeddedServices:
    """A run's S3 and Prefect servers, each only if ``settings`` name none. MLflow needs no server: runs write SQLite.

    While the home's stack (``fedbench up``) is up, its services are used, including MLflow's server, and left running.
    One that has crashed is started again. After ``fedbench down`` a run goes on with services of its own.

    A context manager: calls :meth:`start` on entry and :meth:`stop` on exit.
    """

    def __init__(self, settings: Settings, *, prefect: bool = True) -> None:
        """``prefect=False``: for commands that only read the store."""
        self.settings = without_own_addresses(settings, read_state(settings.home))
        self._reads_only = not prefect
        self._stopped = threading.Event()
        self._choice = threading.RLock()
        self._choose(running_stack(self.settings))

    def _choose(self, stack: StackState | None) -> None:
        settings = self.settings
        self._stack = stack
        self.mlflow: MlflowService | None = None  # a stack's; made when the store's address is known
        self.s3: S3Service | None = None
        self.prefect: PrefectService | None = None
        if settings.s3.endpoint is None:
            self.s3 = S3Service(settings.home) if stack is None else stack_s3(settings, stack)
        if settings.prefect_api_url is None and not self._reads_only:
            self.prefect = (
                PrefectService(settings.home, database_url=prefect_database_url(settings))
                if stack is None
                else stack_prefect(settings, stack)
            )

    @property
    def uses_stack(self) -> bool:
        """Whether the services that the settings do not name are those of a running stack."""
        return self._stack is not None

    @property
    def services(self) -> list[Service]:
        """The services that a run cannot go on without."""
        return [service for service in (self.s3, self.prefect) if service is not None]

    def start(self) -> None:
        """Start all needed services at the same time, and wait until all answer.

        Raises:
            ServiceFailed: one did not come up; the others are stopped.
        """
        private_home(self.settings.home)
        try:
            for step in (Service.begin, Service.complete):
                for service in self.services:
                    if self._stopped.is_set():  # by another thread: the services are no longer needed
                        raise ServiceFailed(f"{service.name}: stopped while it was coming up")
                    step(service)
            if not self._reads_only:
                self._ensure_mlflow()
        except BaseException:
            self.stop()
            raise

    def start_store(self) -> None:
        """Start only the store, which answers at once. :meth:`start` starts the rest.

        Raises:
            ServiceFailed: it did not come up.
        """
        private_home(self.settings.home)
        if self.s3 is not None:
            self.s3.ensure()

    def ensure(self) -> list[str]:
        """Restart services that no longer answer. Called during a run, after a failure or between rounds.

        Return the names of the services that were restarted or have another address, which must be read again.

        Raises:
            ServiceFailed: one did not come up.
        """
        with self._choice:
            stack = running_stack(self.settings)
            if (stack is None) != (self._stack is None):
                self.stop_own()
                self._choose(stack)
        changed = [service.name for service in self.services if service.ensure()]
        if not self._reads_only and self._ensure_mlflow():
            changed.append(MlflowService.name)
        return changed

    def mend(self) -> list[str]:
        """Set a damaged database of our own Prefect server aside, after a failure. Return lines for a person.

        Raises:
            ServiceFailed: the server did not come up again.
        """
        with self._choice:
            if self.uses_stack or self.prefect is None or not self.prefect.mend():
                return []
            self.prefect.ensure()
            return [] if self.prefect.set_aside is None else [self.prefect.set_aside]

    def stop(self) -> None:
        """Stop the services that this process runs, for good.

        Safe to call twice, and while another thread is in :meth:`start`.
        """
        self._stopped.set()
        self.stop_own()

    def stop_own(self) -> None:
        mlflow = [] if self.mlflow is None else [self.mlflow]
        for service in reversed([*self.services, *mlflow]):
            service.stop()

    def s3_endpoint(self) -> S3Settings:
        """Return the settings of the store with endpoint and credentials filled in."""
        if self.s3 is None:
            return self.settings.s3
        return self.s3.resolved(self.settings.s3, self.s3.address)

    @property
    def prefect_api_url(self) -> str:
        if self.prefect is not None:
            return self.prefect.address
        if self.settings.prefect_api_url is None:
            raise RuntimeError("these services were made without Prefect")
        return self.settings.prefect_api_url

    @property
    def prefect_stays(self) -> bool:
        """Whether Prefect's server goes on when these services are stopped, so that links to its pages stay valid."""
        return self.uses_stack or self.prefect is None

    def prefect_environment(self) -> dict[str, str]:
        """Return the environment variables that Prefect's clients need, including credentials of our own server."""
        variables = {"PREFECT_API_URL": self.prefect_api_url}
        if self.prefect is not None:
            variables["PREFECT_API_AUTH_STRING"] = self.prefect.auth
        return variables

    def login_page(self, command: str, prefect_page: str | None = None, mlflow_page: str | None = None) -> Path | None:
        """Write the page by which ``command`` logs a person in. Return its path; None: no server is ours.

        prefect_page: URL at our Prefect server; None: its front page. mlflow_page: URL at an MLflow server of ours.
        """
        prefect = None if self.prefect is None else prefect_page or front_page(self.prefect.address)
        if prefect is None and mlflow_page is None:
            return None
        return write_login_page(self.settings.home, command, self.keys, prefect, mlflow_page)

    @property
    def keys(self) -> StackKeys:
        """The credentials of this home's servers."""
        return draw_keys(self.settings.home.absolute() / "services")

    @property
    def mlflow_tracking_uri(self) -> str:
        """URI for MLflow's clients. For a stack's server, this process's environment gets its credentials."""
        if self.settings.mlflow_tracking_uri is not None:
            return self.settings.mlflow_tracking_uri
        if self._stack is None:
            return mlflow_database_uri(self.settings)
        if self.mlflow is None:
            self._ensure_mlflow()
        assert self.mlflow is not None
        # Even if it did not come up: clients then raise TrackingUnavailable, and the run goes on.
        return self.mlflow.last_address

    def _ensure_mlflow(self) -> bool:
        """Make sure that a stack's MLflow server answers. Return whether it was restarted or has another address.

        It only shows what the store has, so a failure is logged and the run goes on.
        """
        if self._stack is None or self.settings.mlflow_tracking_uri is not None:
            return False
        if self.mlflow is None:
            self.mlflow = stack_mlflow(self.settings, self._stack, self.s3_endpoint())
            os.environ.update(self.mlflow.client_environment())
        try:
            return self.mlflow.ensure()
        except InfraError as error:
            log.warning("%s", error)
            return False

    def __enter__(self) -> EmbeddedServices:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


@contextlib.contextmanager
def supervised(services: EmbeddedServices) -> Iterator[None]:
    """Restart dead services during a run, its own and those of a stack."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SUPERVISE_SECONDS):
            try:
                for service in services.ensure():
                    log.warning("%s was gone and has been started again", service)
            except (InfraError, OSError) as error:  # OSError: a full disk, which fails the run itself too
                log.error("%s", error)

    thread = threading.Thread(target=watch, name="supervise-services", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
