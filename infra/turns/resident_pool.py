"""A federation's view of a work pool: its residents, those that are idle, and the turns that wait for one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from uuid import UUID

from infra.errors import PoolUnusable
from infra.turns.mailbox import Mailbox


@dataclass
class Resident:
    """One resident, from the request for its run to its end.

    turns: how many turns it was given. gone: why it has ended, None while it has not; left: it ended of its own accord
    and took no turn with it. last_sign: time (monotonic) of its last event. changed: set when an event of it came,
    or when it has ended.
    """

    number: int
    pool: ResidentPool
    mailbox: Mailbox
    run: UUID | None = None
    turns: int = 0
    ready: bool = False
    gone: str | None = None
    left: bool = False
    last_sign: float = field(default_factory=time.monotonic)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __str__(self) -> str:
        return f"resident {self.number} of pool {self.pool.name}"

    def welcome(self) -> None:
        """Mark it as ready, and give it to the next turn."""
        if not self.ready and self.gone is None:
            self.ready = True
            self.pool.offer(self)


@dataclass
class ResidentPool:
    """The residents of a work pool, those that are idle, and the turns that wait for one.

    limit: the most residents at a time.
    failed_starts: residents in a row that ended before their first turn.
    silent_since: time (monotonic) since which turns wait and no resident is ready; reported: a line about it was
        printed.
    """

    name: str
    limit: int
    residents: list[Resident] = field(default_factory=list)
    idle: deque[Resident] = field(default_factory=deque)
    waiting: deque[asyncio.Future[Resident]] = field(default_factory=deque)
    failed_starts: int = 0
    silent_since: float | None = None
    reported: bool = False

    @property
    def starting(self) -> int:
        return sum(not resident.ready for resident in self.residents)

    async def lease(self, balance: Callable[[ResidentPool], None]) -> Resident:
        """Wait for a resident that is free and return it. ``balance`` requests further residents while turns wait.

        Raises:
            PoolUnusable: the pool has been given up.
        """
        if self.idle:
            return self.idle.popleft()
        waiter: asyncio.Future[Resident] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        balance(self)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self.offer(waiter.result())
            elif waiter in self.waiting:
                self.waiting.remove(waiter)
            raise

    def offer(self, resident: Resident) -> None:
        """Give a free resident to the next turn, or keep it as idle."""
        if resident.gone is not None:
            return
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_result(resident)
                return
        self.idle.append(resident)

    def remove(self, resident: Resident, reason: str, *, left: bool) -> None:
        """Remove a resident that has ended. ``left``: it ended of its own accord, without a turn."""
        resident.gone, resident.left = reason, left
        resident.changed.set()
        self.residents.remove(resident)
        with contextlib.suppress(ValueError):
            self.idle.remove(resident)

    def give_up(self, error: PoolUnusable) -> None:
        """Fail all turns that wait, with ``error``."""
        self.failed_starts = 0
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_exception(error)
