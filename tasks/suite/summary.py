"""Summarise a suite's result over seeds: mean and spread of every figure, and each federation beside its references.

Figures are those of the last round, at which all runs of an experiment have seen the same number of images. The spread
is the sample standard deviation over seeds (divisor n − 1); one seed has none. For *local only*, each seed's value is
the mean over devices. A seed at which a device is missing is left out, because its mean would be over other devices.
"""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from tasks.spec.federation import MapName
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, Point, SuiteResult
from tasks.spec.training import ScoredOn
from tasks.suite.results import FIGURES

ROLES: tuple[Role, ...] = ("centralised", "federated", "local-only")


@dataclass(frozen=True)
class Spread:
    """Values over seeds: ``sd`` is the sample standard deviation, None with one value."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def sd(self) -> float | None:
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def least(self) -> float:
        return min(self.values)

    @property
    def greatest(self) -> float:
        return max(self.values)


def spread_of(values: Iterable[float | None]) -> Spread | None:
    """Return the spread of the values that are not None; None if there are none."""
    present = tuple(value for value in values if value is not None)
    return Spread(present) if present else None


@dataclass(frozen=True)
class Row:
    """One role of an experiment, or one ``device`` of its local-only role.

    figures: at the last round, by name.
    best: the suite's metric in each run's best round. That round is chosen by test figures, so the value is too
        good, unless ``chosen_by`` is ``holdout``: then held-out images choose it.
    on: the images of the figures.
    own: the suite's metric of clients' own models at the last round: their mean, worst and deviation over clients.
    reached: number of runs that reached the target.
    rounds_to_target: over these runs only.
    seconds, moved, gpu_seconds: costs of a run; for local only, the mean over devices.
    exchanged: likewise; None for references, which need not send weights.
    """

    experiment: str
    role: Role
    device: str | None
    devices: tuple[str, ...]
    clients: int
    seeds: tuple[int, ...]
    runs: int
    rounds: Spread
    passes: Spread
    figures: dict[str, Spread | None]
    best: Spread | None
    on: ScoredOn
    chosen_by: ScoredOn
    per_class: dict[str, Spread | None]
    per_client: dict[str, dict[str, Spread | None]]
    own: dict[str, Spread | None]
    rounds_to_target: Spread | None
    reached: int
    seconds: Spread
    exchanged: Spread | None
    moved: Spread
    gpu_seconds: Spread


@dataclass(frozen=True)
class Paired:
    """A federation less another one or a reference, by seed, after the number of image passes that both have taken."""

    difference: Spread
    passes: float


@dataclass(frozen=True)
class Between:
    """The roles of an experiment.

    gap: the federation less the centralised reference, mostly negative.
    gain: the federation less local only.
    """

    experiment: str
    rows: dict[Role, Row]
    devices: tuple[Row, ...]
    gap: Paired | None
    gain: Paired | None


@dataclass(frozen=True)
class Summary:
    """The summary of a result, with experiments in the result's order."""

    metric: MapName
    target: float
    experiments: tuple[Between, ...]

    @property
    def rows(self) -> tuple[Row, ...]:
        """Return a row for each experiment and role: centralised, federated, local only."""
        return tuple(row for experiment in self.experiments for row in experiment.rows.values())


# The runs of a role at one seed: one run; for local only, one for each device.
Group = Sequence[CellResult]


def summarise(result: SuiteResult) -> Summary:
    """Return mean and spread over seeds of each experiment and role, and the federations' gaps and gains."""
    names = list(dict.fromkeys(cell.experiment for cell in result.cells))
    return Summary(result.metric, result.target, tuple(_between(result, name) for name in names))


def held_out_notes(summary: Summary) -> list[str]:
    """Return a line for each experiment in which held-out images chose the best round, or have the figures."""
    lines = []
    for between in summary.experiments:
        rows = between.rows.values()
        if any(row.on == "holdout" for row in rows):
            lines.append(
                f"{between.experiment}: its figures are on the clients' held-out images, not on a test set; held-out "
                "images chose the best round too. Local only is scored on the device's own"
            )
        elif any(row.chosen_by == "holdout" for row in rows):
            lines.append(f"{between.experiment}: held-out images chose the best round; its figures are on the test set")
    return lines


def by_seed(result: SuiteResult, experiment: str, role: Role) -> dict[int, list[CellResult]]:
    """Return the runs of a role by seed; for local only, only seeds that have every device, devices in one order."""
    found: dict[int, list[CellResult]] = {}
    for cell in result.cells:
        if cell.experiment == experiment and cell.role == role:
            found.setdefault(cell.seed, []).append(cell)
    devices = list(dict.fromkeys(cell.device for cells in found.values() for cell in cells))
    return {
        seed: sorted(cells, key=lambda cell: devices.index(cell.device))
        for seed, cells in found.items()
        if len(cells) == len(devices)
    }


def runs_of(result: SuiteResult, row: Row) -> list[CellResult]:
    """Return the runs that ``row`` summarises."""
    return [cell for cells in by_seed(result, row.experiment, row.role).values() for cell in cells]


def worst_class(per_class: Mapping[str, Spread | None]) -> tuple[str, Spread] | None:
    """Return the class with the lowest mean AP and its AP, the first of equals; None without any figure."""
    found = [(name, spread) for name, spread in per_class.items() if spread is not None]
    return min(found, key=lambda item: item[1].mean, default=None)


def _between(result: SuiteResult, experiment: str) -> Between:
    groups = {role: by_seed(result, experiment, role) for role in ROLES}
    rows: dict[Role, Row] = {
        role: _row(result.metric, experiment, role, None, found) for role, found in groups.items() if found
    }
    alone: dict[str, dict[int, Group]] = {}
    for cell in result.cells:
        if cell.experiment == experiment and cell.role == "local-only" and cell.device is not None:
            alone.setdefault(cell.device, {})[cell.seed] = [cell]
    return Between(
        experiment=experiment,
        rows=rows,
        devices=tuple(_row(result.metric, experiment, "local-only", device, found) for device, found in alone.items()),
        gap=paired_runs(result.metric, groups["federated"], groups["centralised"]),
        gain=paired_runs(result.metric, groups["federated"], groups["local-only"]),
    )


def _row(metric: MapName, experiment: str, role: Role, device: str | None, groups: Mapping[int, Group]) -> Row:
    runs = [cell for group in groups.values() for cell in group]

    def spread(value_of: Callable[[CellResult], float | None]) -> Spread | None:
        return spread_of(_mean(map(value_of, group)) for group in groups.values())

    def spreads(values_of: Callable[[CellResult], Mapping[str, float | None]]) -> dict[str, Spread | None]:
        names = dict.fromkeys(name for cell in runs for name in values_of(cell))
        return {
            name: spread_of(_mean(values_of(cell).get(name) for cell in group) for group in groups.values())
            for name in names
        }

    def cost(value_of: Callable[[CellResult], float]) -> Spread:
        return Spread(tuple(statistics.fmean(map(value_of, group)) for group in groups.values()))

    clients = list(dict.fromkeys(client for cell in runs for client in cell.per_client))
    return Row(
        experiment=experiment,
        role=role,
        device=device,
        devices=tuple(dict.fromkeys(cell.device for cell in runs if cell.device is not None)),
        clients=max(cell.clients for cell in runs),
        seeds=tuple(groups),
        runs=len(runs),
        rounds=cost(lambda cell: cell.last.round),
        passes=cost(lambda cell: cell.last.passes),
        figures=dict.fromkeys(FIGURES) | spreads(lambda cell: cell.last.figures),
        best=spread(lambda cell: _best(cell, metric)),
        on="holdout" if any(cell.on == "holdout" for cell in runs) else "test",
        chosen_by="holdout" if any(cell.best_round is not None for cell in runs) else "test",
        per_class=spreads(lambda cell: cell.per_class),
        per_client={client: spreads(functools.partial(_figures_of, client=client)) for client in clients},
        own=spreads(functools.partial(_own_models, metric=metric)),
        rounds_to_target=spread_of(cell.rounds_to_target for cell in runs),
        reached=sum(cell.rounds_to_target is not None for cell in runs),
        seconds=cost(lambda cell: cell.last.seconds),
        exchanged=cost(lambda cell: cell.last.exchanged) if role == "federated" else None,
        moved=cost(lambda cell: cell.moved),
        gpu_seconds=cost(lambda cell: cell.gpu_seconds),
    )


def paired_runs(metric: MapName, federated: Mapping[int, Group], reference: Mapping[int, Group]) -> Paired | None:
    """Return the federation's ``metric`` less that of the reference, for seeds that have both; None if none has.

    federated, reference: runs by seed (:func:`by_seed`).
    """
    differences: list[float] = []
    common: list[float] = []
    for seed in (seed for seed in federated if seed in reference):
        run = federated[seed][0]
        values = []
        for other in reference[seed]:
            passes = min(run.last.passes, other.last.passes)
            mine, theirs = (_after(cell, passes).figures.get(metric) for cell in (run, other))
            if mine is None or theirs is None:
                break
            values.append(mine - theirs)
            common.append(passes)
        else:
            differences.append(statistics.fmean(values))
    return Paired(Spread(tuple(differences)), min(common)) if differences else None


def _after(cell: CellResult, passes: float) -> Point:
    """Return the last round of ``cell`` that had taken at most ``passes`` image passes."""
    return [point for point in cell.points if point.passes <= passes * (1 + 1e-9)][-1]


def _figures_of(cell: CellResult, client: str) -> Mapping[str, float | None]:
    return cell.per_client.get(client, {})


def _own_models(cell: CellResult, metric: MapName) -> dict[str, float | None]:
    spread = cell.personal.figures.get(metric) if cell.personal is not None else None
    if spread is None:
        return {}
    return {"mean": spread.mean, "worst": spread.worst, "deviation": spread.deviation}


def _best(cell: CellResult, metric: MapName) -> float | None:
    """Return the metric in the run's best round, which held-out images choose if they decide."""
    values = [value for point in _candidates(cell) if (value := point.figures.get(metric)) is not None]
    return max(values, default=None)


def _candidates(cell: CellResult) -> Sequence[Point]:
    return [point for point in cell.points if cell.best_round in (None, point.round)]


def _mean(values: Iterable[float | None]) -> float | None:
    """Return the mean; None if a value is None, because a mean over other devices could not be compared."""
    found = list(values)
    present = [value for value in found if value is not None]
    return statistics.fmean(present) if len(present) == len(found) else None
