"""Databases of the Prefect and MLflow servers: SQLite under home, or PostgreSQL by URL.

A URL with a password comes from the environment or the settings file, and servers get it in their environment. If the
URL has none, PostgreSQL's client looks for one itself (``~/.pgpass``, ``PGPASSWORD``).
"""

from __future__ import annotations

import asyncio
from importlib.util import find_spec
from urllib.parse import parse_qs, urlsplit

from infra.errors import InfraError, SettingsError
from infra.files.sqlite_urls import SQLITE, sqlite_path
from infra.servers.mlflow_server import default_tracking_uri
from infra.settings import Settings

CONNECT_SECONDS = 15.0
PREFECT_SCHEMES = ("postgresql+asyncpg",)
# The driver that SQLAlchemy uses for a bare "postgresql" depends on its version, so the installed one is named.
MLFLOW_DRIVERS = ("psycopg", "psycopg2")
MLFLOW_SCHEMES = ("postgresql", *(f"postgresql+{driver}" for driver in MLFLOW_DRIVERS))
TRIGRAMS = "pg_trgm"  # the extension that Prefect's migrations ask for


def prefect_database_url(settings: Settings) -> str | None:
    """Return the URL of the setting ``prefect_database_url``; None: SQLite.

    Raises:
        SettingsError: Prefect does not accept the URL.
    """
    if settings.prefect_database_url is None:
        return None
    return _checked(settings.prefect_database_url.get_secret_value(), "prefect_database_url", PREFECT_SCHEMES)


def mlflow_database_uri(settings: Settings) -> str:
    """Return the URI of MLflow's database: the setting ``mlflow_database_url``, else SQLite under home.

    Raises:
        SettingsError: MLflow does not accept the URL, or its driver is not installed.
    """
    if settings.mlflow_database_url is None:
        return default_tracking_uri(settings.home)
    url = _checked(settings.mlflow_database_url.get_secret_value(), "mlflow_database_url", MLFLOW_SCHEMES)
    scheme, separator, rest = url.partition("://")
    wanted = [driver for driver in MLFLOW_DRIVERS if scheme in ("postgresql", f"postgresql+{driver}")]
    installed = next((driver for driver in wanted if find_spec(driver) is not None), None)
    if installed is None:
        raise SettingsError(
            f"mlflow_database_url: expected {' or '.join(wanted)}, PostgreSQL's driver, to be installed, "
            "found none; install fedbench with the extra postgresql"
        )
    return f"postgresql+{installed}{separator}{rest}"


def refuse_password(url: str, option: str) -> None:
    """Check that ``url``, given on the command line, holds no password, which ``ps`` would show.

    Raises:
        SettingsError: it holds one.
    """
    parts = urlsplit(url)
    if parts.password is not None or "password" in parse_qs(parts.query):
        setting = option.removeprefix("--").replace("-", "_")
        raise SettingsError(
            f"{option}: expected a URL without a password, because `ps` shows it to others; set "
            f"FEDBENCH_{setting.upper()}, or {setting} in settings.yaml, or keep the password in ~/.pgpass"
        )


def shown(url: str) -> str:
    """Return ``url`` for people to read, without password and options."""
    if url.startswith(SQLITE):
        path = sqlite_path(url)
        return "SQLite" if path is None else f"SQLite {path}"
    parts = urlsplit(url)
    host = parts.hostname or next(iter(parse_qs(parts.query).get("host", [])), "") or "local socket"
    port = f":{parts.port}" if parts.port else ""
    user = f"{parts.username}@" if parts.username else ""
    return f"PostgreSQL {user}{host}{port}{parts.path}"


def check_postgresql(url: str, setting: str, *, trigrams: bool) -> None:
    """Connect once, so that a fault is reported here rather than in a server's log.

    trigrams: whether the extension ``pg_trgm`` is needed.

    Raises:
        InfraError: the database cannot be reached, or lacks the extension.
    """
    try:
        available = asyncio.run(_has_trigrams(url))
    except Exception as error:  # asyncpg's, the resolver's, the socket's
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InfraError(f"{setting}: {shown(url)} cannot be reached: {reason}") from None
    if trigrams and not available:
        raise InfraError(
            f"{setting}: {shown(url)}: expected the extension {TRIGRAMS}, which Prefect needs, found none; "
            "Debian has it in the package of its server, other systems in postgresql-contrib"
        )


async def _has_trigrams(url: str) -> bool:
    import asyncpg  # type: ignore[import-untyped]

    _, _, rest = url.partition("://")
    connection = await asyncpg.connect(f"postgresql://{rest}", timeout=CONNECT_SECONDS)
    try:
        found = await connection.fetchval("SELECT 1 FROM pg_available_extensions WHERE name = $1", TRIGRAMS)
        return found is not None
    finally:
        await connection.close()


def _checked(url: str, setting: str, schemes: tuple[str, ...]) -> str:
    expected = " or ".join(f"{scheme}://" for scheme in schemes)
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SettingsError(f"{setting}: expected {expected}USER@HOST:PORT/DATABASE: {error}") from None
    if parts.scheme not in schemes:
        raise SettingsError(f"{setting}: expected a URL that starts with {expected}, found {parts.scheme or 'none'}://")
    if not parts.path.strip("/"):
        raise SettingsError(f"{setting}: expected a database's name at its end, found {shown(url)}")
    return url
