"""A suite's runs as the comparison takes them: by experiment and role, a value for each seed."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, SuiteResult

# Kinds of figures, by the names of their floors; spreads are pooled, and false alarms shared out, by kind.
Kind = Literal["map50_voc10", "map_coco", "recall", "loss", "class_ap"]
WHOLE: tuple[Kind, ...] = ("map50_voc10", "map_coco", "recall", "loss")
KINDS: tuple[Kind, ...] = (*WHOLE, "class_ap")
Values = dict[int, float | None]


@dataclass(frozen=True)
class Figure:
    """A figure of a run's last round. label: what messages call it. class_name: of a class's AP."""

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
    """What ``cells`` are compared by: the whole figures, then each class that any of them names."""
    names = dict.fromkeys(name for cell in cells for name in cell.per_class) if classes else {}
    whole = [Figure(kind, "test loss" if kind == "loss" else kind) for kind in WHOLE]
    return whole + [Figure("class_ap", f"AP {name}", name) for name in names]


@dataclass(frozen=True)
class Group:
    """Runs of an experiment in one role, by seed; several for a seed are the local-only ones of its devices."""

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
        """The figure by seed, on the mean over devices; None where a run does not have it."""
        found: Values = {}
        for seed, cells in self.by_seed.items():
            values = [figure.of(cell) for cell in cells]
            present = [value for value in values if value is not None]
            found[seed] = math.fsum(present) / len(present) if len(present) == len(values) else None
        return found

    def restricted(self, devices: Iterable[str | None]) -> Group:
        """Runs of ``devices`` alone, of the seeds for which all of them have one."""
        wanted = set(devices)
        kept = {seed: tuple(cell for cell in cells if cell.device in wanted) for seed, cells in self.by_seed.items()}
        whole = {seed: cells for seed, cells in kept.items() if wanted and len(cells) == len(wanted)}
        return Group(self.experiment, self.role, whole)

    def of_seeds(self, seeds: Iterable[int]) -> Group:
        return Group(self.experiment, self.role, {seed: self.by_seed[seed] for seed in sorted(seeds)})


def groups_of(result: SuiteResult) -> dict[tuple[str, Role], Group]:
    """In the order of the result's cells."""
    found: dict[tuple[str, Role], dict[int, list[CellResult]]] = defaultdict(lambda: defaultdict(list))
    for cell in result.cells:
        found[cell.experiment, cell.role][cell.seed].append(cell)
    return {key: Group(*key, {seed: tuple(cells) for seed, cells in by_seed.items()}) for key, by_seed in found.items()}


def matched(before: Group, after: Group) -> tuple[Group, Group]:
    """Both with the devices that they have in common, and of these the seeds that have them all."""
    common = {cell.device for cell in before.cells} & {cell.device for cell in after.cells}
    return before.restricted(common), after.restricted(common)
