"""MLflow's server with its UI, for ``fedbench ui`` and ``up``; other runs write to the backend store directly.

Every server asks for credentials, because it writes to the store as its owner, including models that others load.
"""

from __future__ import annotations

import configparser
import io
import os
import sys
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from infra.errors import ServiceFailed, SettingsError
from infra.files.durable import write_durably
from infra.files.sqlite_files import damage, damaged_tracking
from infra.files.sqlite_urls import sqlite_path, sqlite_url
from infra.processes.ports import LOOPBACK, page_origins
from infra.processes.service import Service
from infra.servers import mlflow_gate
from infra.servers.credentials import USER, StackKeys, basic_auth, draw_keys
from infra.settings_groups import S3Settings


class MlflowService(Service):
    """A server for the runs of ``backend_store_uri`` (default: SQLite under home) and their artifacts in ``store``.

    Raises:
        SettingsError: ``backend_store_uri`` is a server's URL, which has a UI of its own.
    """

    name: ClassVar[str] = "mlflow"
    start_seconds: ClassVar[float] = 300.0  # 22 s on an idle slow core
    patience_seconds: ClassVar[float] = 30.0
    has_children: ClassVar[bool] = True  # uvicorn and its worker
    health_path = "/version"  # asks for the credentials, as /health does not

    def __init__(
        self,
        home: Path,
        store: S3Settings,
        backend_store_uri: str | None = None,
        *,
        keys: StackKeys | None = None,
        port: int | None = None,
        host: str = LOOPBACK,
        detached: bool = False,
    ) -> None:
        """keys: credentials that the server asks for; None: the home's, drawn when they are first needed."""
        super().__init__(home, port=port, host=host, detached=detached)
        self.store = store
        self._keys = keys
        self.backend_store_uri = backend_store_uri or default_tracking_uri(home)
        if self.backend_store_uri.startswith(("http://", "https://")):
            raise SettingsError(
                "mlflow_tracking_uri: expected a database URI for a UI of our own, "
                f"found a server's URL; open {self.backend_store_uri} instead"
            )

    @cached_property
    def keys(self) -> StackKeys:
        """Credentials that the server asks for.

        Raises:
            ServiceFailed: the home's credentials are damaged.
        """
        return self._keys or draw_keys(self.folder)

    def health_headers(self) -> dict[str, str]:
        return basic_auth(self.keys.mlflow_auth)

    def client_environment(self) -> dict[str, str]:
        """Return the environment variables that MLflow's clients need."""
        return {"MLFLOW_TRACKING_USERNAME": USER, "MLFLOW_TRACKING_PASSWORD": self.keys.mlflow_password}

    def prepare(self) -> None:
        database = sqlite_path(self.backend_store_uri)
        if database is not None and damage(database, whole=self._attempts > 1) is not None:
            raise ServiceFailed(damaged_tracking(database))
        write_durably(self._auth_path, self._auth_settings())

    def environment(self, port: int) -> dict[str, str]:
        # In the environment, not in arguments: the URI may hold a password.
        artifacts = f"s3://{self.store.bucket}/mlflow"
        variables = {
            "MLFLOW_BACKEND_STORE_URI": self.backend_store_uri,
            "MLFLOW_ARTIFACTS_DESTINATION": artifacts,
            # The same as for runs that write to the database themselves: readable with and without a server.
            "MLFLOW_DEFAULT_ARTIFACT_ROOT": artifacts,
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "1",
            "AWS_DEFAULT_REGION": self.store.region,
            # By default MLflow accepts requests for every private address.
            "MLFLOW_SERVER_ALLOWED_HOSTS": ",".join(self._allowed_hosts()),
            "MLFLOW_SERVER_CORS_ALLOWED_ORIGINS": ",".join(page_origins(self.host, port)),
            "MLFLOW_AUTH_CONFIG_PATH": str(self._auth_path),
            "MLFLOW_AUTH_ADMIN_USERNAME": USER,
            "MLFLOW_AUTH_ADMIN_PASSWORD": self.keys.mlflow_password,
            "MLFLOW_FLASK_SERVER_SECRET_KEY": self.keys.mlflow_secret_key,
            # Refuse routes that MLflow's authorization does not know.
            "MLFLOW_BASIC_AUTH_FAIL_CLOSED": "true",
        }
        if self.store.endpoint is not None:
            variables["MLFLOW_S3_ENDPOINT_URL"] = self.store.endpoint
        if self.store.access_key is not None and self.store.secret_key is not None:
            variables["AWS_ACCESS_KEY_ID"] = self.store.access_key.get_secret_value()
            variables["AWS_SECRET_ACCESS_KEY"] = self.store.secret_key.get_secret_value()
            variables["AWS_CONFIG_FILE"] = variables["AWS_SHARED_CREDENTIALS_FILE"] = os.devnull
        # As for the store's own client: without keys, pass on all variables by which AWS's client may find some.
        used = "AWS_CA_BUNDLE" if self.store.access_key is not None else "AWS_"
        return {name: value for name, value in os.environ.items() if name.startswith(used)} | variables

    def command(self, port: int) -> list[str]:
        # No access log: the server runs for weeks, and each run checks it every two seconds.
        options = ["--app-name", "basic-auth", "--uvicorn-opts", "--no-access-log"]
        return [
            *(sys.executable, "-m", "mlflow", "server", *options),
            *("--host", self.host, "--port", str(port), "--workers", "1"),
        ]

    def _allowed_hosts(self) -> list[str]:
        hosts = dict.fromkeys(("localhost", LOOPBACK, self.host))
        return [name for host in hosts for name in (host, f"{host}:*")]

    @property
    def _auth_path(self) -> Path:
        return self.folder / "mlflow-auth.ini"

    def _auth_settings(self) -> str:
        """Return the settings file of MLflow's basic authentication, whose users are in a database of their own."""
        file = configparser.ConfigParser(interpolation=None)
        database = sqlite_url(self.folder / "mlflow-auth.db").replace("%", "%%")  # MLflow reads it with interpolation
        file["mlflow"] = {
            "database_uri": database,
            "default_permission": "READ",
            "authorization_function": mlflow_gate.FUNCTION,
            # Otherwise each request hashes the password again, which takes longer than most requests.
            "auth_cache_ttl_seconds": "300",
        }
        text = io.StringIO()
        file.write(text)
        return text.getvalue()


def default_tracking_uri(home: Path) -> str:
    """Return the URI of MLflow's SQLite database under ``home``."""
    return sqlite_url(home / "mlflow.db")
