"""MLflow's server with its UI, for ``fedbench ui``; runs write to the backend store directly, without it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from infra.errors import SettingsError
from infra.services.process import LOOPBACK, Service
from infra.settings import S3Settings


class MlflowService(Service):
    """Shows the runs of ``backend_store_uri`` (default: SQLite under home) and their artifacts in ``store``.

    Raises:
        SettingsError: ``backend_store_uri`` is a server's URL, which has a UI of its own.
    """

    name: ClassVar[str] = "mlflow"
    health_path: ClassVar[str] = "/health"
    start_seconds: ClassVar[float] = 240.0  # 22 s on an idle slow core
    patience_seconds: ClassVar[float] = 30.0
    has_children: ClassVar[bool] = True  # uvicorn and its worker

    def __init__(self, home: Path, store: S3Settings, backend_store_uri: str | None = None) -> None:
        super().__init__(home)
        self.store = store
        self.backend_store_uri = backend_store_uri or default_tracking_uri(home)
        if self.backend_store_uri.startswith(("http://", "https://")):
            raise SettingsError(
                "mlflow_tracking_uri: expected a database URI for a UI of our own, "
                f"found a server's URL; open {self.backend_store_uri} instead"
            )

    def environment(self, port: int) -> dict[str, str]:
        # Through the environment: the URI may hold a password.
        variables = {
            "MLFLOW_BACKEND_STORE_URI": self.backend_store_uri,
            "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{self.store.bucket}/mlflow",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            "AWS_DEFAULT_REGION": self.store.region,
        }
        if self.store.endpoint is not None:
            variables["MLFLOW_S3_ENDPOINT_URL"] = self.store.endpoint
        if self.store.access_key is not None and self.store.secret_key is not None:
            variables["AWS_ACCESS_KEY_ID"] = self.store.access_key.get_secret_value()
            variables["AWS_SECRET_ACCESS_KEY"] = self.store.secret_key.get_secret_value()
            variables["AWS_SESSION_TOKEN"] = ""  # the user's own belongs to other keys
        return variables

    def command(self, port: int) -> list[str]:
        return [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            LOOPBACK,
            "--port",
            str(port),
            "--workers",
            "1",
        ]


def default_tracking_uri(home: Path) -> str:
    """SQLite under ``home``."""
    return f"sqlite:///{home.absolute() / 'mlflow.db'}"
