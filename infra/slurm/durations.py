"""Durations as the command line and Slurm write them."""

from __future__ import annotations

import re

from infra.errors import SettingsError

_ASKED = re.compile(r"(?:(\d+)-)?(\d+):([0-5]\d):([0-5]\d)", re.ASCII)
# Slurm also prints durations without hours (30:00).
_PRINTED = re.compile(r"(?:(\d+)-(?=\d))?(?:(\d+):)?(\d+):(\d+)", re.ASCII)


def read_duration(text: str, source: str) -> int:
    """Return the seconds of ``H:MM:SS`` or ``D-HH:MM:SS``.

    Raises:
        SettingsError: it has another form, or is zero; the message names ``source``.
    """
    found = _ASKED.fullmatch(text.strip())
    if found is None:
        raise SettingsError(f"{source}: expected H:MM:SS, as in 8:00:00, or D-HH:MM:SS, found {text}")
    total = _seconds(found)
    if total == 0:
        raise SettingsError(f"{source}: expected more than zero, found {text}")
    return total


def printed_limit(text: str) -> int | None:
    """Return the seconds of a limit that Slurm printed; None: it has none, or another form."""
    found = _PRINTED.fullmatch(text.strip())
    return None if found is None else _seconds(found)


def _seconds(found: re.Match[str]) -> int:
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def written(seconds: int) -> str:
    """Return ``seconds`` as ``H:MM:SS``."""
    return f"{seconds // 3600}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"
