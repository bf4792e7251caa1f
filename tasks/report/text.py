"""Format figures and costs for reports and for ``fedbench compare``."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.spec.suite import Role
from tasks.suite.summary import Spread

NONE = "–"
MINUS = "−"
ROLE_NAMES: dict[Role, str] = {"centralised": "centralised", "federated": "federated", "local-only": "local only"}
# The heads of columns, for figures that have another head than their name.
FIGURE_NAMES = {"train_loss": "train loss", "loss": "test loss"}


def figure(spread: Spread | None, digits: int = 3) -> str:
    """Format a figure as ``0.782 ± 0.007``, without ± for one seed."""
    if spread is None:
        return NONE
    return f"{_fixed(spread.mean, digits)}{_deviation(spread, 1, digits)}"


def signed(spread: Spread | None, digits: int = 3) -> str:
    """Format a difference with its sign, as ``−0.107 ± 0.008``."""
    return NONE if spread is None else f"{signed_number(spread.mean, digits)}{_deviation(spread, 1, digits)}"


def signed_number(value: float, digits: int = 3) -> str:
    """Format ``-0.0431`` as ``−0.043``, with a true minus sign. A number that rounds to 0 has no sign."""
    text = f"{abs(value):.{digits}f}"
    return text if float(text) == 0 else f"{MINUS if value < 0 else '+'}{text}"


def interval(bounds: tuple[float, float] | None, digits: int = 3) -> str:
    """Format the bounds of a difference as ``−0.043 to +0.012``."""
    return NONE if bounds is None else " to ".join(signed_number(bound, digits) for bound in bounds)


def count(spread: Spread | None) -> str:
    """Format a number of rounds or passes. A single whole number, or equal ones, have no decimals."""
    if spread is None:
        return NONE
    digits = 0 if spread.n == 1 or spread.least == spread.greatest else 1
    if spread.mean % 1 and digits == 0:
        digits = 2
    deviation = "" if spread.least == spread.greatest else _deviation(spread, 1, digits)
    return f"{spread.mean:.{digits}f}{deviation}"


def duration(spread: Spread | None) -> str:
    """Format seconds as ``18.3 ± 0.4 min``."""
    if spread is None:
        return NONE
    most = spread.mean
    unit, seconds = ("s", 1.0) if most < 120 else ("min", 60.0) if most < 7200 else ("h", 3600.0)
    return f"{most / seconds:.1f}{_deviation(spread, seconds, 1)} {unit}"


def size(spread: Spread | None) -> str:
    """Format bytes as ``2.84 ± 0.01 GB``, in decimal units, without ± if all are equal."""
    if spread is None:
        return NONE
    most = spread.mean
    unit, bytes_, digits = ("GB", 1e9, 2) if most >= 1e9 else ("MB", 1e6, 1)
    deviation = "" if spread.least == spread.greatest else _deviation(spread, bytes_, digits)
    return f"{most / bytes_:.{digits}f}{deviation} {unit}"


def missed(last_rounds: Sequence[int]) -> str:
    """Format the last rounds of runs that never reached the target as ``not in 28 rounds``; empty without any."""
    if not last_rounds:
        return ""
    least, most = min(last_rounds), max(last_rounds)
    runs = f"{len(last_rounds)} runs " if len(last_rounds) > 1 else ""
    return f"{runs}not in {plural(most, 'round') if least == most else f'{least} to {most} rounds'}"


def plural(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _fixed(value: float, digits: int) -> str:
    text = f"{abs(value):.{digits}f}"
    return text if value >= 0 or float(text) == 0 else f"{MINUS}{text}"


def _deviation(spread: Spread, unit: float, digits: int) -> str:
    return "" if spread.sd is None else f" ± {spread.sd / unit:.{digits}f}"
