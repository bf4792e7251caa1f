"""The content of the report's tables as plain cells, independent of their form on a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tasks.plain_text import plain_name, web_address
from tasks.report import text
from tasks.spec.federation import MAP_NAMES, FederationSpec, flatten
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult, SuiteResult
from tasks.spec.training import PART_NAMES
from tasks.suite.methods import CONFIDENCE, compare_methods
from tasks.suite.summary import Between, Paired, Row, Spread, Summary, summarise

# In the order of the expected figures, lowest first.
ORDER: tuple[Role, ...] = ("local-only", "federated", "centralised")
MEASURES = (*MAP_NAMES, "recall", "loss")
# The most important fields of an experiment. Those that do not differ are listed too.
_MAIN = (
    "data.kind", "data.name", "data.split", "data.test", "data.train_images", "data.clients.kind",
    "data.clients.clients", "participation.clients", "participation.clients_per_round", "detector.kind",
    "detector.width", "detector.height", "max_rounds", "training.local_epochs", "training.batch_size",
    "training.optimizer.kind", "training.optimizer.lr", "training.device", "strategy.kind",
)  # fmt: skip


@dataclass(frozen=True)
class TableCell:
    """A cell of a table.

    ``note`` is added in smaller letters; ``strong`` emphasises the cell; ``words`` is True for text, which is aligned
    otherwise than numbers; ``link`` is the address that the text links to.
    """

    text: str
    note: str = ""
    strong: bool = False
    words: bool = False
    link: str | None = None


@dataclass(frozen=True)
class Table:
    """A table. The first cell of a row is its head; if it is empty, the head of the row above counts.

    ``cards``: the rows are few and wide, and a phone shows a row's cells below each other. ``prose``: the cells hold
    texts that may be long.
    """

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[TableCell]]
    cards: bool = False
    prose: bool = False


def main_table(summary: Summary) -> Table:
    """Return the table of each federation's metric between its references, with gap and gain, paired by seed."""
    rows = []
    for between in summary.experiments:
        cells = [TableCell(between.experiment, strong=True)]
        for role in ORDER:
            row = between.rows.get(role)
            spread = row.figures[summary.metric] if row is not None else None
            note = _n(spread) + (_devices(row, between) if row is not None and role == "local-only" else "")
            cells.append(TableCell(text.figure(spread), note, strong=role == "federated"))
        cells += [_paired(between.gap), _paired(between.gain)]
        rows.append(cells)
    head = ["experiment", "local only", "federated", "centralised", "gap to centralised", "gain over local only"]
    return Table(f"{summary.metric} at the last round", head, rows, cards=True)


def methods_table(result: SuiteResult) -> Table | None:
    """Return the table of the federated methods beside FedAvg of the same local training; None if there are none.

    The difference is that of the same seeds' runs after equal passes.
    """
    compared = compare_methods(result)
    if not compared:
        return None
    rows = [
        [
            TableCell(item.experiment, strong=item.baseline is None),
            TableCell(item.baseline or "a baseline", words=True),
            TableCell(text.figure(item.figure), _n(item.figure), strong=True),
            _paired(item.paired),
            TableCell(text.interval(item.interval)),
            TableCell(text.duration(item.seconds)),
            TableCell(text.size(item.moved)),
        ]
        for item in compared
    ]
    head = ["method", "paired with", result.metric, "difference", f"{CONFIDENCE:.0%} interval", "wall time", "moved"]
    return Table(f"Methods: {result.metric} less that of FedAvg with the same local training", head, rows, cards=True)


def measures_table(summary: Summary) -> Table:
    """Return the table of all figures at the last round, with the best round's value of the metric."""
    head = ["experiment", "role", "n", *(text.FIGURE_NAMES.get(name, name) for name in MEASURES), "best round’s"]
    rows = [
        [
            *_who(row, number),
            TableCell(str(len(row.seeds))),
            *(TableCell(text.figure(row.figures[name]), strong=name == summary.metric) for name in MEASURES),
            TableCell(text.figure(row.best)),
        ]
        for between in summary.experiments
        for number, row in enumerate(_ordered(between))
    ]
    return Table(f"All measures at the last round; beside them the best round’s {summary.metric}", head, rows)


def costs_table(summary: Summary) -> Table:
    """Return the table of a run's costs: rounds to the target, time and bytes."""
    head = [
        "experiment", "role", "rounds", "passes", "rounds to target", "reached by", "wall time", "GPU time",
        "exchanged", "moved",
    ]  # fmt: skip
    rows = []
    for between in summary.experiments:
        for number, row in enumerate(_ordered(between)):
            rows.append(
                [
                    *_who(row, number),
                    TableCell(text.count(row.rounds)),
                    TableCell(text.count(row.passes)),
                    TableCell(text.count(row.rounds_to_target)),
                    TableCell(f"{row.reached} of {row.runs}"),
                    TableCell(text.duration(row.seconds)),
                    TableCell(text.duration(row.gpu_seconds) if row.gpu_seconds.greatest else text.NONE),
                    TableCell(text.size(row.exchanged)),
                    TableCell(text.size(row.moved)),
                ]
            )
    return Table(
        f"Costs of one run, over all of its rounds; the target is {summary.metric} {summary.target:g}", head, rows
    )


def classes_table(between: Between) -> Table:
    """Return the table of every class's AP50 at the last round, by role."""
    rows = _ordered(between)
    classes = list(dict.fromkeys(name for row in rows for name in row.per_class))
    return Table(
        f"{between.experiment}: AP50 by VOC 2010 of every class, at the last round",
        ["class", *(f"{text.ROLE_NAMES[row.role]} (n\u00a0=\u00a0{len(row.seeds)})" for row in rows)],
        [
            [
                TableCell(plain_name(name)),
                *(TableCell(text.figure(row.per_class.get(name)), strong=row.role == "federated") for row in rows),
            ]
            for name in classes
        ],
    )


def devices_table(between: Between, summary: Summary) -> Table:
    """Return the table of the local-only figures of each device alone."""
    images = "its held-out" if any(row.on == "holdout" for row in between.devices) else "every device’s test"
    return Table(
        f"{between.experiment}: each device alone, scored on {images} images, at the last round",
        ["device", "n", *(text.FIGURE_NAMES.get(name, name) for name in MEASURES)],
        [
            [
                TableCell(str(row.device)),
                TableCell(str(len(row.seeds))),
                *(TableCell(text.figure(row.figures[name]), strong=name == summary.metric) for name in MEASURES),
            ]
            for row in between.devices
        ],
    )


def clients_table(row: Row, metric: str) -> Table:
    """Return the table of the global model's figures on each client's own test set or held-out images."""
    return Table(
        f"{row.experiment}: the {text.ROLE_NAMES[row.role]} model on each client’s own {PART_NAMES[row.on]} images, "
        f"at the last round; {text.plural(len(row.seeds), 'seed')}",
        ["client", *(text.FIGURE_NAMES.get(name, name) for name in MEASURES)],
        [
            [
                TableCell(client),
                *(TableCell(text.figure(figures.get(name)), strong=name == metric) for name in MEASURES),
            ]
            for client, figures in row.per_client.items()
        ],
    )


def own_models_table(summary: Summary) -> Table | None:
    """Return the table of clients' own models, by experiment; None if no method keeps any."""
    rows = [row for row in summary.rows if row.own]
    if not rows:
        return None
    return Table(
        f"Clients’ own models at the last round: {text.FIGURE_NAMES.get(summary.metric, summary.metric)} over clients",
        ["experiment", "seeds", "mean over clients", "worst client", "standard deviation"],
        [
            [
                TableCell(row.experiment, strong=True),
                TableCell(str(len(row.seeds))),
                *(TableCell(text.figure(row.own.get(name))) for name in ("mean", "worst", "deviation")),
            ]
            for row in rows
        ],
    )


def before_table(result: SuiteResult, before: SuiteResult) -> Table:
    """Return the table that compares a result with an earlier one of the same suite, by experiment and role."""
    metric = result.metric
    now, then = ({(row.experiment, row.role): row for row in summarise(one).rows} for one in (result, before))
    rows: list[list[TableCell]] = []
    for experiment in dict.fromkeys(name for name, _ in (*now, *then)):
        for role in ORDER:
            new, old = (found.get((experiment, role)) for found in (now, then))
            if new is None and old is None:
                continue
            first = not rows or all(row[0].text != experiment for row in rows)
            means = [row.figures[metric] if row is not None else None for row in (old, new)]
            change = means[1].mean - means[0].mean if means[0] and means[1] else None
            rows.append(
                [
                    TableCell(experiment if first else "", strong=True),
                    TableCell(text.ROLE_NAMES[role], words=True),
                    *(
                        cell
                        for row, mean in zip((old, new), means, strict=True)
                        for cell in (TableCell(text.figure(mean)), TableCell(str(mean.n) if mean else text.NONE))
                    ),
                    TableCell(text.NONE if change is None else text.signed_number(change), strong=True),
                ]
            )
    caption = f"{metric} at the last round, against {before.suite_run} (code {before.code_version})"
    return Table(caption, ["experiment", "role", "before", "n", "now", "n", "difference of means"], rows)


def runs_table(result: SuiteResult) -> Table:
    """Return the table of all runs."""
    head = ["run", "experiment", "role", "seed", "rounds", result.metric, "specification"]
    rows = [
        [
            TableCell(cell.federation, link=web_address(cell.mlflow_url or "")),
            TableCell(cell.experiment, words=True),
            TableCell(_role(cell), words=True),
            TableCell(str(cell.seed)),
            TableCell(str(cell.last.round)),
            TableCell(text.figure(_single(cell.last.figures.get(result.metric)))),
            TableCell(cell.spec_digest[:12], words=True),
        ]
        for cell in result.cells
    ]
    return Table("Every run, with its figure at the last round", head, rows)


def methods(specs: Mapping[str, FederationSpec]) -> list[str]:
    """Return a line for each experiment: its method with the fields that are not defaults. None if all are FedAvg."""
    if all(spec.strategy == FedAvgSpec() for spec in specs.values()):
        return []
    return [f"{name}: {spec.strategy.label}" for name, spec in specs.items()]


def common_fields(specs: Sequence[FederationSpec]) -> list[tuple[str, str]]:
    """Return the main fields, and their values, that are the same in all of ``specs``.

    All fields of a method are main fields, unless it is plain FedAvg.
    """
    flat = [_flat(spec) for spec in specs]
    names = list(_MAIN)
    if any(spec.strategy != FedAvgSpec() for spec in specs):
        names += [name for name in flat[0] if name.startswith("strategy.") and name not in _MAIN]
    return [
        (name, _value(flat[0][name]))
        for name in names
        if flat and flat[0].get(name) is not None and all(fields.get(name) == flat[0][name] for fields in flat)
    ]


def differing_fields(specs: dict[str, FederationSpec]) -> Table | None:
    """Return the table of every field in which any two experiments differ, or None if they do not differ."""
    flat = {name: _flat(spec) for name, spec in specs.items()}
    names = sorted({name for fields in flat.values() for name in fields})
    rows = []
    for name in names:
        values = [fields.get(name) for fields in flat.values()]
        if any(value != values[0] for value in values):
            rows.append([TableCell(name), *(TableCell(_value(value), words=True) for value in values)])
    if not rows:
        return None
    return Table("Where the experiments differ", ["field", *flat], rows, prose=True)


def _flat(spec: FederationSpec) -> dict[str, object]:
    return {name: value for name, value in flatten(spec.model_dump(mode="json")).items() if name != "seed"}


def _value(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return text.NONE if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _ordered(between: Between) -> list[Row]:
    return [between.rows[role] for role in ORDER if role in between.rows]


def _who(row: Row, number: int) -> list[TableCell]:
    return [
        TableCell(row.experiment if number == 0 else "", strong=True),
        TableCell(text.ROLE_NAMES[row.role], words=True),
    ]


def _role(cell: CellResult) -> str:
    return text.ROLE_NAMES[cell.role] + (f", device {cell.device}" if cell.device is not None else "")


def _n(spread: Spread | None) -> str:
    return f"n = {spread.n}" if spread is not None else ""


def _devices(row: Row, between: Between) -> str:
    """Return the number of devices in the mean, and the number of all devices if the federation has another number."""
    federated = between.rows.get("federated")
    of = f" of {federated.clients}" if federated is not None and federated.clients != len(row.devices) else ""
    return f", {len(row.devices)}{of} devices"


def _paired(paired: Paired | None) -> TableCell:
    difference = paired.difference if paired is not None else None
    return TableCell(text.signed(difference), _n(difference))


def _single(value: float | None) -> Spread | None:
    return None if value is None else Spread((value,))
