"""Turn the records of a run into its part of a suite's result."""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Sequence

from tasks.errors import FedbenchError
from tasks.metrics.over_rounds import best_round, costs_by_round
from tasks.spec.base import MOST_SECONDS
from tasks.spec.federation import MAP_NAMES, MapName
from tasks.spec.records import EvaluationRecord, Metrics, RoundRecord
from tasks.spec.suite import Cell
from tasks.spec.suite_records import CellResult, Point

# The figures of each round's point, and those of each client in the last round.
FIGURES: tuple[str, ...] = (*MAP_NAMES, "recall", "loss", "train_loss")
CLIENT_FIGURES: tuple[str, ...] = (*MAP_NAMES, "recall", "loss")


def cell_result(
    cell: Cell,
    federation: str,
    records: Sequence[RoundRecord],
    *,
    metric: MapName,
    target: float,
    mlflow_url: str | None = None,
) -> CellResult:
    """Return the result of ``cell`` from ``records``: all rounds, from 0, of the ``federation`` that ran it.

    Raises:
        FedbenchError: there are no records, or a round is missing before the last.
    """
    records = sorted(records, key=lambda record: record.round)
    numbers = [record.round for record in records]
    if not records or numbers != list(range(len(records))):
        found = ", ".join(map(str, numbers)) or "none"
        raise FedbenchError(f"{federation}: expected committed rounds from 0 to the last, found {found}")
    costs = costs_by_round(records, cell.spec.training.local_epochs)
    points = tuple(
        Point(
            round=record.round,
            figures={name: getattr(record.shown, name) for name in FIGURES},
            passes=spent.passes,
            seconds=spent.seconds,
            exchanged=spent.exchanged,
            steps=steps,
            committed=record.committed,
        )
        for record, spent, steps in zip(records, costs, _steps(records), strict=True)
    )
    last = records[-1]
    held_out = [record.figures_on("holdout") for record in records]
    return CellResult(
        experiment=cell.experiment,
        role=cell.role,
        seed=cell.seed,
        device=cell.device,
        spec_digest=cell.spec.digest,
        federation=federation,
        clients=max(1, len(last.clients)),
        points=points,
        per_class=last.shown.per_class,
        per_client=_per_client(
            last.evaluations_on(last.shown_on) or [item for item in last.personal if item.on == last.shown_on]
        ),
        personal=last.metrics.on(last.shown_on).personal,
        on=last.shown_on,
        best_round=best_round(held_out, metric)[0] if cell.spec.evaluation.decides == "holdout" else None,
        rounds_to_target=_first_at([record.shown for record in records], metric, target),
        moved=costs[-1].moved,
        gpu_seconds=_turn_seconds(records) if cell.spec.training.device == "cuda" else 0.0,
        hosts=_hosts(records),
        mlflow_url=mlflow_url,
    )


def _steps(records: Sequence[RoundRecord]) -> list[float]:
    """Return the optimiser steps up to each round. A round's are the mean over updates, weighted by training images.

    So a federation's steps and those of its centralised twin compare: averaging does not add up steps.
    """
    total, steps = 0.0, []
    for record in records:
        if record.updates:
            sizes = [update.train_size for update in record.updates]
            total += statistics.fmean([update.steps for update in record.updates], sizes)
        steps.append(total)
    return steps


def _hosts(records: Sequence[RoundRecord]) -> tuple[str, ...]:
    """Return a digest of the name of each machine that had a client."""
    names = {info.host for record in records for info in record.clients}
    names |= {update.host for record in records for update in record.updates}
    return tuple(sorted({hashlib.sha256(name.encode()).hexdigest()[:8] for name in names}))


def _first_at(history: Sequence[Metrics], metric: MapName, target: float) -> int | None:
    """Return the number of the first round whose ``metric`` is at least ``target``; None if no round is."""
    values = [getattr(metrics, metric) for metrics in history]
    return next((number for number, value in enumerate(values) if value is not None and value >= target), None)


def _per_client(evaluations: Sequence[EvaluationRecord]) -> dict[str, dict[str, float | None]]:
    """Return the figures by client; empty if all clients were scored on one test set."""
    if len({evaluation.test_digest for evaluation in evaluations}) < 2:
        return {}
    return {
        client: {name: getattr(evaluation, name) for name in CLIENT_FIGURES}
        for evaluation in evaluations
        for client in evaluation.clients
    }


def _turn_seconds(records: Sequence[RoundRecord]) -> float:
    """Return the seconds of all training and evaluation turns, at most as many as a record can hold.

    Clients report the seconds of their updates themselves, so the sum could exceed a record's bound.
    """
    updates = sum(update.seconds for record in records for update in record.updates)
    evaluations = sum(evaluation.seconds for record in records for evaluation in record.evaluations)
    return min(updates + evaluations, MOST_SECONDS)
