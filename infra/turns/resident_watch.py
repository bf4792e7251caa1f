"""How a coordinator follows its residents: by their events, the states of their runs, and their silence."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.events import Event

from infra.turns import resident_runs
from infra.turns.resident_pool import Resident, ResidentPool

SILENT_SECONDS = 30.0  # turns that wait so long on a pool without a resident are reported


class Lose(Protocol):
    def __call__(self, resident: Resident, reason: str, *, left: bool = False) -> None: ...


class ResidentWatch:
    """The watch over the residents of ``pools``.

    lose: called with a resident that is gone, and the reason; ``left``: it ended of its own accord.
    end: called with a resident that gives no sign, and the reason; cancels its run.
    say: called with a line for whoever watches the run.
    """

    def __init__(
        self,
        pools: Iterable[ResidentPool],
        *,
        lose: Lose,
        end: Callable[[Resident, str], Awaitable[None]],
        say: Callable[[str], None],
    ) -> None:
        self._pools = list(pools)
        self._lose, self._end, self._say = lose, end, say

    def _residents(self) -> list[Resident]:
        return [resident for pool in self._pools for resident in pool.residents]

    def receive(self, event: Event | None) -> None:
        """Process an event of a resident or of its run; None: events may have been missed."""
        now = time.monotonic()
        if event is None:  # a connection began or ended: silence counts from now on
            for resident in self._residents():
                resident.last_sign = now
                resident.changed.set()
            return
        number, identifier = event.payload.get("resident"), event.resource.id
        for resident in self._residents():
            if number == resident.number and event.event.startswith("fedbench."):
                resident.last_sign = now
                if event.event == "fedbench.resident.ready":
                    resident.welcome()
                elif event.event == "fedbench.resident.left":
                    self._lose(resident, "it was idle", left=True)
                elif event.event == "fedbench.turn.answered":
                    resident.changed.set()
            elif resident.run is not None and identifier == f"prefect.flow-run.{resident.run}":
                resident.last_sign = now
                if event.event.rpartition(".")[2] in ("Crashed", "Failed", "Cancelled", "Completed", "TimedOut"):
                    state = event.payload.get("validated_state")
                    state = state if isinstance(state, dict) else {}  # a silo may send events in Prefect's name
                    self._ended(resident, state.get("type", ""), str(state.get("message") or event.event))

    async def look(self, lost_seconds: float, connected: Callable[[], bool]) -> None:
        """Read the states of all residents' runs, end residents at work that gave no sign for ``lost_seconds``, and
        report pools without a resident.

        connected: returns whether events are received now; while they are not, silence means nothing.
        """
        everyone = {resident.run: resident for resident in self._residents() if resident.run is not None}
        for run, state in (await resident_runs.states(list(everyone))).items():
            self._apply_state(everyone[run], state)
        for resident in everyone.values():
            silent = time.monotonic() - resident.last_sign
            if resident.ready and connected() and resident.gone is None and silent > lost_seconds:
                if resident in resident.pool.idle:
                    continue  # an idle resident sends no events
                await self._end(resident, f"no sign of it for {silent:.0f} s")
        for pool in self._pools:
            await self._report_absence(pool)

    def _apply_state(self, resident: Resident, state: State[Any] | None) -> None:
        if state is None:
            self._lose(resident, "its run was deleted")
        elif state.is_final():
            self._ended(resident, state.type.value, state.message or state.name or state.type.value)
        elif state.is_running() and not resident.ready:
            # Its event may have been lost. A turn can be sent already: a resident polls its mailbox.
            resident.welcome()

    def _ended(self, resident: Resident, kind: str, message: str) -> None:
        self._lose(resident, message, left=kind == "COMPLETED")

    async def _report_absence(self, pool: ResidentPool) -> None:
        if not pool.waiting or any(resident.ready for resident in pool.residents):
            pool.silent_since, pool.reported = None, False
            return
        pool.silent_since = pool.silent_since or time.monotonic()
        if not pool.reported and time.monotonic() - pool.silent_since >= SILENT_SECONDS:
            pool.reported = True
            online = await resident_runs.workers_online(pool.name)
            hint = f"{online} online" if online else f"none; start one: prefect worker start --pool {pool.name}"
            self._say(f"pool {pool.name}: no slot yet, waiting for one (workers: {hint})")
