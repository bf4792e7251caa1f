"""The lines with which a run begins: what is learned, and which clients label only a part of the classes."""

from __future__ import annotations

from flows.views.label_spaces import label_space_lines
from flows.views.progress import Progress
from flows.views.tables import describe
from tasks.spec.federation import FederationSpec


def show_header(progress: Progress, name: str, spec: FederationSpec) -> None:
    """Begin the display of a run of ``spec`` under ``name``."""
    progress.federation_started(name, describe(spec), spec.max_rounds)
    for line in label_space_lines(spec):
        progress.message(line)
