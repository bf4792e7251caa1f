"""Suggest the nearest known name for one that does not exist, and keep lists of known names short."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence

MOST_LISTED = 16
_LIKENESS = 0.6  # difflib's ratio from which two names are near


def nearest(found: object, names: Iterable[str]) -> str | None:
    """Return the name most like ``found``; None if none is near. Capitals, hyphens and underscores do not count."""
    by_letters: dict[str, str] = {}
    for name in names:
        by_letters.setdefault(_letters(name), name)
    near = difflib.get_close_matches(_letters(str(found)), by_letters, n=1, cutoff=_LIKENESS)
    return by_letters[near[0]] if near else None


def did_you_mean(found: object, names: Iterable[str], prefix: str = "") -> str:
    """Return ``; did you mean NAME?`` to end a message with; empty if no name is near. prefix: put before the name."""
    near = nearest(found, names)
    return "" if near is None else f"; did you mean {prefix}{near}?"


def listed(names: Sequence[str], show: Callable[[str], str] = str, most: int = MOST_LISTED) -> str:
    """Return the first ``most`` names as text for a message, each as ``show`` writes it, and count the others."""
    shown = ", ".join(show(name) for name in names[:most])
    return shown if len(names) <= most else f"{shown}, and {len(names) - most} more"


def _letters(name: str) -> str:
    return name.casefold().replace("_", "").replace("-", "").replace(" ", "")
