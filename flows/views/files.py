"""The files of a run's folder on this machine."""

from __future__ import annotations

from pathlib import Path

# Written last by the run's report: once one of them is there, the report was made.
PLOTTED = "rounds.png"
WITHOUT_PLOTS = "without-plots.txt"
# The parts of the report that failed, with their reasons.
FAILED_FILE = "report.json"


def reported(folder: Path) -> bool:
    """Return whether the report of the run with this folder was made."""
    return any((folder / name).exists() for name in (PLOTTED, WITHOUT_PLOTS))
