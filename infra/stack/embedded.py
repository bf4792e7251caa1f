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
from infra.processes.service import Service
from infra.servers.credentials import draw_keys
from infra.servers.database import mlflow_database_uri, prefect_database_url
from infra.servers.login_page import write_login_page
from infra.servers.mlflow_server import MlflowService
from infra.servers.prefect_server import PrefectService
from infra.servers.s3 import S3Service
from infra.settings import S3Settings, Settings
from infra.stack.services import running_stack, stack_mlflow, stack_prefect, stack_s3
from infra.stack.state import StackState, read_state, without_own_addresses

log = logging.getLogger(__name__)

SUPERVISE_SECONDS = 2.0


class EmbeddedServices:
    """S3 and Prefect, each only when ``settings`` name none. MLflow needs no service: SQLite is written
    directly.

    While the home's stack (``fedbench up``) is up, its services are used, MLflow's server too, and left running;
    one that has crashed is started again. After ``fedbench down`` a run goes on with services of its own.

    A context manager: :meth:`start` on the way in, :meth:`stop` on the way out.
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
        self.mlflow: MlflowService | None = None  # of a stack; made when the store's address is known
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
        """Whether what the settings do not name is that of a running stack."""
        return self._stack is not None

    @property
    def services(self) -> list[Service]:
        """Those without which nothing goes on."""
        return [service for service in (self.s3, self.prefect) if service is not None]

    def start(self) -> None:
        """Start all that is needed, at the same time, and wait until all answer.

        Raises:
            ServiceFailed: one did not come up; those that did are stopped.
        """
        private_home(self.settings.home)
        try:
            for step in (Service.begin, Service.complete):
                for service in self.services:
                    if self._stopped.is_set():  # by another thread: nobody waits for them any more
                        raise ServiceFailed(f"{service.name}: stopped while it was coming up")
                    step(service)
            if not self._reads_only:
                self._ensure_mlflow()
        except BaseException:
            self.stop()
            raise

    def start_store(self) -> None:
        """Start the store alone, which answers at once; :meth:`start` brings the rest.

        Raises:
            ServiceFailed: it did not come up.
        """
        private_home(self.settings.home)
        if self.s3 is not None:
            self.s3.ensure()

    def ensure(self) -> list[str]:
        """Bring back what no longer answers; called in the middle of a run, after a failure or between
        rounds.

        Returns the names of those restarted or found at another address; read the addresses again then.

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
        """Set a damaged database of our own Prefect server aside, after a failure. Returns lines for a person.

        Raises:
            ServiceFailed: the server did not come up again.
        """
        with self._choice:
            if self.uses_stack or self.prefect is None or not self.prefect.mend():
                return []
            self.prefect.ensure()
            return [] if self.prefect.set_aside is None else [self.prefect.set_aside]

    def stop(self) -> None:
        """Stop what this process runs, for good. Safe to call twice, and while another thread is in :meth:`start`."""
        self._stopped.set()
        self.stop_own()

    def stop_own(self) -> None:
        mlflow = [] if self.mlflow is None else [self.mlflow]
        for service in reversed([*self.services, *mlflow]):
            service.stop()

    def s3_endpoint(self) -> S3Settings:
        """The settings of the store with endpoint and credentials filled in."""
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

    def prefect_environment(self) -> dict[str, str]:
        """What Prefect's clients must have in their environment, credentials of our own server included."""
        variables = {"PREFECT_API_URL": self.prefect_api_url}
        if self.prefect is not None:
            variables["PREFECT_API_AUTH_STRING"] = self.prefect.auth
        return variables

    def login_page(self, command: str, prefect_page: str | None = None, mlflow_page: str | None = None) -> Path | None:
        """Write the page with which ``command`` has a person logged in. Returns its path; None: no server is ours.

        prefect_page: URL at our Prefect server; None: its front page. mlflow_page: URL at an MLflow server of ours.
        """
        prefect = None if self.prefect is None else prefect_page or self.prefect.ui_url
        if prefect is None and mlflow_page is None:
            return None
        home = self.settings.home
        return write_login_page(home, command, draw_keys(home.absolute() / "services"), prefect, mlflow_page)

    @property
    def mlflow_tracking_uri(self) -> str:
        """Where MLflow's clients go; for a stack's server, its credentials are put into this process's environment."""
        if self.settings.mlflow_tracking_uri is not None:
            return self.settings.mlflow_tracking_uri
        if self._stack is None:
            return mlflow_database_uri(self.settings)
        if self.mlflow is None:
            self._ensure_mlflow()
        assert self.mlflow is not None
        # Of one that does not come up too: its silence is TrackingUnavailable for clients, and the run goes on.
        return self.mlflow.last_address

    def _ensure_mlflow(self) -> bool:
        """Have a stack's MLflow server answering. It only shows what the store has, so no run fails without it."""
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
    """Bring services back while a run goes on: its own, and those of a stack."""
    done = threading.Event()

    def watch() -> None:
        while not done.wait(SUPERVISE_SECONDS):
            try:
                for service in services.ensure():
                    log.warning("%s was gone and has been started again", service)
            except (InfraError, OSError) as error:  # OSError: a full disk, of which the run itself hears too
                log.error("%s", error)

    thread = threading.Thread(target=watch, name="supervise-services", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=30)
