"""The table of ``fedbench list`` for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from flows.commands.listing import Listing
from flows.views.progress import clock
from tasks.spec.federation import FederationSpec
from tasks.spec.strategies import FedAvgSpec


def listing_table(listing: Listing, *, wide: bool, now: datetime | None = None) -> Table:
    """Return a table with a row for each line. wide: the terminal has room for the specification in words."""
    table = Table(box=None, pad_edge=False, padding=(0, 2 if wide else 1, 0, 0))
    for head in ("name", "state", "rounds", "best", "seed", "last commit", "took"):
        right = head in ("rounds", "seed", "took")
        # Names can be copied, so they stay whole. Only the best figure may take two lines.
        table.add_column(head, justify="right" if right else "left", no_wrap=head != "best", overflow="fold")
    table.add_column("specification" if wide else "digest", overflow="fold", min_width=8)
    present = now or datetime.now(UTC)
    for suite in listing.suites:
        table.add_row(
            suite.name,
            suite.state,
            "–",
            "–",
            "–",
            date_of(suite.updated, present),
            _took(suite.seconds or None),  # 0 until a cell has ended
            f"suite {suite.suite or '–'} · {cells_text(suite.cells)}",
        )
    for run in listing.federations:
        best = run.course["best"]
        rounds = run.course["rounds"]
        table.add_row(
            Text(run.name),
            run.state,
            "–" if run.spec is None or run.state == "damaged" else f"{rounds or 0}/{run.spec.max_rounds}",
            "–" if best is None else _best(best),
            "–" if run.spec is None else str(run.spec.seed),
            date_of(run.updated, present),
            _took(run.seconds),
            described(run.spec, wide=wide),
        )
    return table


def cells_text(cells: Mapping[str, int]) -> str:
    """Return the number of a suite run's cells by state, as ``6 cells: 4 done, 2 waiting``."""
    total = sum(cells.values())
    counts = ", ".join(f"{number} {state}" for state, number in cells.items() if number)
    return f"{total} cell{'' if total == 1 else 's'}: {counts}" if total else "no cells"


def date_of(time: datetime | None, present: datetime) -> str:
    """Return a time of this machine's zone: day and minute, or for another year the date. A dash for None."""
    if time is None:
        return "–"
    local = time.astimezone()
    return local.strftime("%m-%d %H:%M" if local.year == present.astimezone().year else "%Y-%m-%d")


def _best(best: Mapping[str, Any]) -> str:
    held_out = "held-out " if best["on"] == "holdout" else ""
    return f"{held_out}{best['metric']} {best['value']:.3f}"


def _took(seconds: float | None) -> str:
    return "–" if seconds is None else clock(seconds)


def described(spec: FederationSpec | None, *, wide: bool = True) -> str:
    """Return data, detector, method unless it is plain FedAvg, and digest of a run; the digest alone if not wide."""
    if spec is None:
        return "–"
    if not wide:
        return spec.digest[:8]
    method = "" if spec.strategy == FedAvgSpec() else f"{spec.strategy.label} · "
    return f"{spec.data.kind} · {spec.detector.kind} · {method}{spec.digest[:8]}"
