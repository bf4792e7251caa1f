"""The embedded Prefect server: API and UI in one process, SQLite under ``<home>/prefect``, or PostgreSQL.

Every server asks for credentials: other users of the machine reach its port too, and the engine of a run loads what
they could write to it.
"""

from __future__ import annotations

import sys
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from infra.files.sqlite_files import damage, require_known_revision, set_aside
from infra.files.sqlite_urls import sqlite_url
from infra.processes.ports import LOOPBACK, page_origins
from infra.processes.service import Service
from infra.servers.credentials import basic_auth, draw_keys
from infra.servers.exposed import note_start


class PrefectService(Service):
    """A Prefect server. Its address is the API's (``http://127.0.0.1:PORT/api``); without ``/api`` it is the UI's."""

    name: ClassVar[str] = "prefect"
    start_seconds: ClassVar[float] = 300.0  # a fresh database is migrated first: 16 s on an idle slow core
    patience_seconds: ClassVar[float] = 30.0
    health_path = "/api/admin/version"  # asks for the credentials, as /api/health does not

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
        """auth: ``user:password`` that the API asks for; None: the home's, drawn when they are first needed.

        database_url: None: SQLite.
        """
        super().__init__(home, port=port, host=host, detached=detached)
        self._auth = auth
        self.database_url = database_url
        self._suspect = False
        self.set_aside: str | None = None  # a line about a damaged database, once one has been set aside

    @cached_property
    def auth(self) -> str:
        """``user:password``, which Prefect calls an auth string.

        Raises:
            ServiceFailed: the home's credentials are damaged.
        """
        return self._auth or draw_keys(self.folder).prefect_auth

    def address_at(self, port: int) -> str:
        return f"{super().address_at(port)}/api"

    def health_headers(self) -> dict[str, str]:
        return basic_auth(self.auth)

    @property
    def ui_url(self) -> str:
        return self.address.removesuffix("/api")

    def prepare(self) -> None:
        (self.home / "prefect").mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.database_url is None:
            self._look_at_database(whole=self._suspect or self._attempts > 1)
        note_start(self.home, self.database_url)

    def mend(self) -> bool:
        """Check the whole database of a failing server that this process runs. If it is damaged, end the server.

        :meth:`ensure` then sets the database aside and makes a new one. Return whether it was damaged.

        Raises:
            ServiceFailed: another process keeps it locked.
        """
        with self._guard:
            if self.database_url is not None or not self.is_holder or damage(self._database, whole=True) is None:
                return False
            self._suspect = True
            self._end_process(grace=1.0)
            return True

    def _look_at_database(self, *, whole: bool) -> None:
        """Set a damaged database aside.

        Raises:
            ServiceFailed: another process keeps it locked, or a newer Prefect has written it.
        """
        reason = damage(self._database, whole=whole)
        if reason is not None:
            kept = set_aside(self._database, reason)
            self.set_aside = (
                f"Prefect's database was damaged ({reason}): it is kept as {kept}, and a new one was made; it only "
                "shows runs, results are in the store"
            )
        self._suspect = False
        require_known_revision(self._database, "prefect", "server/database/_migrations/versions/sqlite/*_{}_*.py")

    @property
    def _database(self) -> Path:
        return self.home / "prefect" / "prefect.db"

    def environment(self, port: int) -> dict[str, str]:
        folder = self._database.parent
        return {
            "PREFECT_HOME": str(folder),
            "PREFECT_PROFILES_PATH": str(folder / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database_url
            or sqlite_url(self._database, "sqlite+aiosqlite"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_ENABLED": "true",
            "PREFECT_SERVER_UI_API_URL": self.address_at(port),  # otherwise the page asks the default port
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_API_AUTH_STRING": self.auth,
            # Prefect's default lets pages of every origin read its answers.
            "PREFECT_SERVER_CORS_ALLOWED_ORIGINS": ",".join(page_origins(self.host, port)),
            "DO_NOT_TRACK": "1",
        }

    def command(self, port: int) -> list[str]:
        module = "infra.servers.prefect_closed"
        # -P: a package `infra` in the user's folder must not be imported instead of ours.
        return [sys.executable, "-P", "-m", module, "server", "start", "--host", self.host, "--port", str(port)]
