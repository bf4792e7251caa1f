"""The embedded Prefect server: API and UI in one process, SQLite under ``<home>/prefect``, or PostgreSQL."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import ClassVar

from infra.services.credentials import basic_auth
from infra.services.exposed import note_start
from infra.services.ports import LOOPBACK
from infra.services.process import Service


class PrefectService(Service):
    """Its address is the API's (``http://127.0.0.1:PORT/api``); the UI is at the same address without
    ``/api``.
    """

    name: ClassVar[str] = "prefect"
    start_seconds: ClassVar[float] = 300.0  # a fresh database is migrated first: 16 s on an idle slow core
    patience_seconds: ClassVar[float] = 30.0

    def __init__(
        self,
        home: Path,
        *,
        auth: str | None = None,
        database_url: str | None = None,
        port: int | None = None,
        host: str = LOOPBACK,
        detached: bool = False,
    ) -> None:
        """auth: ``user:password`` that the API asks for; None: none. database_url: None: SQLite."""
        super().__init__(home, port=port, host=host, detached=detached)
        self.auth = auth
        self.database_url = database_url
        self.health_path = "/api/health" if auth is None else "/api/admin/version"

    def address_at(self, port: int) -> str:
        return f"{super().address_at(port)}/api"

    def health_headers(self) -> dict[str, str]:
        return {} if self.auth is None else basic_auth(self.auth)

    @property
    def ui_url(self) -> str:
        return self.address.removesuffix("/api")

    def prepare(self) -> None:
        (self.home / "prefect").mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.auth is not None:
            note_start(self.home, self.database_url)

    def environment(self, port: int) -> dict[str, str]:
        folder = self.home / "prefect"
        variables = {
            "PREFECT_HOME": str(folder),
            "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database_url
            or f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "true",
            "PREFECT_SERVER_UI_API_URL": self.address_at(port),  # else the page asks the default port
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "DO_NOT_TRACK": "1",
        }
        if self.auth is not None:
            variables["PREFECT_SERVER_API_AUTH_STRING"] = self.auth
        return variables

    def command(self, port: int) -> list[str]:
        module = "prefect" if self.database_url is not None else "infra.services.prefect_sqlite"
        # -P: a folder of the user's with a package `infra` must not be taken for ours.
        return [sys.executable, "-P", "-m", module, "server", "start", "--host", self.host, "--port", str(port)]
