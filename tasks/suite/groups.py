"""Group a suite's runs for the comparison: by experiment and role, with a value for each seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, SuiteResult

# Kinds of figures, by the names of their floors. The rate of false alarms is divided among the kinds.
Kind = Literal["map50_voc10", "map_coco", "recall", "loss", "class_ap"]
WHOLE: tuple[Kind, ...] = ("map50_voc10", "map_coco", "recall", "loss")
KINDS: tuple[Kind, ...] = (*WHOLE, "class_ap")
Values = dict[int, float | None]


@dataclass(frozen=True)
class Figure:
    """A figure of a run's last round. label: its name in messages. class_name: the class, if it is a class's AP."""

    kind: Kind
    label: str
    class_name: str | None = None

    @property
    def lower_is_better(self) -> bool:
        return self.kind == "loss"

    def of(self, cell: CellResult) -> float | None:
        if self.class_name is not None:
            return cell.per_class.get(self.class_name)
        return cell.last.figures.get(self.kind)


def figures_of(cells: Iterable[CellResult], *, classes: bool) -> list[Figure]:
    """Return the figures to compare ``cells`` by: those over all classes, then the AP of each class that a cell has."""
    names = dict.fromkeys(name for cell in cells for name in cell.per_class) if classes else {}
    whole = [Figure(kind, "test loss" if kind == "loss" else kind) for kind in WHOLE]
    return whole + [Figure("class_ap", f"AP {name}", name) for name in names]


@dataclass(frozen=True)
class Group:
    """Runs of an experiment in one role, by seed. Only local only has several runs for a seed: one for each device."""

    experiment: str
    role: Role
    by_seed: Mapping[int, tuple[CellResult, ...]]

    @property
    def name(self) -> str:
        return f"{self.experiment} {self.role}"

    @property
    def cells(self) -> list[CellResult]:
        return [cell for cells in self.by_seed.values() for cell in cells]

    def values(self, figure: Figure) -> Values:
        """Return the figure by seed, as the mean over devices; None for a seed if one of its runs does not have it."""
        found: Values = {}
        for seed, cells in self.by_seed.items():
            values = [figure.of(cell) for cell in cells]
            present = [value for value in values if value is not None]
            found[seed] = math.fsum(present) / len(present) if len(present) == len(values) else None
        return found

    def restricted(self, devices: Iterable[str | None]) -> Group:
        """Return the runs of ``devices`` only, for the seeds at which all of these devices have a run."""
        wanted = set(devices)
        kept = {seed: tuple(cell for cell in cells if cell.device in wanted) for seed, cells in self.by_seed.items()}
        whole = {seed: cells for seed, cells in kept.items() if wanted and len(cells) == len(wanted)}
        return Group(self.experiment, self.role, whole)

    def of_seeds(self, seeds: Iterable[int]) -> Group:
        return Group(self.experiment, self.role, {seed: self.by_seed[seed] for seed in sorted(seeds)})


def groups_of(result: SuiteResult) -> dict[tuple[str, Role], Group]:
    """Return the groups of ``result`` by experiment and role, in the order of its cells."""
    found: dict[tuple[str, Role], dict[int, list[CellResult]]] = defaultdict(lambda: defaultdict(list))
    for cell in result.cells:
        found[cell.experiment, cell.role][cell.seed].append(cell)
    return {key: Group(*key, {seed: tuple(cells) for seed, cells in by_seed.items()}) for key, by_seed in found.items()}


def matched(before: Group, after: Group) -> tuple[Group, Group]:
    """Return both groups restricted to their common devices, and to the seeds at which all of these have a run."""
    common = {cell.device for cell in before.cells} & {cell.device for cell in after.cells}
    return before.restricted(common), after.restricted(common)
