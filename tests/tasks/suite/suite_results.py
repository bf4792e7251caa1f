"""Results of suites, made by hand, for the tests of summaries, reports and plots."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from tasks.spec.federation import MAP_NAMES, FederationSpec
from tasks.spec.records import Environment
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, Point, SuiteResult
from tests.records import result_of_cell, result_of_suite

NOW = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)
ENVIRONMENT = Environment(
    fedbench="9.8.7", python="3.12.1", torch="2.9.0", torchvision="0.24.0", cpu="a cpu", threads=1
)


def point(number: int, value: float | None, *, passes: float | None = None) -> Point:
    """Return a round's point. ``value`` is each of its mAPs except ``map_coco``, which is half of it."""
    figures: dict[str, float | None] = dict.fromkeys((*MAP_NAMES, "recall"), value)
    figures |= {"map_coco": None if value is None else value / 2, "loss": 2.0, "train_loss": 3.0 if number else None}
    spent = float(number) if passes is None else passes
    return Point(
        round=number, figures=figures, passes=spent, seconds=60.0 * number, exchanged=1_000_000 * number,
        steps=4.0 * number,
    )  # fmt: skip


def cell(
    experiment: str, role: Role, seed: int, values: list[float | None], *, device: str | None = None, step: float = 1.0,
    **more: Any,
) -> CellResult:  # fmt: skip
    """Return a run whose rounds have ``values`` and make ``step`` passes over their images each."""
    hit = next((number for number, value in enumerate(values) if value is not None and value >= 0.5), None)
    fields: dict[str, Any] = {
        "federation": f"run-{experiment}-{role}-{seed}-{device}",
        "clients": 2 if role == "federated" else 1,
        "per_class": {"chair": values[-1], "table": None},
        "rounds_to_target": hit,
        "moved": 500_000,
    }
    points = tuple(point(number, value, passes=step * number) for number, value in enumerate(values))
    return result_of_cell(experiment, role, seed, device=device, points=points, **(fields | more))


def result(*cells: CellResult, **more: Any) -> SuiteResult:
    fields: dict[str, Any] = {
        "code_version": "1.2.3+abc",
        "environment": ENVIRONMENT,
        "created": NOW,
        "specs": {name: FederationSpec() for name in dict.fromkeys(cell.experiment for cell in cells)},
    }
    return result_of_suite(*cells, **(fields | more))


def between(*, own_tests: bool = False) -> SuiteResult:
    """Return one experiment of three seeds with its references. Local-only runs, of two devices, have two seeds."""
    own = {"1": dict.fromkeys((*MAP_NAMES, "recall", "loss"), 0.321), "2": {"map50_voc10": None}} if own_tests else {}
    cells = []
    for number, seed in enumerate((1, 2, 3)):
        more = number / 100
        cells.append(cell("apart", "federated", seed, [0.0, 0.5, 0.6 + more], per_client=own, gpu_seconds=90.0))
        cells.append(cell("apart", "centralised", seed, [0.0, 0.7, 0.8 + 2 * more]))
        for device in ("1", "2") if number < 2 else ():
            cells.append(cell("apart", "local-only", seed, [0.0, 0.1, 0.2 * int(device) + more], device=device))
    return result(*cells)
