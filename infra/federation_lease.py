"""One coordinator for a federation, across machines: a Prefect lease, and a note of its holder in the store.

The lease makes taking it one step; Prefect holds a dead holder's for a minute, and for ever when its server, which
keeps leases in memory, starts anew in that minute. So the holder also renews a note beside the federation's rounds,
and a note that is not renewed is evidence: whoever waits takes over under the *next generation*'s limit, which only
one can get, and an old holder that was only cut off finds the newer generation and ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError

from infra.errors import RunLocked
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore

log = logging.getLogger(__name__)

LEASE_SECONDS = 60.0  # the least that Prefect gives
RENEW_SECONDS = 15.0
# A note that has not changed for so long, by the watcher's own clock, is a dead holder's.
DEAD_SECONDS = LEASE_SECONDS + RENEW_SECONDS
ASK_AGAIN_SECONDS = 1.0


class FederationLease:
    """An async context manager, held by the coordinator of ``layout``'s federation.

    home: folder of this machine whose run lock (:func:`infra.lock.run_lock`) the caller holds: a holder of the same
        machine and home is dead, without waiting.
    say: told when there is a wait.

    When the lease is lost to another coordinator, the task that entered is cancelled, and leaves with RunLocked.

    Raises:
        RunLocked: another coordinator has it, and lives; names machine and process.
    """

    def __init__(self, objects: ObjectStore, layout: FederationLayout, home: Path, say: Callable[[str], None]) -> None:
        self._objects, self._layout, self._say = objects, layout, say
        self._holder = {"host": socket.gethostname(), "home": str(home.absolute()), "process": os.getpid()}
        self._lease: UUID | None = None
        self._generation = 0
        self._renewals = 0
        self._renewing: asyncio.Task[None] | None = None
        self._lost: str | None = None

    async def __aenter__(self) -> FederationLease:
        await self._acquire()
        await self._write_note()
        if self._generation:
            await self._forget_generation(self._generation - 1)
        owner = asyncio.current_task()
        assert owner is not None
        self._renewing = asyncio.create_task(self._renew(owner))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
            await asyncio.gather(self._renewing, return_exceptions=True)
        if self._lost is not None:
            raise RunLocked(f"{self._layout.federation}: {self._lost}") from error
        if self._lease is not None:
            try:
                async with asyncio.timeout(5), get_client() as client:
                    await client.release_concurrency_slots_with_lease(self._lease)
            except Exception as failure:
                log.warning("the federation's lease was not given back, it ends in a minute: %s", failure)

    def _limit(self, generation: int | None = None) -> str:
        return f"federation:{self._layout.federation}:{self._generation if generation is None else generation}"

    async def _forget_generation(self, generation: int) -> None:
        async with get_client() as client:
            try:
                await client.delete_global_concurrency_limit_by_name(self._limit(generation))
            except ObjectNotFound:
                return

    async def _acquire(self) -> None:
        note = await self._note()
        self._generation = note["generation"] if note else 0
        seen, since, said = note, time.monotonic(), False
        while not await self._try():
            note = await self._note()
            if note is not None and note["generation"] > self._generation:
                self._generation = note["generation"]
            if note != seen and note is not None and not self._same_place(note):
                raise RunLocked(
                    f"{self._layout.federation}: already running on {note['host']} (process {note['process']}, home "
                    f"{note['home']}); wait for it to end, end it, or choose another name"
                )
            waited = time.monotonic() - since
            if (note is not None and self._same_place(note)) or waited > DEAD_SECONDS:
                self._generation += 1
                seen, since = note, time.monotonic()
                continue
            if not said:
                said = True
                self._say(
                    f"{self._layout.federation}: its lease is still held"
                    + (f" by {note['host']} (process {note['process']})" if note else "")
                    + f"; if that is gone, this goes on in {DEAD_SECONDS:.0f} s at the latest"
                )
            await asyncio.sleep(ASK_AGAIN_SECONDS)

    def _same_place(self, note: dict[str, Any]) -> bool:
        return all(note[name] == self._holder[name] for name in ("host", "home"))

    def _is_ours(self, note: dict[str, Any]) -> bool:
        holder = all(note[name] == value for name, value in self._holder.items())
        return holder and bool(note["generation"] <= self._generation)

    async def _try(self) -> bool:
        """Take the lease of the present generation, if it is free."""
        async with get_client() as client:
            for _ in range(2):
                try:
                    answer = await client.increment_concurrency_slots_with_lease(
                        [self._limit()], 1, "concurrency", LEASE_SECONDS
                    )
                except PrefectHTTPStatusError as error:
                    if error.response.status_code == httpx.codes.LOCKED:
                        return False
                    raise
                document = answer.json()
                if document["limits"]:
                    self._lease = UUID(document["lease_id"])
                    return True
                # A limit that does not exist holds nobody back.
                try:
                    await client.create_global_concurrency_limit(
                        GlobalConcurrencyLimitCreate(name=self._limit(), limit=1)
                    )
                except PrefectHTTPStatusError as error:
                    if error.response.status_code != httpx.codes.CONFLICT:
                        raise
        return False

    async def _renew(self, owner: asyncio.Task[Any]) -> None:
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            try:
                note = await self._note()
                if note is not None and not self._is_ours(note):
                    self._lost = f"taken over by {note['host']} (process {note['process']})"
                elif not await self._renewed() and not await self._take_anew():
                    self._lost = "its lease ended, and another coordinator has it"
                else:
                    await self._write_note()
            except Exception as failure:
                log.warning("the federation's lease could not be renewed, trying again: %s", failure)
            if self._lost is not None:
                owner.cancel()
                return

    async def _take_anew(self) -> bool:
        """After the lease ended; Prefect's server may have forgotten it, and hold its slot for ever."""
        if await self._try():
            return True
        self._generation += 1  # the note is still this holder's, so nobody else has gone on to it
        return await self._try()

    async def _renewed(self) -> bool:
        assert self._lease is not None
        async with get_client() as client:
            try:
                await client.renew_concurrency_lease(self._lease, LEASE_SECONDS)
            except PrefectHTTPStatusError as error:
                if error.response.status_code == httpx.codes.GONE:
                    return False
                raise
        return True

    async def _note(self) -> dict[str, Any] | None:
        note: dict[str, Any] | None = await asyncio.to_thread(self._objects.get_json, self._layout.lease)
        return note

    async def _write_note(self) -> None:
        self._renewals += 1
        note = {"version": 1, "generation": self._generation, "renewals": self._renewals, **self._holder}
        await asyncio.to_thread(self._objects.put_json, self._layout.lease, note)
