"""What a coordinator hears and sees of its residents: events, the states of their runs, and their silence."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

from prefect.client.schemas.objects import State
from prefect.events import Event

from infra.turns import resident_runs
from infra.turns.resident_pool import Resident, ResidentPool

SILENT_SECONDS = 30.0  # a pool without any resident for so long is reported


class Lose(Protocol):
    def __call__(self, resident: Resident, reason: str, *, left: bool = False) -> None: ...


class ResidentWatch:
    """The watch over the residents of ``pools``.

    lose: called with a resident that is gone, and the reason; ``left``: it went by itself.
    end: cancels the run of a resident that is lost, for a reason.
    say: prints a line to whoever watches the run.
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

    def hear(self, event: Event | None) -> None:
        """Take an event of a resident or of its run; None: events were not received for a while."""
        now = time.monotonic()
        if event is None:  # connected anew, or deaf: nobody is counted as silent for that
            for resident in self._residents():
                resident.heard = now
                resident.changed.set()
            return
        number, identifier = event.payload.get("resident"), event.resource.id
        for resident in self._residents():
            if number == resident.number and event.event.startswith("fedbench."):
                resident.heard = now
                if event.event == "fedbench.resident.ready":
                    resident.welcome()
                elif event.event == "fedbench.resident.left":
                    self._lose(resident, "it was idle", left=True)
                elif event.event == "fedbench.turn.answered":
                    resident.changed.set()
            elif resident.run is not None and identifier == f"prefect.flow-run.{resident.run}":
                resident.heard = now
                if event.event.rpartition(".")[2] in ("Crashed", "Failed", "Cancelled", "Completed", "TimedOut"):
                    state = event.payload.get("validated_state")
                    state = state if isinstance(state, dict) else {}  # a silo may ring as Prefect
                    self._ended(resident, state.get("type", ""), str(state.get("message") or event.event))

    async def look(self, lost_seconds: float, hears: Callable[[], bool]) -> None:
        """Read the states of all residents' runs, end those at work without a sign for ``lost_seconds``, and report
        pools without a resident.

        hears: whether events are received at the moment; while they are not, silence means nothing.
        """
        everyone = {resident.run: resident for resident in self._residents() if resident.run is not None}
        for run, state in (await resident_runs.states(list(everyone))).items():
            self._see(everyone[run], state)
        for resident in everyone.values():
            silent = time.monotonic() - resident.heard
            if resident.ready and hears() and resident.gone is None and silent > lost_seconds:
                if resident in resident.pool.idle:
                    continue  # it says nothing while it waits
                await self._end(resident, f"no sign of it for {silent:.0f} s")
        for pool in self._pools:
            await self._complain(pool)

    def _see(self, resident: Resident, state: State[Any] | None) -> None:
        if state is None:
            self._lose(resident, "its run was deleted")
        elif state.is_final():
            self._ended(resident, state.type.value, state.message or state.name or state.type.value)
        elif state.is_running() and not resident.ready:
            # It may have rung while nobody heard it; it looks at its mailbox before it waits for a ring.
            resident.welcome()

    def _ended(self, resident: Resident, kind: str, message: str) -> None:
        self._lose(resident, message, left=kind == "COMPLETED")

    async def _complain(self, pool: ResidentPool) -> None:
        if not pool.waiting or any(resident.ready for resident in pool.residents):
            pool.silent_since, pool.reported = None, False
            return
        pool.silent_since = pool.silent_since or time.monotonic()
        if not pool.reported and time.monotonic() - pool.silent_since >= SILENT_SECONDS:
            pool.reported = True
            online = await resident_runs.workers_online(pool.name)
            hint = f"{online} online" if online else f"none; start one: prefect worker start --pool {pool.name}"
            self._say(f"pool {pool.name}: no slot yet, waiting for one (workers: {hint})")
