"""Schedule the cells of a suite on its slots, and estimate the time left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field

from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellRecord


async def run_all(
    cells: Sequence[Cell], weights: Mapping[str, int], capacity: int, run: Callable[[Cell], Awaitable[None]]
) -> None:
    """Run ``cells`` (a federation and its references) in their order, on at most ``capacity`` slots at a time.

    If a cell needs more slots than are free, later cells may start first. If ``run`` raises, all cells are cancelled,
    and the exception is raised.

    weights: slots by a cell's name.
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
    """Return how many slots a cell can use: as many as clients train at the same time, at most ``capacity``."""
    clients = cell.spec.participation.clients_per_round or len(cell.spec.clients or ()) or capacity
    return max(1, min(clients, cell.spec.participation.shards or clients, capacity))


@dataclass
class RunningCell:
    """A running cell.

    began: when it began. before: rounds committed by then. rounds: rounds committed by now. reached: when the last of
    these was noticed.
    """

    cell: Cell
    began: float
    before: int
    rounds: int
    reached: float

    def each(self) -> float | None:
        """Return the seconds per round; None before the first is done."""
        done = self.rounds - self.before
        return (self.reached - self.began) / done if done > 0 else None


@dataclass
class Estimate:
    """An estimate of the seconds left, from the times of cells so far.

    A cell's time is its number of rounds times the seconds per round. The seconds per round come from the cell itself.
    Before its first round, they come from cells of the same experiment and role (with another seed or device), else
    from cells of the same role, else from all cells, in proportion to the local epochs.

    weights: slots by a cell's name. capacity: the most slots at a time.
    """

    weights: Mapping[str, int]
    capacity: int
    clock: Callable[[], float] = time.monotonic
    _round_seconds: dict[str, float] = field(default_factory=dict)  # of cells that have ended
    _cells: dict[str, Cell] = field(default_factory=dict)
    _running: dict[str, RunningCell] = field(default_factory=dict)

    def ended(self, cell: Cell, seconds: float) -> None:
        """Note that ``cell`` has ended, and took ``seconds`` for all of its rounds."""
        self._running.pop(cell.name, None)
        self._cells[cell.name] = cell
        self._round_seconds[cell.name] = seconds / cell.spec.max_rounds

    def ended_before(self, cells: Sequence[Cell], done: Mapping[str, CellRecord]) -> None:
        """Note those of ``cells`` that have a record, by name, in ``done``."""
        for cell in cells:
            if cell.name in done:
                self.ended(cell, done[cell.name].seconds)

    def began(self, cell: Cell, rounds: int) -> None:
        """Note that ``cell`` has begun, with ``rounds`` committed before."""
        self._cells[cell.name] = cell
        now = self.clock()
        self._running[cell.name] = RunningCell(cell, began=now, before=rounds, rounds=rounds, reached=now)

    def stands_at(self, cell: Cell, rounds: int) -> None:
        """Note that the running ``cell`` has ``rounds`` committed."""
        running = self._running[cell.name]
        if rounds != running.rounds:
            running.rounds, running.reached = rounds, self.clock()

    def left(self, waiting: Sequence[Cell]) -> float | None:
        """Return the wall seconds until all waiting and running cells have ended; None if no time is known yet."""
        work, longest = 0.0, 0.0
        for cell in [*(running.cell for running in self._running.values()), *waiting]:
            each = self._each(cell)
            if each is None:
                return None
            seconds, running = each * cell.spec.max_rounds, self._running.get(cell.name)
            if running is not None:  # subtract its committed rounds, and the elapsed part of the current one
                passed = min(self.clock() - running.reached, each)
                seconds = max(seconds - each * running.rounds - passed, 0.0)
            work += seconds * min(self.weights.get(cell.name, 1), self.capacity)
            longest = max(longest, seconds)
        return max(work / self.capacity, longest)

    def _each(self, cell: Cell) -> float | None:
        """Return the seconds per round of ``cell``; None if no time is known yet."""
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
    """Return ``seconds`` as text, as ``1 h 20 min``, ``4 min`` or ``40 s``."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"
