"""A table's content as plain cells, independent of its form on a page, and what several tables have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.report import text
from tasks.spec.federation import MAP_NAMES
from tasks.spec.suite import Role
from tasks.spec.suite_records import CellResult
from tasks.suite.sharing import Sharing
from tasks.suite.summary import Between, Paired, Row, Spread, Summary

# In the order of the expected figures, lowest first.
ORDER: tuple[Role, ...] = ("local-only", "federated", "centralised")
MEASURES = (*MAP_NAMES, "recall", "loss")


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


def shown_columns(summary: Summary) -> list[bool]:
    """Return whether a table of federations between their references shows each of its columns of figures.

    The columns are the roles in ``ORDER``, the gap and the gain. A reference is left out if no experiment has it, and
    the gap or the gain if there is none. The federated column is always there.
    """
    roles = [role == "federated" or any(role in each.rows for each in summary.experiments) for role in ORDER]
    pairs = [any(getattr(each, kind) is not None for each in summary.experiments) for kind in ("gap", "gain")]
    return [*roles, *pairs]


def ordered(between: Between) -> list[Row]:
    """Return an experiment's rows in the order of the expected figures."""
    return [between.rows[role] for role in ORDER if role in between.rows]


def who(row: Row, number: int) -> list[TableCell]:
    """Return the cells with a row's experiment, which only the first (number 0) names, and its role."""
    return [
        TableCell(row.experiment if number == 0 else "", strong=True),
        TableCell(text.ROLE_NAMES[row.role], words=True),
    ]


def n_of(spread: Spread | None) -> str:
    """Format the number of seeds as ``n = 3``."""
    return f"n = {spread.n}" if spread is not None else ""


def paired_cell(paired: Paired | None) -> TableCell:
    """Return the cell of a paired difference."""
    difference = paired.difference if paired is not None else None
    return TableCell(text.signed(difference), n_of(difference))


def shared_note(sharing: Sharing, cells: Sequence[CellResult]) -> str:
    """Return the note of a wall time: that a run shared its machine, so that the time does not compare."""
    return "machine shared" if sharing.of(cells) else ""


def single(value: float | None) -> Spread | None:
    """Return one run's figure as a spread."""
    return None if value is None else Spread((value,))
