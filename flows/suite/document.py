"""What ``fedbench suite show --json`` prints. docs/json.md lists the fields."""

from __future__ import annotations

from typing import Any

from flows.views.documents import VERSION
from tasks.code_version import code_version
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.suite.summary import Paired, Row, Spread, summarise


def suite_document(result: SuiteResult) -> dict[str, Any]:
    """Return a suite run's figures over seeds by experiment and role, and those of each of its cells."""
    return {
        "version": VERSION,
        "suite_run": result.suite_run,
        "suite": result.suite,
        "digest": result.suite_digest,
        "metric": result.metric,
        "target": result.target,
        "code_version": result.code_version,
        "installed_code_version": code_version(),
        "experiments": [
            {
                "name": between.experiment,
                "method": result.specs[between.experiment].strategy.label
                if between.experiment in result.specs
                else None,
                "roles": {role: _row(row) for role, row in between.rows.items()},
                "gap": _paired(between.gap),
                "gain": _paired(between.gain),
            }
            for between in summarise(result).experiments
        ],
        "cells": [_cell(cell) for cell in result.cells],
        "failed": [{"cell": cell.cell, "reason": cell.reason} for cell in result.failed],
        "missing": list(result.missing),
    }


def _method(result: SuiteResult, experiment: str) -> str | None:
    spec = result.specs.get(experiment)  # older results have none
    return None if spec is None else spec.strategy.label


def spread_document(spread: Spread | None) -> dict[str, Any] | None:
    """Return a figure over seeds; ``sd`` is null for one seed. None for None."""
    return None if spread is None else {"mean": spread.mean, "sd": spread.sd, "n": spread.n}


def _paired(paired: Paired | None) -> dict[str, Any] | None:
    return None if paired is None else {"passes": paired.passes, "difference": spread_document(paired.difference)}


def _row(row: Row) -> dict[str, Any]:
    return {
        "clients": row.clients,
        "seeds": list(row.seeds),
        "runs": row.runs,
        "on": row.on,
        "chosen_by": row.chosen_by,
        "rounds": spread_document(row.rounds),
        "passes": spread_document(row.passes),
        "figures": {name: spread_document(spread) for name, spread in row.figures.items()},
        "best": spread_document(row.best),
        "per_class": {name: spread_document(spread) for name, spread in row.per_class.items()},
        "reached": row.reached,
        "rounds_to_target": spread_document(row.rounds_to_target),
        "seconds": spread_document(row.seconds),
        "gpu_seconds": spread_document(row.gpu_seconds),
        "exchanged_bytes": spread_document(row.exchanged),
        "moved_bytes": spread_document(row.moved),
    }


def _cell(cell: CellResult) -> dict[str, Any]:
    return {
        "name": cell.name,
        "experiment": cell.experiment,
        "role": cell.role,
        "seed": cell.seed,
        "device": cell.device,
        "federation": cell.federation,
        "digest": cell.spec_digest,
        "clients": cell.clients,
        "imported": cell.machine is not None,
        "rounds": cell.last.round,
        "on": cell.on,
        "figures": dict(cell.last.figures),
        "per_class": dict(cell.per_class),
        "rounds_to_target": cell.rounds_to_target,
        "passes": cell.last.passes,
        "seconds": cell.last.seconds,
        "gpu_seconds": cell.gpu_seconds,
        "exchanged_bytes": cell.last.exchanged,
        "moved_bytes": cell.moved,
    }
