"""Decide whether a run goes on by itself after a failure: after which failures, how often, and after which pause."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx

from infra.errors import (
    DiskFull,
    InfraError,
    PoolUnusable,
    RunLocked,
    SettingsError,
    StoredResultRefused,
    TrackingUnavailable,
)
from infra.files.disk import full_disk_named
from infra.plain_text import first_line
from infra.store.clock import is_too_early_or_late
from tasks.errors import FedbenchError

log = logging.getLogger(__name__)

MAX_RESTARTS = 20
LONGEST_PAUSE = 10  # seconds


class Restarts:
    """Counts how often a run has gone on by itself after its store or Prefect's API was unreachable."""

    def __init__(self) -> None:
        self.count = 0

    @property
    def pause(self) -> int:
        """Seconds before the next attempt. They grow with the count, because the service must be back by then."""
        return min(self.count, LONGEST_PAUSE)

    def allow(self, error: Exception) -> bool:
        """Return whether there is another attempt after ``error``, and count it."""
        if not servers_failed(error) or self.count >= MAX_RESTARTS:
            return False
        self.count += 1
        return True

    def message(self, error: Exception) -> str:
        return f"{first_line(error, 200)}: going on from the last commit (restart {self.count})"


class Attempts:
    """Attempts at one run: the first, then another after each failure that may pass.

    Iterate over it with ``for`` or ``async for``. Each item is a context manager: do the work inside. The item
    suppresses a failure after which there is another attempt, and the iteration pauses before that attempt.

    home: checked for a full disk when an attempt fails. say: called with a line before each further attempt.
    recover: brings servers back; called in each further attempt, before its work.

    Raises:
        DiskFull: a full disk caused the failure.
        Exception: the error of the last attempt, if it is not one that may pass, or after too many restarts.
    """

    def __init__(self, home: Path, say: Callable[[str], None], recover: Callable[[], None] | None = None) -> None:
        self._home, self._say, self._recover = home, say, recover
        self._restarts = Restarts()
        self._done = False

    def __iter__(self) -> Iterator[AbstractContextManager[None]]:
        while not self._done:
            time.sleep(self._restarts.pause)
            yield self._attempt()

    async def __aiter__(self) -> AsyncIterator[AbstractContextManager[None]]:
        while not self._done:
            await asyncio.sleep(self._restarts.pause)
            yield self._attempt()

    @contextlib.contextmanager
    def _attempt(self) -> Iterator[None]:
        self._done = True
        try:
            with full_disk_named(self._home, servers_failed):
                if self._restarts.count and self._recover is not None:
                    self._recover()
                yield
        except Exception as error:
            if not self._restarts.allow(error):
                raise
            log.warning("a server failed, going on from the last commit: %s", error, exc_info=True)
            self._say(self._restarts.message(error))
            self._done = False


def servers_failed(error: BaseException) -> bool:
    """Return whether the store or an API was unreachable, so that another attempt may succeed.

    False for a wrong federation, a wrong clock and a full disk: these do not pass by themselves.
    """
    if isinstance(error, DiskFull) or is_too_early_or_late(error):
        return False
    # Late: a run imports Prefect only after it has set the environment that Prefect reads.
    from prefect.exceptions import PrefectHTTPStatusError

    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, httpx.TransportError | ConnectionError):
            return True
        if isinstance(current, InfraError) and not isinstance(
            current, SettingsError | TrackingUnavailable | PoolUnusable | RunLocked | StoredResultRefused
        ):
            return True
        if isinstance(current, PrefectHTTPStatusError) and current.response.status_code >= 500:
            return True
        if isinstance(current, FedbenchError):
            return False
        current = current.__cause__ or current.__context__
    return False
