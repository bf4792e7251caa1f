"""Rings between a coordinator and its residents, over Prefect's event stream: outbound connections only.

A ring says "look into the store"; it carries nothing that is not there, so that one that is lost costs time alone:
whoever waits also looks by itself. Ring and answer together took 2.3 ms (median) through a server on loopback.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from prefect.events import Event, Resource
from prefect.events.clients import EventsClient, get_events_client, get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter

log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0  # after a lost connection
RING_SECONDS = 5.0
# How often one who waits looks by itself: while rings are heard, and while they are not.
HEARING_SECONDS, DEAF_SECONDS = 2.0, 0.2


def coordinator_of(session: str) -> str:
    """The name by which the coordinator of ``session`` is rung."""
    return f"fedbench.coordinator.{session}"


def resident_of(session: str, resident: str) -> str:
    """The name by which one resident of ``session`` is rung."""
    return f"fedbench.resident.{session}.{resident}"


class Bell:
    """An async context manager: hears what rings one of ``names``, and rings others.

    names: ids of event resources; those of Prefect's own events too.
    heard: called in this loop with each event; with None after every connection, for what was missed before it.
    """

    def __init__(self, names: Sequence[str], heard: Callable[[Event | None], None]) -> None:
        self.hearing = False
        self._names = list(names)
        self._heard = heard
        self._client: EventsClient | None = None
        self._sending = asyncio.Lock()
        self._listener: asyncio.Task[None] | None = None

    @property
    def patience(self) -> float:
        """Seconds after which one who waits looks by itself."""
        return HEARING_SECONDS if self.hearing else DEAF_SECONDS

    async def __aenter__(self) -> Bell:
        self._listener = asyncio.create_task(self._listen())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
        await self._hang_up()

    async def ring(self, name: str, event: str, **payload: Any) -> None:
        """Ring ``name``, as far as Prefect's API answers."""
        message = Event(event=event, resource=Resource({"prefect.resource.id": name}), payload=payload)
        try:
            async with asyncio.timeout(RING_SECONDS), self._sending:
                if self._client is None:
                    self._client = await get_events_client(reconnection_attempts=1).__aenter__()
                await self._client.emit(message)
        except Exception as failure:
            log.debug("%s was not rung, it will look by itself: %s", name, failure)
            await self._hang_up()

    async def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                await client.__aexit__(None, None, None)

    async def _listen(self) -> None:
        while True:
            wanted = EventFilter(any_resource=EventAnyResourceFilter(id=self._names))
            try:
                async with get_events_subscriber(filter=wanted, reconnection_attempts=0) as events:
                    self.hearing = True
                    self._heard(None)
                    async for event in events:
                        self._heard(event)
            except Exception as failure:
                log.debug("Prefect's event stream was lost: %s", failure)
            self.hearing = False
            self._heard(None)
            await asyncio.sleep(AGAIN_SECONDS)
