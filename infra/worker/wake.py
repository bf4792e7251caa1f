"""Make a worker look for runs as soon as one is due, instead of at its next polling.

Prefect's workers poll for runs every 10 s by default, which is longer than a warm run takes. The server's event stream
reports a run that is due within a tenth of a second. The worker still polls, in case the stream fails.
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
RECONNECT_SECONDS = 5.0  # pause after a lost connection
# Pause between a wake-up and the look: by then, Prefect's limiter knows that the slot was given back.
SETTLE_SECONDS = 0.02


class Waker:
    """A background task that calls ``look`` after :meth:`wake`, and after each event of a run of the work pool.

    pool: returns the work pool's id, None while it is not known. Several calls of :meth:`wake` at once cause one look.
    """

    def __init__(self, look: Callable[[], Awaitable[object]], pool: Callable[[], UUID | None]) -> None:
        self._look = look
        self._pool = pool
        self._due = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._look_when_due())]

    async def stop(self) -> None:
        """Stop. Afterwards no look begins or is under way."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []

    def wake(self) -> None:
        self._due.set()

    async def _look_when_due(self) -> None:
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
                        self.wake()  # events may have been missed while there was no connection
                        async for _ in events:
                            self.wake()
                except Exception as error:
                    log.debug("the event stream was lost, the worker's own polling goes on: %s", error)
            await asyncio.sleep(RECONNECT_SECONDS)
