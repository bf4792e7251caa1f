"""Find the runs that shared a machine with other runs of the same result, so that their wall time does not compare.

Two runs shared a machine if they had clients on one host and rounds at the same time. Nothing is known of any other
load on the machine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.spec.suite_records import CellResult, SuiteResult

# A part of a run's time that is too short to matter: clocks, and the moment between two cells.
NEGLIGIBLE = 0.01

Spans = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Sharing:
    """What is known of runs beside each other, by the names of federations.

    shared: those that ran beside others. alone: those that did not. unknown: those whose records do not say when or
        where they ran.
    """

    shared: frozenset[str]
    alone: frozenset[str]
    unknown: frozenset[str]

    def of(self, cells: Sequence[CellResult]) -> bool:
        """Return whether any of ``cells`` shared its machine."""
        return any(cell.federation in self.shared for cell in cells)

    @property
    def note(self) -> str:
        """Return what a reader must know of wall time."""
        count = len(self.shared) + len(self.alone) + len(self.unknown)
        runs = f"{count} run{'' if count == 1 else 's'}"
        if self.shared:
            ran = f"{len(self.shared)} of {runs} shared a machine with other runs of this report at the same time"
            return f"Wall time: {ran}, so it does not compare, and plots over time are left out"
        if self.unknown:
            unknown = f"{len(self.unknown)} of {runs} shared a machine with others at the same time"
            return f"Wall time: it is not on record whether {unknown}"
        ran = f"no two of {runs} shared a machine at the same time"
        return f"Wall time: {ran}; other load on the machines is not on record"


def sharing_of(result: SuiteResult) -> Sharing:
    """Return which runs of ``result`` shared a machine with another of its runs.

    A run counts if more than 1 % of its time was at the same time as other runs' rounds. A run that stands in several
    experiments is one run.
    """
    runs = {cell.federation: cell for cell in result.cells}
    spans = {name: found for name, cell in runs.items() if (found := _spans(cell)) is not None}
    shared = set()
    for name, own in spans.items():
        hosts = set(runs[name].hosts)
        others = [
            span for other, found in spans.items() if other != name and hosts & set(runs[other].hosts) for span in found
        ]
        seconds = sum(end - start for start, end in own)
        if _common(own, _joined(others)) > NEGLIGIBLE * seconds:
            shared.add(name)
    return Sharing(frozenset(shared), frozenset(spans.keys() - shared), frozenset(runs.keys() - spans.keys()))


def _spans(cell: CellResult) -> Spans | None:
    """Return when each round began and ended, in seconds since 1970; None if the records do not say when or where."""
    spans, before = [], 0.0
    for point in cell.points:
        if point.committed is None or not cell.hosts:
            return None
        end = point.committed.timestamp()
        spans.append((end - (point.seconds - before), end))
        before = point.seconds
    return _joined(spans)


def _joined(spans: Spans) -> Spans:
    """Return ``spans`` in order of time; those that overlap become one."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _common(one: Spans, other: Spans) -> float:
    """Return the seconds that two ordered lists of spans have in common."""
    seconds, place = 0.0, 0
    for start, end in one:
        while place < len(other) and other[place][1] <= start:
            place += 1
        for its_start, its_end in other[place:]:
            if its_start >= end:
                break
            seconds += min(end, its_end) - max(start, its_start)
    return seconds
