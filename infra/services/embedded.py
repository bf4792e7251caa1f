"""The embedded services of a run: what the settings do not name is started on loopback."""

from __future__ import annotations

import threading
from types import TracebackType

from pydantic import SecretStr

from infra.errors import ServiceFailed
from infra.services.mlflow_server import default_tracking_uri
from infra.services.prefect_server import PrefectService
from infra.services.process import Service
from infra.services.s3 import S3Service
from infra.settings import S3Settings, Settings


class EmbeddedServices:
    """S3 and Prefect, each only when ``settings`` name none. MLflow needs no service: SQLite is written
    directly.

    A context manager: :meth:`start` on the way in, :meth:`stop` on the way out.
    """

    def __init__(self, settings: Settings, *, prefect: bool = True) -> None:
        """``prefect=False``: for commands that only read the store."""
        self.settings = settings
        self._stopped = threading.Event()
        self.s3 = S3Service(settings.home) if settings.s3.endpoint is None else None
        self.prefect = PrefectService(settings.home) if prefect and settings.prefect_api_url is None else None

    @property
    def services(self) -> list[Service]:
        return [service for service in (self.s3, self.prefect) if service is not None]

    def start(self) -> None:
        """Start all that is needed, at the same time, and wait until all answer.

        Raises:
            ServiceFailed: one did not come up; those that did are stopped.
        """
        self.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            for step in (Service.begin, Service.complete):
                for service in self.services:
                    if self._stopped.is_set():  # by another thread: nobody waits for them any more
                        raise ServiceFailed(f"{service.name}: stopped while it was coming up")
                    step(service)
        except BaseException:
            self.stop()
            raise

    def start_store(self) -> None:
        """Start the store alone, which answers at once; :meth:`start` brings the rest.

        Raises:
            ServiceFailed: it did not come up.
        """
        self.settings.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.s3 is not None:
            self.s3.ensure()

    def ensure(self) -> list[str]:
        """Bring back what no longer answers; called in the middle of a run, after a failure or between
        rounds.

        Returns the names of those restarted or found at another address; read the addresses again then.

        Raises:
            ServiceFailed: one did not come up.
        """
        return [service.name for service in self.services if service.ensure()]

    def stop(self) -> None:
        """Stop what this process runs, for good. Safe to call twice, and while another thread is in :meth:`start`."""
        self._stopped.set()
        for service in reversed(self.services):
            service.stop()

    def s3_endpoint(self) -> S3Settings:
        """The settings of the store with endpoint and credentials filled in."""
        if self.s3 is None:
            return self.settings.s3
        keys = self.s3.keys()
        return self.settings.s3.model_copy(
            update={
                "endpoint": self.s3.address,
                "access_key": SecretStr(keys.access_key),
                "secret_key": SecretStr(keys.secret_key),
            }
        )

    @property
    def prefect_api_url(self) -> str:
        if self.prefect is not None:
            return self.prefect.address
        if self.settings.prefect_api_url is None:
            raise RuntimeError("these services were made without Prefect")
        return self.settings.prefect_api_url

    @property
    def mlflow_tracking_uri(self) -> str:
        return self.settings.mlflow_tracking_uri or default_tracking_uri(self.settings.home)

    def __enter__(self) -> EmbeddedServices:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
