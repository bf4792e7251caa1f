"""Names of runs in errors: those that the store has, and what a name belongs to."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

from tasks.errors import SpecError
from tasks.spec.nearest import did_you_mean
from tasks.spec.nearest import listed as first_of

MOST_LISTED = 10


def listed(names: Sequence[str], wanted: str) -> str:
    """Return ``names`` as text for a message, and the one nearest to ``wanted``.

    Of many names, list those most like ``wanted``, and count the others.
    """
    if not names:
        return "(none yet)"
    ordered = list(names)
    if len(names) > MOST_LISTED:
        near = difflib.get_close_matches(wanted, names, n=MOST_LISTED, cutoff=0)
        ordered = [*near, *(name for name in names if name not in near)]
    return f"{first_of(ordered, most=MOST_LISTED)}{did_you_mean(wanted, names)}"


def no_such_federation(name: str, known: Sequence[str], suites: Sequence[str]) -> SpecError:
    """Return the error that the store has no federation ``name``. It says so if the name is that of a suite run.

    known: the store's federations. suites: its suite runs.
    """
    if name not in suites:
        return SpecError(f"{name}: no such federation in the store; expected one of: {listed(known, name)}")
    cells = [federation for federation in known if federation.startswith(f"{name}.")]
    return SpecError(
        f"{name}: expected a federation, found a suite run (fedbench suite show {name}); its federations: "
        f"{listed(cells, name)}"
    )
