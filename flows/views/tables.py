"""Tables for a terminal: one row for each round, or for each class of one round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tasks.plain_text import plain_name
from tasks.spec.federation import MAP_NAMES, FederationSpec
from tasks.spec.records import Decision, RoundRecord


def describe(spec: FederationSpec) -> str:
    """Return one line: data, detector, clients, local epochs, strategy."""
    clients = "all clients" if spec.clients is None else f"{len(spec.clients)} clients"
    if spec.data.pooled:
        clients = "centralised"
    epochs = spec.training.local_epochs
    return (
        f"{spec.data.kind} · {spec.detector.kind} {spec.detector.width}x{spec.detector.height} · {clients} · "
        f"{epochs} local epoch{'s' if epochs > 1 else ''} · {spec.strategy.kind}"
    )


def round_table(records: Sequence[RoundRecord], *, wide: bool = False) -> Table:
    """Return one row a round: clients (updates / cohort), losses, VOC 2010 mAP at IoU 0.5, recall, MB, seconds.

    A ``wide`` table has all four mAPs, in at most 100 columns. If the metric that decides the best round has a column,
    its best figure is bold. A dash stands for null in the record.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    maps = MAP_NAMES if wide else MAP_NAMES[:1]
    before, after = ("round", "clients", "train loss", "test loss"), ("recall", "MB up", "MB down", "s")
    for header in (*before, *maps, *after):
        table.add_column(_two_lines(header) if wide else header, justify="right", no_wrap=True)
    metric = records[-1].decision.best_metric if records else MAP_NAMES[0]
    scores = [getattr(record.metrics, metric) for record in records]
    best = max((score for score in scores if score is not None), default=None)
    for record, score in zip(records, scores, strict=True):
        metrics = record.metrics
        cohort = len(record.plan.cohort) if record.plan else 0
        short = len(record.updates) < cohort
        is_best = best is not None and score == best
        table.add_row(
            str(record.round),
            Text(f"{len(record.updates)}/{cohort}" if cohort else "-", "yellow" if short else ""),
            number_of(metrics.train_loss),
            number_of(metrics.loss),
            *(
                Text(number_of(getattr(metrics, name)), "bold green" if is_best and name == metric else "")
                for name in maps
            ),
            number_of(metrics.recall),
            megabytes(record.bytes_up),
            megabytes(record.bytes_down),
            f"{sum(record.seconds.values()):.1f}",
        )
    return table


def class_table(record: RoundRecord) -> Table:
    """Return one row for each class of a round: its test objects, and the global model's AP and recall on them."""
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class")
    for header in ("test objects", "AP50 voc10", "AP coco", "recall"):
        table.add_column(header, justify="right", no_wrap=True)
    metrics, objects = record.metrics, Counter[str]()
    for evaluation in record.evaluations:
        objects.update(evaluation.objects)
    for name, score in metrics.per_class.items():
        table.add_row(
            Text(plain_name(name)),
            str(objects[name]) if objects else "-",
            number_of(score),
            number_of(metrics.per_class_coco.get(name)),
            number_of(metrics.per_class_recall.get(name)),
        )
    return table


def best_line(decision: Decision) -> str | None:
    """Return ``round 5, map50_voc10 0.554``; None before any round has a figure."""
    return None if decision.best is None else f"round {decision.best_round}, {decision.best_metric} {decision.best:.3f}"


def _two_lines(header: str) -> str:
    """Break a header such as ``map50_voc10`` or ``train loss`` into two lines."""
    return header.replace("_", "\n").replace(" ", "\n")


def number_of(value: float | None) -> str:
    """Return ``value`` with three decimals; a dash for None, which is null in the record."""
    return "-" if value is None else f"{value:.3f}"


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
