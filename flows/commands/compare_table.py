"""The table of ``fedbench compare`` for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from flows.commands.compare import Compared
from tasks.plain_text import plain_name
from tasks.report.text import signed_number as signed
from tasks.spec.federation import MAP_NAMES, MapName
from tasks.spec.references import is_reference
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.training import PART_NAMES

# Of a smaller difference, three decimals leave one digit or none: 0.001 | 0.001 (−0.001).
SMALL = 0.0015


def comparison_table(compared: Sequence[Compared], metric: MapName) -> Table:
    """Return a table with a column for each federation.

    Brackets compare it with the first federation: by differences of figures, and by factors of costs.
    """
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", no_wrap=True)
    for item in compared:
        table.add_column(Text(item.name), justify="right", overflow="fold")
    table.add_row("state", *(item.run.status for item in compared))
    table.add_row("rounds", *(f"{item.records[-1].round}/{item.run.spec.max_rounds}" for item in compared))
    table.add_row("clients", *(_clients(item) for item in compared))
    if any(item.run.spec.strategy != FedAvgSpec() for item in compared):
        table.add_row("method", *(_method(item) for item in compared))
    table.add_row("image passes", *(f"{item.costs[-1].passes:.4g}" for item in compared))
    table.add_row("best round", *(str(item.best_round) for item in compared))
    if any(item.run.spec.evaluation.on != "test" for item in compared):
        table.add_row("chosen by", *(f"{PART_NAMES[item.run.spec.evaluation.decides]} images" for item in compared))
        table.add_row("figures on", *(f"{PART_NAMES[item.records[-1].shown_on]} images" for item in compared))
    _figures(table, f"{metric} best", [getattr(item.best, metric) for item in compared], bold=True)
    _figures(table, f"{metric} last", [getattr(item.last, metric) for item in compared])
    table.add_row(Text("at the best round", "dim"))
    others = [name for name in MAP_NAMES if name != metric]
    for name in (*others, "recall", "loss"):
        parts = dict.fromkeys(PART_NAMES[item.records[-1].shown_on] for item in compared)
        label = f"{' or '.join(parts)} loss" if name == "loss" else name
        _figures(table, label, [getattr(item.best, name) for item in compared])
    classes = list(dict.fromkeys(name for item in compared for name in item.best.per_class))
    if classes:
        table.add_row(Text("AP50 voc10 by class", "dim"))
    for name in classes:
        _figures(table, f"  {plain_name(name)}", [item.best.per_class.get(name) for item in compared])
    table.add_row(Text("over all rounds", "dim"))
    _factors(table, "seconds", [item.costs[-1].seconds for item in compared], ".0f")
    exchanged = [None if is_reference(item.run.spec) else item.costs[-1].exchanged / 1e6 for item in compared]
    _factors(table, "MB exchanged", exchanged, ".1f")
    _factors(table, "MB moved", [item.costs[-1].moved / 1e6 for item in compared], ".1f")
    return table


def _clients(item: Compared) -> str:
    if item.run.spec.data.local_only is not None:
        return f"{item.run.spec.data.local_only} alone"
    return "centralised" if item.run.spec.data.pooled else str(len(item.records[-1].clients))


def _method(item: Compared) -> Text:
    """Return the method with the fields that are not defaults. A reference has one client, and so no method."""
    spec = item.run.spec
    return Text("–" if is_reference(spec) else spec.strategy.label, overflow="fold")


def _figures(table: Table, label: str, values: Sequence[float | None], *, bold: bool = False) -> None:
    first = values[0]
    digits = _digits(values)
    cells = []
    for number, value in enumerate(values):
        cell = "–" if value is None else f"{value:.{digits}f}"
        if number and value is not None and first is not None:
            cell += f" ({signed(value - first, digits)})"
        cells.append(Text(cell, "bold" if bold else ""))
    table.add_row(Text(label), *cells)


def _digits(values: Sequence[float | None]) -> int:
    """Return the decimals of a row: one more if a small difference would contradict the rounded figures beside it."""
    first = values[0]
    differences = [] if first is None else [abs(value - first) for value in values if value is not None]
    return 4 if any(0 < difference < SMALL for difference in differences) else 3


def _factors(table: Table, label: str, values: Sequence[float | None], form: str) -> None:
    first = values[0]
    cells = []
    for number, value in enumerate(values):
        cell = "–" if value is None else format(value, form)
        if number and value is not None and first:
            cell += f" (×{value / first:.2f})"
        cells.append(cell)
    table.add_row(label, *cells)


# Below the table.
BYTES_NOTE = (
    "MB exchanged: weights that clients needed and sent, from a cache or not. MB moved: what turns sent to the store "
    "and fetched from it"
)
