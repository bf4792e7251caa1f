"""The embedded Prefect server: API and UI in one process, SQLite under ``<home>/prefect``."""

from __future__ import annotations

import sys
from typing import ClassVar

from infra.services.process import LOOPBACK, Service


class PrefectService(Service):
    """Its address is the API's (``http://127.0.0.1:PORT/api``); the UI is at the same address without
    ``/api``.
    """

    name: ClassVar[str] = "prefect"
    health_path: ClassVar[str] = "/api/health"
    start_seconds: ClassVar[float] = 180.0  # a fresh database is migrated first: 16 s on an idle slow core
    patience_seconds: ClassVar[float] = 30.0

    def address_at(self, port: int) -> str:
        return f"{super().address_at(port)}/api"

    @property
    def ui_url(self) -> str:
        return self.address.removesuffix("/api")

    def prepare(self) -> None:
        (self.home / "prefect").mkdir(mode=0o700, parents=True, exist_ok=True)

    def environment(self, port: int) -> dict[str, str]:
        folder = self.home / "prefect"
        return {
            "PREFECT_HOME": str(folder),
            "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder / 'prefect.db'}",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "true",
            "PREFECT_SERVER_UI_API_URL": self.address_at(port),  # else the page asks the default port
            "DO_NOT_TRACK": "1",
        }

    def command(self, port: int) -> list[str]:
        return [sys.executable, "-m", "prefect", "server", "start", "--host", LOOPBACK, "--port", str(port)]
