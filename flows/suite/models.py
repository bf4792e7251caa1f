"""Register the best model of each experiment of a suite. The models of its other cells stay in the store alone."""

from __future__ import annotations

from collections.abc import Sequence

from flows.stored.runs import read_run
from flows.suite.handles import SuiteHandles
from flows.views.registration import Trained, best_figure, best_record, register
from infra.settings import run_folder
from infra.store.weights import WeightStore
from infra.tracking.federation import find_tracker
from infra.tracking.registry import registered_version
from tasks.spec.federation import MapName
from tasks.spec.suite_records import CellResult, SuiteResult


def register_best_models(handles: SuiteHandles, result: SuiteResult) -> None:
    """Register the model of the best federation of each experiment, by the suite's metric. Failures are noted.

    Methods without a complete shared model have none, and cells imported from another store left theirs there.
    """
    for experiment in handles.plan.suite.experiments:
        cells = [
            cell
            for cell in result.cells
            if cell.experiment == experiment.name and cell.role == "federated" and cell.machine is None
        ]
        best = best_cell(cells, result.metric)
        if best is not None and experiment.spec.strategy.shared_model:
            with handles.views.showing(f"registering the best model of {experiment.name}"):
                _register(handles, best, experiment.name)


def best_cell(cells: Sequence[CellResult], metric: MapName) -> CellResult | None:
    """Return the cell with the greatest ``metric`` at its best round, the first of equals; None: none has one."""
    best, greatest = None, float("-inf")
    for cell in cells:
        rounds = [point for point in cell.points if cell.best_round is None or point.round == cell.best_round]
        value = max((value for point in rounds if (value := point.figures.get(metric)) is not None), default=None)
        if value is not None and value > greatest:
            best, greatest = cell, value
    return best


def _register(handles: SuiteHandles, cell: CellResult, experiment: str) -> None:
    settings, objects = handles.settings, handles.plan.objects
    tracker = find_tracker(handles.mlflow_uri, settings.mlflow_experiment, cell.federation)
    if tracker is None:
        return  # MLflow did not answer during the run; fedbench report on the federation makes run and model
    run = read_run(objects, settings, cell.federation)
    if best_figure(run.records) is None:  # the suite's metric is not the one that the run was decided by
        return
    # Asked first, because torch, which writes the model file, takes seconds to import.
    if registered_version(tracker, cell.federation, best_record(run.records).model.sha256) is not None:
        return
    handles.say(f"registering the best model of {experiment}")
    weights = WeightStore(objects, settings.home / "cache" / "weights", settings.weight_cache_megabytes)
    tags = {"fedbench.suite": handles.plan.suite.name, "fedbench.experiment": experiment}
    folder = run_folder(settings, cell.federation)
    register(Trained(run.records, weights), tracker, cell.federation, run.spec, folder, tags)
