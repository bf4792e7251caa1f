"""A suite's figures over its seeds for MLflow's parent run: curves by round, and the description."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from flows.views.mlflow_figures import SECTION
from infra.tracking.client import metric_part
from infra.tracking.federation import RoundFigures
from tasks.plain_text import markdown
from tasks.report.text import figure
from tasks.spec.federation import MAP_NAMES, MapName
from tasks.spec.suite import Cell, Role, SuiteSpec
from tasks.spec.suite_records import CellResult, Point
from tasks.suite.results import FIGURES
from tasks.suite.summary import spread_of

Group = tuple[str, Role]  # an experiment, or one of its references
_LABELS: dict[Role, str] = {"federated": "", "centralised": " centralised", "local-only": " local only"}
_EPOCH = datetime.fromtimestamp(0, UTC)
MOST_CHARTED = 20


def whole_groups(planned: Iterable[Cell], cells: Iterable[CellResult]) -> list[CellResult]:
    """Return those of ``cells`` whose experiment and role has all of its ``planned`` cells among them."""
    cells = list(cells)
    done = {cell.name for cell in cells}
    open_groups = {(cell.experiment, cell.role) for cell in planned if cell.name not in done}
    return [cell for cell in cells if (cell.experiment, cell.role) not in open_groups]


def curves_over_seeds(cells: Iterable[CellResult]) -> list[RoundFigures]:
    """Return mean and sample standard deviation over seeds by round, for each experiment, role and figure.

    As ``average_precision/map50_voc10/laptop mean`` and ``over_seeds/recall/laptop centralised deviation``. A round's
    mean is over the seeds that reached it; their number is ``over_seeds/seeds/laptop``. A seed's local-only value is
    the mean over devices. A seed at which a device is missing is left out.
    """
    rounds: dict[int, dict[str, float | None]] = {}
    times: dict[int, datetime] = {}
    for group, seeds in _by_seed(cells).items():
        label, devices_each = _label(group), max(map(len, seeds.values()))
        for number in sorted({number for devices in seeds.values() for points in devices for number in points}):
            at_round = [
                [points[number] for points in devices]
                for devices in seeds.values()
                if len(devices) == devices_each and all(number in points for points in devices)
            ]
            values = rounds.setdefault(number, {})
            values[f"over_seeds/seeds/{metric_part(label)}"] = float(len(at_round))
            for name in FIGURES:
                spread = spread_of(_mean(point.figures.get(name) for point in points) for points in at_round)
                if spread is not None:
                    values[curve(name, label, "mean")] = spread.mean
                    values[curve(name, label, "deviation")] = spread.sd
            committed = [point.committed for points in at_round for point in points if point.committed is not None]
            times[number] = max([times.get(number, _EPOCH), *committed])
    return [RoundFigures(number, times[number], figures) for number, figures in sorted(rounds.items())]


def charted(cells: Iterable[CellResult], metric: MapName) -> list[str]:
    """Return the names of the mean curves of ``metric`` of the federations, at most ``MOST_CHARTED``."""
    labels = dict.fromkeys(cell.experiment for cell in cells if cell.role == "federated")
    return [curve(metric, label, "mean") for label in labels][:MOST_CHARTED]


def curve(name: str, label: str, what: str) -> str:
    """Return the name of a figure's curve in MLflow."""
    section = SECTION if name in MAP_NAMES else "over_seeds"
    return f"{section}/{name}/{metric_part(f'{label} {what}')}"


def suite_description(suite: SuiteSpec, planned: Sequence[Cell], cells: Sequence[CellResult]) -> str:
    """Return the description (Markdown) of a suite's run: how many cells are done, and the figures so far."""
    metric = suite.metric
    lines = [f"Suite {markdown(suite.name)}: {len(cells)} of {len(planned)} cells done.", ""]
    lines += [f"| experiment | seeds | {metric}, last round |", "| --- | ---: | ---: |"]
    for group, seeds in _by_seed(cells).items():
        spread = spread_of(
            _mean(points[max(points)].figures.get(metric) for points in devices) for devices in seeds.values()
        )
        lines.append(f"| {markdown(_label(group))} | {len(seeds)} | {markdown(figure(spread))} |")
    return "\n".join(lines) + "\n"


def _by_seed(cells: Iterable[CellResult]) -> dict[Group, dict[int, list[Mapping[int, Point]]]]:
    """Return the points of each seed of each group, by round: one mapping for each device."""
    found: dict[Group, dict[int, list[Mapping[int, Point]]]] = {}
    for cell in cells:
        seeds = found.setdefault((cell.experiment, cell.role), {})
        seeds.setdefault(cell.seed, []).append({point.round: point for point in cell.points})
    return found


def _label(group: Group) -> str:
    return f"{group[0]}{_LABELS[group[1]]}"


def _mean(values: Iterable[float | None]) -> float | None:
    present = list(values)
    return None if any(value is None for value in present) else statistics.fmean(value or 0.0 for value in present)
