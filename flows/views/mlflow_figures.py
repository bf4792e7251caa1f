"""The figures of rounds and of suites, by their names in MLflow."""

from __future__ import annotations

import math

from flows.views.mlflow_texts import cell_title
from infra.tracking.client import metric_part
from infra.tracking.federation import RoundFigures
from infra.tracking.suite import CellFigures, SuiteFigures
from tasks.spec.federation import MAP_NAMES, FederationSpec
from tasks.spec.plans import PARTS
from tasks.spec.records import PERSONAL_FIGURES, PersonalMetrics, RoundRecord
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.suite_records import CellResult, SuiteResult

SECTION = "average_precision"


def round_figures(record: RoundRecord) -> RoundFigures:
    """Return the figures of a committed round; MLflow's page makes a section of each prefix before a slash.

    ``average_precision/*`` are the run's mAPs whatever its method and data: of the shared model, else the mean over the
    clients' own models; on the test sets, else on held-out images. MLflow sorts sections by name, so they come first.
    Losses are means per image, ``seconds/*`` wall time, ``bytes/*`` totals over the cohort, ``class/*`` VOC 2010
    AP at IoU 0.5, ``class_coco/*`` COCO AP at IoU 0.50 to 0.95, ``class_recall/*`` recall. ``holdout/*`` are the global
    model's figures on held-out images, and ``client/*/holdout_*`` each client's. ``best/*`` are of the images that
    decide the best round. ``own_models/*`` are means over the clients' own models, the worst client's figures and the
    standard deviations, and ``client/*/own_*`` each client's. A value that is None in the record is left out.
    """
    metrics, decision = record.metrics, record.decision
    values: dict[str, float | None] = {
        **{f"{SECTION}/{name}": getattr(record.shown, name) for name in MAP_NAMES},
        "train/loss": metrics.train_loss,
        **{f"global/{name}": getattr(metrics, name) for name in ("loss", *MAP_NAMES, "recall")},
        **{f"holdout/{name}": getattr(metrics.on("holdout"), name) for name in ("loss", *MAP_NAMES, "recall")},
        **{f"unweighted/{_unweighted_part(name)}": value for name, value in metrics.unweighted.items()},
        **{f"class/{metric_part(name)}": value for name, value in metrics.per_class.items()},
        **{f"class_coco/{metric_part(name)}": value for name, value in metrics.per_class_coco.items()},
        **{f"class_recall/{metric_part(name)}": value for name, value in metrics.per_class_recall.items()},
        "best/round": decision.best_round,
        "best/map50_voc10": decision.best_map50_voc10,
        "bytes/up": record.bytes_up,
        "bytes/down": record.bytes_down,
        **{f"seconds/{metric_part(phase)}": value for phase, value in record.seconds.items()},
        "seconds/round": sum(record.seconds.values()),
        "clients/ready": len(record.clients),
        "clients/updates": len(record.updates),
        "clients/dropped": len(record.dropped),
    }
    if decision.best_metric != "map50_voc10":
        values[f"best/{decision.best_metric}"] = decision.best_value
    if record.plan is not None:
        values["clients/cohort"] = len(record.plan.cohort)
        values["train/learning_rate"] = record.plan.learning_rate
    for update in record.updates:
        client = f"client/{update.client}"
        values[f"{client}/loss"] = update.train_loss
        values[f"{client}/images"] = update.train_size
        values[f"{client}/seconds"] = update.seconds
    tests = record.evaluations_on("test")
    if len(tests) > 1:  # one shared test set: the same figures as global/*
        for evaluation in tests:
            for client in evaluation.clients:
                values[f"client/{client}/test_loss"] = evaluation.loss
                values |= {f"client/{client}/{name}": getattr(evaluation, name) for name in (*MAP_NAMES, "recall")}
    for evaluation in record.evaluations_on("holdout"):
        for client in evaluation.clients:
            of_client = {name: getattr(evaluation, name) for name in ("loss", *MAP_NAMES, "recall")}
            values |= {f"client/{client}/holdout_{name}": value for name, value in of_client.items()}
            values[f"client/{client}/holdout_images"] = evaluation.test_size
    for part in PARTS:
        prefix = "" if part == "test" else f"{part}_"
        personal = metrics.on(part).personal
        values |= own_figures(personal, f"own_models_{prefix}".rstrip("_"))
        for evaluation in record.personal:
            if evaluation.on == part:
                client = f"client/{evaluation.clients[0]}/own_{prefix}"
                values |= {f"{client}{name}": getattr(evaluation, name) for name in PERSONAL_FIGURES}
    figures = {name: float(value) for name, value in values.items() if value is not None}
    return RoundFigures(record.round, record.committed, figures)


def own_figures(own: PersonalMetrics | None, prefix: str) -> dict[str, float | None]:
    """Return the figures of clients' own models, as ``own_models/map50_voc10`` (the mean over clients) and ``…_worst``.

    ``…_deviation`` is the standard deviation over clients.
    """
    values: dict[str, float | None] = {}
    for name, spread in own.figures.items() if own is not None else ():
        values[f"{prefix}/{name}"] = spread.mean
        values[f"{prefix}/{name}_worst"] = spread.worst
        values[f"{prefix}/{name}_deviation"] = spread.deviation
    return values


def method_tags(spec: FederationSpec) -> dict[str, str]:
    """Return a tag with the federated method and the fields that are not defaults; none for plain FedAvg."""
    return {} if spec.strategy == FedAvgSpec() else {"fedbench.method": spec.strategy.label}


def suite_figures(result: SuiteResult) -> SuiteFigures:
    """Return the figures of a suite run and of its cells' last rounds."""
    return SuiteFigures(
        suite_run=result.suite_run,
        tags=suite_tags(result.suite, result.suite_digest, result.code_version),
        figures=_summary(result),
        cells=[_cell_figures(result, cell) for cell in result.cells],
        sorted_by=f"final/{result.metric}",
        complete=not (result.failed or result.missing),
    )


def suite_tags(suite: str, digest: str, code: str) -> dict[str, str]:
    """Return the tags of a suite's run."""
    return {"fedbench.suite": suite, "fedbench.suite_digest": digest, "fedbench.code_version": code}


def _cell_figures(result: SuiteResult, cell: CellResult) -> CellFigures:
    last = cell.points[-1]
    values: dict[str, float | None] = {
        **{f"final/{name}": value for name, value in last.figures.items()},
        "final/rounds": last.round,
        "final/passes": last.passes,
        "final/seconds": last.seconds,
        "final/exchanged_bytes": last.exchanged,
        "final/gpu_seconds": cell.gpu_seconds,
        "final/rounds_to_target": cell.rounds_to_target,
    }
    tags = {
        "fedbench.suite": result.suite,
        "fedbench.cell": cell.name,
        "fedbench.experiment": cell.experiment,
        "fedbench.role": cell.role,
        "fedbench.seed": str(cell.seed),
        **({"fedbench.device": cell.device} if cell.device is not None else {}),
    }
    spec = result.specs.get(cell.experiment)
    if spec is not None and cell.role == "federated":
        tags |= method_tags(spec)
    figures = {name: float(value) for name, value in values.items() if value is not None}
    title = cell_title(cell.experiment, cell.role, cell.seed, cell.device)
    return CellFigures(federation=cell.federation, name=title, tags=tags, figures=figures)


def _summary(result: SuiteResult) -> dict[str, float]:
    """Return the suite's metric by experiment and role, its mean over seeds and devices; and the numbers of cells."""
    values: dict[str, list[float]] = {}
    for cell in result.cells:
        value = cell.points[-1].figures.get(result.metric)
        if value is not None:
            values.setdefault(f"{cell.experiment}/{cell.role}/{result.metric}", []).append(value)
    means = {name: math.fsum(found) / len(found) for name, found in values.items()}
    counts = {"done": len(result.cells), "failed": len(result.failed), "missing": len(result.missing)}
    return means | {f"cells/{name}": float(count) for name, count in counts.items()}


def _unweighted_part(name: str) -> str:
    """Return ``name`` as part of a metric's name: ``loss``, or ``per_class_car`` for the figure ``per_class/car``."""
    figure, slash, class_name = name.partition("/")
    return f"{figure}_{metric_part(class_name)}" if slash else metric_part(figure)
