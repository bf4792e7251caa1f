"""Which cell runs when, on how many slots, and how long the rest will take."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.spec.suite import Cell


async def run_all(
    cells: Sequence[Cell], weights: Mapping[str, int], capacity: int, run: Callable[[Cell], Awaitable[None]]
) -> None:
    """Run ``cells`` (a federation and its references) in their order, at most ``capacity`` slots at a time.

    A cell that does not fit lets later ones go first. ``weights`` are slots by a cell's name. What ``run`` raises ends
    all of them, and is raised.
    """
    waiting, running, free = list(cells), dict[asyncio.Task[None], int](), capacity
    try:
        while waiting or running:
            for cell in list(waiting):
                weight = min(weights[cell.name], capacity)
                if weight <= free:
                    waiting.remove(cell)
                    free -= weight
                    running[asyncio.ensure_future(run(cell))] = weight
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                free += running.pop(task)
                await task
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def slots_of(cell: Cell, capacity: int) -> int:
    """Slots that a cell can use: those of the clients that train at the same time."""
    clients = cell.spec.participation.clients_per_round or len(cell.spec.clients or ()) or capacity
    return max(1, min(clients, cell.spec.participation.shards or clients, capacity))


@dataclass
class RunningCell:
    """A cell that runs: since when, from which round on, and when the last of its rounds was seen."""

    cell: Cell
    began: float
    before: int
    rounds: int
    reached: float

    def each(self) -> float | None:
        """Seconds a round; None before the first is done."""
        done = self.rounds - self.before
        return (self.reached - self.began) / done if done > 0 else None


@dataclass
class Estimate:
    """Seconds that are left, from what cells have taken so far.

    A cell's work is its rounds. What a round takes is, first of all, what it took this very cell; else its like (the
    same experiment and role, for another seed or device), else its role, else any, in proportion to local epochs.
    """

    weights: Mapping[str, int]
    capacity: int
    clock: Callable[[], float] = time.monotonic
    _round_seconds: dict[str, float] = field(default_factory=dict)  # of cells that have ended
    _cells: dict[str, Cell] = field(default_factory=dict)
    _running: dict[str, RunningCell] = field(default_factory=dict)

    def ended(self, cell: Cell, seconds: float) -> None:
        """``cell`` has taken ``seconds`` for all of its rounds."""
        self._running.pop(cell.name, None)
        self._cells[cell.name] = cell
        self._round_seconds[cell.name] = seconds / cell.spec.max_rounds

    def began(self, cell: Cell, rounds: int) -> None:
        """``cell`` runs, and had ``rounds`` committed before."""
        self._cells[cell.name] = cell
        now = self.clock()
        self._running[cell.name] = RunningCell(cell, began=now, before=rounds, rounds=rounds, reached=now)

    def stands_at(self, cell: Cell, rounds: int) -> None:
        """``cell``, which runs, has ``rounds`` committed."""
        running = self._running[cell.name]
        if rounds != running.rounds:
            running.rounds, running.reached = rounds, self.clock()

    def left(self, waiting: Sequence[Cell]) -> float | None:
        """Wall seconds until all of ``waiting``, and those that run, have ended; None while nothing tells."""
        work, longest = 0.0, 0.0
        for cell in [*(running.cell for running in self._running.values()), *waiting]:
            each = self._each(cell)
            if each is None:
                return None
            seconds, running = each * cell.spec.max_rounds, self._running.get(cell.name)
            if running is not None:  # some of its rounds have passed, and a part of one
                passed = min(self.clock() - running.reached, each)
                seconds = max(seconds - each * running.rounds - passed, 0.0)
            work += seconds * min(self.weights.get(cell.name, 1), self.capacity)
            longest = max(longest, seconds)
        return max(work / self.capacity, longest)

    def _each(self, cell: Cell) -> float | None:
        """Seconds a round."""
        running = {name: each for name, item in self._running.items() if (each := item.each()) is not None}
        if cell.name in running:
            return running[cell.name]
        known = running | self._round_seconds
        for alike in (
            lambda other: other.experiment == cell.experiment and other.role == cell.role,
            lambda other: other.role == cell.role,
            lambda other: True,
        ):
            found = [
                seconds * cell.spec.training.local_epochs / self._cells[name].spec.training.local_epochs
                for name, seconds in known.items()
                if alike(self._cells[name])
            ]
            if found:
                return sum(found) / len(found)
        return None


def duration(seconds: float) -> str:
    """``1 h 20 min``, ``4 min``, ``40 s``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
