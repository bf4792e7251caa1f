"""The private parts of Prefect's server that fedbench replaces, read against Prefect 3.9.1.

They are replaced in the server's process alone, before it starts, because Prefect's server has no setting for either.

The application: the gate (:mod:`infra.servers.prefect_gate`) must stand before all of its routes, and only the function
that makes the application can put it there.

Transactions on SQLite: Prefect begins most transactions as readers (``BEGIN DEFERRED``). SQLite lets no reader become a
writer when another has written meanwhile (``SQLITE_BUSY_SNAPSHOT``), whatever the time-out for locks; the server then
answers 503, and its clients sleep for two seconds. Here every transaction begins as a writer (``BEGIN IMMEDIATE``), as
Prefect itself does where it locks rows, and waits for its turn, for milliseconds. PostgreSQL is not affected.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from infra.orchestrator.versions import TESTED
from infra.servers.prefect_gate import PrefectGate, routes_to_close

log = logging.getLogger(__name__)


def write_from_the_start() -> bool:
    """Make every transaction of this process's SQLite databases begin as a writer.

    Return whether that was done. Nothing is changed for a version of Prefect that this was not tested with.
    """
    if version("prefect") not in TESTED:
        log.warning("prefect %s: transactions on SQLite stay as they are, tested with %s", version("prefect"), TESTED)
        return False
    from prefect.server.database.configurations import AioSqliteConfiguration  # begins every transaction on SQLite
    from sqlalchemy.ext.asyncio import AsyncSession, AsyncSessionTransaction

    as_published = AioSqliteConfiguration.begin_transaction

    @asynccontextmanager
    async def begin(
        self: AioSqliteConfiguration, session: AsyncSession, with_for_update: bool = False
    ) -> AsyncGenerator[AsyncSessionTransaction, None]:
        async with as_published(self, session, with_for_update=True) as transaction:
            yield transaction

    AioSqliteConfiguration.begin_transaction = begin  # type: ignore[method-assign]
    return True


def close_server(auth: str, origins: frozenset[str]) -> None:
    """Put every application that Prefect's server makes in this process behind the gate."""
    from prefect.server.api import server  # its create_app makes every application
    from starlette.middleware import Middleware

    as_published = server.create_app
    made: list[Any] = []

    def create_app(*arguments: Any, **options: Any) -> Any:
        if made and not arguments and not options:
            # Without arguments, the server's own clients ask for the application that runs, the first one. The
            # published function finds it by the text of all settings: a fifth of a CPU second for each client.
            return made[0]
        app = as_published(*arguments, **options)
        made.append(app)
        if not any(middleware.cls is PrefectGate for middleware in app.user_middleware):
            closed = tuple(routes_to_close(app.routes))
            if not closed:
                raise RuntimeError(f"prefect {version('prefect')}: found no routes of its server to close")
            # Last, so innermost: preflights of the page's own origins are answered before it.
            app.user_middleware.append(Middleware(PrefectGate, auth=auth, origins=origins, closed=closed))
        return app

    server.create_app = create_app
