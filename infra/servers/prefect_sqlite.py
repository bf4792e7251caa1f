"""Prefect's server on SQLite, without its refusals.

Prefect begins most transactions as readers (``BEGIN DEFERRED``). SQLite lets no reader become a writer when another
has written meanwhile (``SQLITE_BUSY_SNAPSHOT``), whatever the time-out for locks; the server then answers 503, and its
clients sleep for two seconds. Here every transaction begins as a writer (``BEGIN IMMEDIATE``), as Prefect itself has it
where it locks rows, and waits for its turn: milliseconds. PostgreSQL is not concerned.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib.metadata import version

from infra.orchestrator.versions import TESTED

log = logging.getLogger(__name__)


def write_from_the_start() -> bool:
    """Have every transaction of this process's SQLite databases begin as a writer.

    Returns whether that was done: with a version of Prefect that it was not tested with, nothing is changed.
    """
    if version("prefect") not in TESTED:
        log.warning("prefect %s: transactions on SQLite stay as they are, tested with %s", version("prefect"), TESTED)
        return False
    from prefect.server.database.configurations import AioSqliteConfiguration
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
