"""How far a run has got, judged only by the objects in its bucket."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# The phases of a round, in order.
PHASES = ("begun", "planned", "updating", "updated", "aggregated", "evaluated", "committed")


@dataclass(frozen=True)
class Moment:
    """The moment ``pause`` seconds after ``round`` reached ``phase``; phase "start": after the start of the command."""

    round: int
    phase: str
    pause: float

    def __str__(self) -> str:
        where = "the start" if self.phase == "start" else f"round {self.round} {self.phase}"
        return f"{self.pause:.2f} s after {where}"


class Watch:
    """Watch how far the federation ``name`` in ``bucket`` has got. clients: number of clients in each round."""

    def __init__(self, bucket: Path, name: str, clients: int) -> None:
        self.folder = bucket / "federations" / name
        self.clients = clients

    def has_reached(self, number: int, phase: str) -> bool:
        """Return whether the round has reached the phase, or a later one."""
        return any(self._is_there(number, later) for later in PHASES[PHASES.index(phase) :])

    def _is_there(self, number: int, phase: str) -> bool:
        place = self.folder / "rounds" / f"{number:04d}"
        if phase == "begun":
            before = self.folder / "spec.json" if number == 0 else self._marker(number - 1)
            return before.exists()
        if phase == "planned":
            return (place / "plan.json").exists()
        if phase == "updating":
            return _count(place / "updates") > 0
        if phase == "updated":
            return _count(place / "updates", "*.json") >= self.clients
        if phase == "aggregated":
            return (place / "global.safetensors").exists()
        if phase == "evaluated":
            return _count(place / "evaluations") > 0
        return self._marker(number).exists()

    def _marker(self, number: int) -> Path:
        return self.folder / "rounds" / f"{number:04d}" / "round.json"

    def committed(self) -> int:
        """Return the number of committed rounds, the initial one included."""
        return sum(path.is_file() for path in self.folder.glob("rounds/*/round.json"))

    def wait(self, moment: Moment, alive: Callable[[], bool]) -> bool:
        """Wait for the moment. Return whether it came while the run was ``alive``."""
        while moment.phase != "start" and not self.has_reached(moment.round, moment.phase):
            if not alive():
                return False
            time.sleep(0.005)
        deadline = time.monotonic() + moment.pause
        while time.monotonic() < deadline:
            if not alive():
                return False
            time.sleep(0.005)
        return alive()


def _count(folder: Path, pattern: str = "*") -> int:
    return sum(not path.name.startswith(".") for path in folder.glob(pattern))
