"""Turns on work pools: this module requests residents, gives them one turn after another, and dismisses them.

A *resident* is a flow run on a pool that holds a slot as long as it is needed (:mod:`flows.resident`). So the seconds
that starting a run takes are spent once for each slot, not for every client and phase. Turns reach a resident through
the store, with an event to wake it (:mod:`infra.turns.mailbox`, :mod:`infra.turns.bell`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Sequence
from typing import Any
from uuid import uuid4

from infra.errors import BadReply, DeadlineExceeded, PoolUnusable, SlotLost, StoreCorrupt, TurnReturned
from infra.settings_groups import PoolSettings
from infra.store.layout import FederationLayout
from infra.store.objects import ObjectStore
from infra.turns import resident_runs
from infra.turns.bell import Bell, coordinator_of, resident_of
from infra.turns.mailbox import LEAVE, MAILBOX_VERSION, Mailbox, close_session, open_session, reply_in
from infra.turns.resident_pool import Resident, ResidentPool
from infra.turns.resident_watch import ResidentWatch

log = logging.getLogger(__name__)

WATCH_SECONDS = 5.0
# A pool is given up after so many residents in a row that end before their first turn.
FAILED_STARTS = 3
# An idle resident may leave just when a turn comes. A turn fails after so many in a row: that is no coincidence.
NOT_TAKEN = 5
# A turn that was given back so often counts as lost: it may take longer than any worker's time.
RETURNED = 5
CLOSE_SECONDS = 20.0


class _NotTaken(Exception):
    """The resident left before it took the turn."""


class ResidentSlots:
    """A :class:`~infra.turns.local.TurnRunner` whose slots are residents on work pools.

    pools: settings of the pools; clients named in ``pools.silos`` have a pool of their own.
    clients: the federation's clients; they decide which pools are needed.
    job_variables: what a resident requires of its slot (threads, device).
    read_reply: takes a request and the unchecked document of its reply, and returns the reply; raises BadReply.
    answer_limit: takes a request, and returns the most bytes that its answer may have.
    say: called with a line for whoever watches the run.
    deployment: takes a pool's name, and returns ``flow/deployment`` of its residents.
    code: version and digest of the sources; a worker with other ones refuses to start.
    """

    def __init__(
        self,
        objects: ObjectStore,
        layout: FederationLayout,
        pools: PoolSettings,
        clients: Sequence[str],
        *,
        job_variables: dict[str, Any],
        read_reply: Callable[[Any, Any], Any],
        answer_limit: Callable[[Any], int],
        say: Callable[[str], None],
        code: str,
        deployment: Callable[[str], str],
    ) -> None:
        self._objects, self._layout, self._settings = objects, layout, pools
        self._job_variables, self._say = job_variables, say
        self._read_reply, self._answer_limit = read_reply, answer_limit
        self._code, self._deployment = code, deployment
        names = dict.fromkeys(self.pool_of(client) for client in clients)
        self._pools = {name: ResidentPool(name, pools.residents) for name in names}
        self._watch = ResidentWatch(self._pools.values(), lose=self._lose, end=self._end, say=say)
        self.count = pools.residents * len(self._pools)
        self._session = ""
        self._coordinator = ""
        self._bell: Bell | None = None
        self._resources = contextlib.AsyncExitStack()
        self._background: set[asyncio.Task[None]] = set()
        self._made = 0

    def pool_of(self, client: str) -> str:
        """Return the name of the pool that runs this client's turns.

        Raises:
            PoolUnusable: the settings name no pool for this client.
        """
        pool = self._settings.silos.get(client, self._settings.turns)
        if pool is None:
            raise PoolUnusable(f"pools: no pool for client {client}; expected it in pools.silos, or pools.turns set")
        return pool

    def split(self, clients: Sequence[str]) -> tuple[tuple[str, ...], ...]:
        """Return ``clients`` grouped by pool, in order: one turn cannot run on two pools."""
        groups: dict[str, list[str]] = {}
        for client in clients:
            groups.setdefault(self.pool_of(client), []).append(client)
        return tuple(tuple(group) for group in groups.values())

    async def open(self, coordinator: str) -> None:
        """Begin a session for the federation's flow run ``coordinator``.

        Raises:
            PoolUnusable: a pool or its deployment is missing.
        """
        self._coordinator = coordinator
        self._session = f"{coordinator}-{uuid4().hex[:8]}"
        for pool in self._pools:
            await resident_runs.require_pool(pool, self._deployment(pool))
            await asyncio.to_thread(open_session, self._objects, self._layout, pool, self._session, self._code)
        names = [coordinator_of(self._session), f"prefect.tag.{resident_runs.session_tag(self._session)}"]
        self._bell = await self._resources.enter_async_context(Bell(names, self._watch.receive))
        self._spawn(self._poll())

    async def run(self, turn: Callable[[Any], Any], argument: Any, *, deadline: float | None = None) -> Any:
        """Send the request ``argument`` to a resident and return its reply.

        ``turn`` is not sent: the request's phase decides what the resident does (:mod:`tasks.take_turn`).

        Raises:
            SlotLost, BadReply, DeadlineExceeded: as :class:`~infra.turns.local.TurnRunner` raises them. On a silo's own
                pool SlotLost can also mean that no resident starts there, and DeadlineExceeded that none was ready for
                ``deadline`` seconds: the failure is that silo's alone. SlotLost is also raised if no resident takes
                the turn, or if each gives it back.
            PoolUnusable: no resident starts on the pool that clients share.
        """
        pool = self._pools[self.pool_of(argument.clients[0])]
        not_taken = returned = 0
        document = {
            "version": MAILBOX_VERSION,
            "phase": argument.phase,
            "request": argument.model_dump(mode="json"),
        }
        while True:
            resident = await self._lease(pool, deadline)
            try:
                answer = await self._ask(resident, document, deadline, self._answer_limit(argument))
                reply = self._read_reply(argument, reply_in(answer))
            except _NotTaken:
                not_taken += 1
                if not_taken < NOT_TAKEN:
                    continue
                raise SlotLost(f"pool {pool.name}: {not_taken} residents left without taking the turn") from None
            except TurnReturned as error:
                self._lose(resident, str(error), left=True)
                returned += 1
                if returned < RETURNED:
                    self._say(f"{resident}: {argument.phase} was given back and runs again: {error}")
                    continue
                raise SlotLost(f"pool {pool.name}: given back {returned} times: {error}") from None
            except SlotLost as error:
                pool.offer(resident)
                raise SlotLost(f"{resident}: {error}") from None
            except (BadReply, StoreCorrupt) as error:
                # Once this resident is ended, the turn is repeated on another one, which is started if none is running.
                await self._end(resident, f"its answer cannot be used: {error}")
                raise BadReply(f"{resident}: {error}") from None
            pool.offer(resident)
            return reply

    async def _lease(self, pool: ResidentPool, deadline: float | None) -> Resident:
        """Wait for a free resident of ``pool`` and return it. On a silo's own pool, raise that silo's errors (``run``).

        The deadline runs while no resident is ready. It does not run while turns wait for residents that are busy.
        """
        if pool.name not in self._settings.silos.values():
            return await pool.lease(self._balance)
        lease = asyncio.ensure_future(pool.lease(self._balance))
        try:
            absent_since = time.monotonic()
            while not lease.done():
                left = None if deadline is None else max(absent_since + deadline - time.monotonic(), 0.0)
                await asyncio.wait({lease}, timeout=left)
                if any(resident.ready for resident in pool.residents):
                    absent_since = time.monotonic()
                elif deadline is not None and not lease.done() and time.monotonic() - absent_since >= deadline:
                    raise DeadlineExceeded(f"pool {pool.name}: no resident within {deadline:g} s")
            return lease.result()
        except PoolUnusable as error:
            raise SlotLost(str(error)) from None
        except asyncio.CancelledError:
            if lease.done() and not lease.cancelled() and lease.exception() is None:
                pool.offer(lease.result())
            raise
        finally:
            lease.cancel()

    async def close(self) -> None:
        """Have the idle residents leave, and cancel the others."""
        for task in list(self._background):
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                residents = [resident for pool in self._pools.values() for resident in pool.residents]
                await asyncio.gather(*map(self._dismiss, residents), return_exceptions=True)
                for pool in self._pools:
                    await asyncio.to_thread(close_session, self._objects, self._layout, pool, self._session)
        except Exception as failure:
            log.warning("residents could not be dismissed, they leave by themselves when idle: %s", failure)
        finally:
            await self._resources.aclose()

    # Residents.

    def _balance(self, pool: ResidentPool) -> None:
        """Request one resident for each turn that waits, less those that are starting, up to the pool's limit."""
        while len(pool.residents) < pool.limit and pool.starting < len(pool.waiting):
            self._made += 1
            mailbox = Mailbox(self._objects, self._layout, pool.name, self._session, self._made)
            resident = Resident(self._made, pool, mailbox)
            pool.residents.append(resident)
            self._spawn(self._submit(resident))

    async def _submit(self, resident: Resident) -> None:
        pool = resident.pool
        try:
            run = await resident_runs.submit(
                self._deployment(pool.name),
                name=f"{self._layout.federation} · {resident}",
                parameters={
                    "federation": self._layout.federation,
                    "session": self._session,
                    "pool": pool.name,
                    "number": resident.number,
                    "idle_seconds": self._settings.idle_seconds,
                },
                tags=[resident_runs.session_tag(self._session), resident_runs.coordinator_tag(self._coordinator)],
                job_variables=self._job_variables,
            )
            resident.run = run.id
        except Exception as failure:
            self._lose(resident, str(failure) or type(failure).__name__)
            if isinstance(failure, PoolUnusable):
                pool.give_up(failure)

    def _lose(self, resident: Resident, reason: str, *, left: bool = False) -> None:
        """Remove a resident that has ended, wake the turn that waits for it, and request another one if turns wait."""
        if resident.gone is not None:
            return
        pool = resident.pool
        pool.remove(resident, reason, left=left)
        if not resident.ready:
            pool.failed_starts += 1
            log.warning("%s did not start: %s", resident, reason)
            if pool.failed_starts >= FAILED_STARTS:
                pool.give_up(PoolUnusable(f"pool {pool.name}: no resident starts there: {reason}"))
                return
        self._balance(pool)

    # A turn.

    async def _ask(self, resident: Resident, document: dict[str, Any], deadline: float | None, limit: int) -> Any:
        """Send a request and return the resident's answer, unchecked. The caller offers the resident to other turns."""
        resident.turns += 1
        number = resident.turns
        began = resident.last_sign = time.monotonic()
        answer: Any = None
        await asyncio.to_thread(resident.mailbox.put_ask, number, document)
        await self._ring(resident, "fedbench.turn.asked")
        while answer is None:
            left = None if deadline is None else deadline - (time.monotonic() - began)
            if left is not None and left <= 0:
                await self._end(resident, f"no answer within {deadline:g} s")
                raise DeadlineExceeded(f"{resident}: no answer within {deadline:g} s")
            with contextlib.suppress(TimeoutError):
                patience = self._bell.patience if self._bell is not None else 1.0
                await asyncio.wait_for(resident.changed.wait(), patience if left is None else min(patience, left))
            resident.changed.clear()
            gone = resident.gone
            answer = await asyncio.to_thread(resident.mailbox.get_answer, number, limit)
            if answer is None and gone is not None:
                if resident.left:
                    raise _NotTaken
                raise SlotLost(gone)
        resident.pool.failed_starts = 0
        return answer

    async def _ring(self, resident: Resident, event: str) -> None:
        if self._bell is not None:
            await self._bell.ring(resident_of(self._session, f"{resident.pool.name}.{resident.number}"), event)

    async def _end(self, resident: Resident, reason: str) -> None:
        self._lose(resident, reason)
        if resident.run is not None:
            with contextlib.suppress(Exception):
                await resident_runs.cancel(resident.run)

    async def _dismiss(self, resident: Resident) -> None:
        if resident in resident.pool.idle:
            await asyncio.to_thread(resident.mailbox.put_ask, resident.turns + 1, LEAVE)
            await self._ring(resident, "fedbench.turn.asked")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS / 4):
                    while resident.gone is None:
                        resident.changed.clear()
                        await resident.changed.wait()
                return
        if resident.run is not None:
            await resident_runs.cancel(resident.run)

    async def _poll(self) -> None:
        """Poll what events report, because events may be lost, and find residents whose whole machine is gone."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            try:
                await self._watch.look(self._settings.lost_seconds, self._connected)
            except Exception as failure:
                log.debug("reading the states of the residents failed: %s", failure)

    def _connected(self) -> bool:
        return self._bell is not None and self._bell.connected

    def _spawn(self, work: Awaitable[None]) -> None:
        async def guarded() -> None:
            try:
                await work
            except Exception:
                log.error("%s", traceback.format_exc())

        task = asyncio.create_task(guarded())
        self._background.add(task)
        task.add_done_callback(self._background.discard)
