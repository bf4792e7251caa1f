"""Tables for a terminal: one row for each round, or for each class of one round."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tasks.plain_text import plain_name
from tasks.spec.federation import MAP_NAMES, FederationSpec
from tasks.spec.plans import PARTS
from tasks.spec.records import Decision, FineTunedRecord, PersonalMetrics, RoundRecord
from tasks.spec.training import PART_NAMES


def describe(spec: FederationSpec) -> str:
    """Return one line: data, detector, clients, local epochs, and the method with the fields that are not defaults."""
    clients = "all clients" if spec.clients is None else f"{len(spec.clients)} clients"
    if spec.data.pooled:
        clients = "centralised"
    epochs = spec.training.local_epochs
    return (
        f"{spec.data.kind} · {spec.detector.kind} {spec.detector.width}x{spec.detector.height} · {clients} · "
        f"{epochs} local epoch{'s' if epochs > 1 else ''} · {spec.strategy.label}"
    )


def round_table(records: Sequence[RoundRecord], *, wide: bool = False) -> Table:
    """Return one row a round: clients (updates / cohort), losses, VOC 2010 mAP at IoU 0.5, recall, MB, seconds.

    A ``wide`` table has all four mAPs, in at most 100 columns. If the rounds scored test sets and held-out images, the
    latter's loss and deciding metric follow. If the metric that decides the best round has a column, its best figure is
    bold. A dash stands for null in the record.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    maps = MAP_NAMES if wide else MAP_NAMES[:1]
    decision = records[-1].decision if records else None
    metric, decides = (decision.best_metric, decision.on) if decision is not None else (MAP_NAMES[0], PARTS[0])
    scored = [part for part in PARTS if any(part in record.scored_on for record in records)] or [decides]
    first, others = scored[0], scored[1:]
    name = PART_NAMES[first]
    before = ("round", "clients", "train loss", f"{name} loss")
    after = ("recall", *(f"{PART_NAMES[part]} {what}" for part in others for what in ("loss", metric)))
    heads = [*before, *(maps if first == "test" else (f"{name} {map_}" for map_ in maps)), *after]
    for header in (*heads, "MB up", "MB down", "s"):
        narrow = wide or header.startswith(PART_NAMES["holdout"])
        table.add_column(_two_lines(header) if narrow else header, justify="right", no_wrap=True)
    scores = [getattr(record.figures_on(decides), metric) for record in records]
    best = max((score for score in scores if score is not None), default=None)
    for record, score in zip(records, scores, strict=True):
        metrics = record.figures_on(first)
        cohort = len(record.plan.cohort) if record.plan else 0
        short = len(record.updates) < cohort
        strong = "bold green" if best is not None and score == best else ""
        table.add_row(
            str(record.round),
            Text(f"{len(record.updates)}/{cohort}" if cohort else "-", "yellow" if short else ""),
            number_of(record.metrics.train_loss),
            number_of(metrics.loss),
            *(
                Text(number_of(getattr(metrics, map_)), strong if (first, map_) == (decides, metric) else "")
                for map_ in maps
            ),
            number_of(metrics.recall),
            *(
                Text(number_of(getattr(record.figures_on(part), what)), strong if what == metric else "")
                for part in others
                for what in ("loss", metric)
            ),
            megabytes(record.bytes_up),
            megabytes(record.bytes_down),
            f"{sum(record.seconds.values()):.1f}",
        )
    return table


def own_table(records: Sequence[RoundRecord]) -> Table | None:
    """Return one row a round with the figures of the clients' own models; None if the method keeps none.

    They are on the images that decide: the mean over clients, the worst client's, and the standard deviation.
    """
    shown = [(record.round, record.metrics.on(record.decision.on).personal) for record in records]
    if not any(own is not None for _, own in shown):
        return None
    metric = records[-1].decision.best_metric
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for header in ("own models", "clients", "mean loss", f"mean {metric}", "worst", "client", "deviation"):
        table.add_column(header, justify="right", no_wrap=True)
    for number, own in shown:
        if own is not None:
            spread = own.figures.get(metric)
            cells = ("-",) * 4
            if spread is not None:
                cells = (
                    number_of(spread.mean), number_of(spread.worst), spread.worst_client, number_of(spread.deviation)
                )  # fmt: skip
            table.add_row(f"round {number}", str(own.clients), number_of(own.mean("loss")), *cells)
    return table


def own_line(own: PersonalMetrics, metric: str) -> str:
    """Return one line on the clients' own models: the mean over clients, the worst client, and the deviation."""
    spread = own.figures.get(metric)
    where = ", on the common test set" if own.common else ""
    if spread is None:
        return f"no {metric} at {own.clients} clients{where}"
    return (
        f"{metric} mean {spread.mean:.3f}, worst {spread.worst:.3f} (client {spread.worst_client}), deviation "
        f"{spread.deviation:.3f} over {spread.clients} clients{where}"
    )


def own_lines(records: Sequence[RoundRecord], tuned: FineTunedRecord | None = None) -> list[str]:
    """Return lines on the clients' own models in the best round, and on their fine-tuned models; none without any."""
    decision, lines = records[-1].decision, []
    best = records[decision.best_round].metrics.on(decision.on).personal
    if best is not None:
        lines.append(f"own models, round {decision.best_round}: {own_line(best, decision.best_metric)}")
    if tuned is not None and tuned.shown is not None:
        lines.append(f"fine-tuned, after round {tuned.round}: {own_line(tuned.shown, decision.best_metric)}")
    return lines


def class_table(record: RoundRecord) -> Table:
    """Return one row for each class of a round: its test objects, and the global model's AP and recall on them.

    If the round scored no test set, the objects are those of held-out images.
    """
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("class")
    for header in (f"{PART_NAMES[record.shown_on]} objects", "AP50 voc10", "AP coco", "recall"):
        table.add_column(header, justify="right", no_wrap=True)
    metrics, objects = record.shown, Counter[str]()
    for evaluation in record.evaluations_on(record.shown_on):
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
    """Return ``round 5, map50_voc10 0.554``; None before any round has a figure.

    ``round 5, held-out map50_voc10 0.554``: the figures on held-out images decided.
    """
    return None if decision.best is None else f"round {decision.best_round}, {decision.best_name} {decision.best:.3f}"


def _two_lines(header: str) -> str:
    """Break a header such as ``map50_voc10`` or ``train loss`` into two lines."""
    return header.replace("_", "\n").replace(" ", "\n")


def number_of(value: float | None) -> str:
    """Return ``value`` with three decimals; a dash for None, which is null in the record."""
    return "-" if value is None else f"{value:.3f}"


def bytes_note(records: Sequence[RoundRecord]) -> str | None:
    """Return a line that explains the columns of bytes, with the bytes that clients exchanged; None before round 1."""
    exchanged = sum(update.bytes_up + update.bytes_down for record in records for update in record.updates)
    if not exchanged:
        return None
    return (
        "MB up, MB down: to the store and from it; a model that this machine's cache has does not come again. "
        f"In all, the clients needed and sent {megabytes(exchanged)} MB."
    )


def megabytes(size: int) -> str:
    return f"{size / 1e6:.1f}"
