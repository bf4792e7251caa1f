"""Has a worker look for runs when there is something to find, not only when its next look is due.

Prefect's workers ask for runs every 10 s by default; a warm run would wait longer for that than it takes. The server
tells of a run that becomes due by its event stream, in a tenth of a second; the polling stays, for when that fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from uuid import UUID

from prefect.events.clients import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter

log = logging.getLogger(__name__)

EVENTS = ["prefect.flow-run.Scheduled", "prefect.flow-run.Late", "prefect.flow-run.AwaitingRetry"]
AGAIN_SECONDS = 5.0  # after a lost connection
# Between being woken and looking: the slot that was given back is free for Prefect's limiter then.
SETTLE_SECONDS = 0.02


class Waker:
    """Calls ``look`` after :meth:`wake`, and after each event of a run of the work pool that ``pool`` tells.

    pool: the work pool's id, None while it is not known. Many calls of :meth:`wake` at once are one look.
    """

    def __init__(self, look: Callable[[], Awaitable[object]], pool: Callable[[], UUID | None]) -> None:
        self._look = look
        self._pool = pool
        self._due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._answer())]

    async def stop(self) -> None:
        """No look begins, or is under way, after this."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def wake(self) -> None:
        self._due.set()

    async def _answer(self) -> None:
        while True:
            await self._due.wait()
            await asyncio.sleep(SETTLE_SECONDS)
            self._due.clear()
            try:
                await self._look()
            except Exception as error:
                log.debug("looking for runs failed, the worker's own polling goes on: %s", error)

    async def _listen(self) -> None:
        while True:
            pool = self._pool()
            if pool is not None:
                resource = EventAnyResourceFilter(id=[f"prefect.work-pool.{pool}"])
                try:
                    wanted = EventFilter(event=EventNameFilter(name=EVENTS), any_resource=resource)
                    async with get_events_subscriber(filter=wanted) as events:
                        self.wake()  # for what was missed while there was no connection
                        async for _ in events:
                            self.wake()
                except Exception as error:
                    log.debug("the event stream was lost, the worker's own polling goes on: %s", error)
            await asyncio.sleep(AGAIN_SECONDS)
