"""Results of suites with randomly drawn figures. Their means and spreads are known, to test the regression rule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from tasks.spec.records import Environment
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, FailedCell, Point, SuiteResult
from tests.records import result_of_cell, result_of_suite

ENVIRONMENT = Environment(fedbench="1", python="3.11", torch="2", torchvision="0", cpu="x", threads=1)


def cell_of(
    experiment: str,
    role: Role,
    seed: int,
    figures: Mapping[str, float | None],
    per_class: Mapping[str, float | None] | None = None,
    *,
    device: str | None = None,
    digest: str = "a" * 64,
    clients: int = 5,
) -> CellResult:
    return result_of_cell(
        experiment, role, seed, device=device, spec_digest=digest, clients=clients,
        points=(Point(round=0, figures=dict(figures), passes=0, seconds=0, exchanged=0),),
        per_class=dict(per_class or {}),
    )  # fmt: skip


def result_of(
    cells: Sequence[CellResult],
    *,
    run: str = "run",
    suite: str = "suite",
    failed: Sequence[FailedCell] = (),
    missing: Sequence[str] = (),
    environment: Environment = ENVIRONMENT,
) -> SuiteResult:
    return result_of_suite(
        *cells, suite=suite, suite_run=run, suite_digest="b" * 64, environment=environment, failed=tuple(failed),
        missing=tuple(missing),
    )  # fmt: skip


@dataclass(frozen=True)
class SimulatedGroup:
    """The means of a group's figures, and their spreads over seeds (standard deviations)."""

    experiment: str
    role: Role = "federated"
    map50: float = 0.5
    spread: float = 0.012
    loss: float = 100.0
    # AP and spread by class.
    classes: Mapping[str, tuple[float, float]] = field(
        default_factory=lambda: {
            "chair": (0.6, 0.02),
            "table": (0.5, 0.08),
            "carton": (0.4, 0.03),
            "basket": (0.3, 0.04),
        }
    )

    def draw(self, rng: np.random.Generator, seed: int) -> CellResult:
        """Draw one run. Its figures are correlated: half of their variance is common to all of them."""
        common = rng.normal()

        def noise() -> float:
            return float(np.sqrt(0.5) * common + np.sqrt(0.5) * rng.normal())

        def part(mean: float, spread: float) -> float:
            return min(1.0, max(0.0, mean + spread * noise()))

        figures = {
            "map50_voc10": part(self.map50, self.spread),
            "map_coco": part(self.map50 / 2, self.spread / 2),
            "recall": part(0.5 + self.map50 / 2, self.spread),
            "loss": self.loss * (1 - 0.02 * noise()),
        }
        per_class = {name: part(*values) for name, values in self.classes.items()}
        return cell_of(self.experiment, self.role, seed, figures, per_class)


def drawn(
    groups: Sequence[SimulatedGroup], seeds: Sequence[int], rng: np.random.Generator, run: str = "run"
) -> SuiteResult:
    """Return a result of new, independent draws. The seeds only name the cells."""
    return result_of([group.draw(rng, seed) for group in groups for seed in seeds], run=run)
