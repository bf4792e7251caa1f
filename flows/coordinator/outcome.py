"""What a finished run leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.spec.records import RoundRecord


@dataclass(frozen=True)
class Outcome:
    """The records of a finished run, and its folder of plots.

    already_finished: there was nothing left to do. model: URI of the best model in MLflow's registry; None when MLflow
    failed. failed: the reason of each part of the report that failed, by the part's name.
    """

    records: Sequence[RoundRecord]
    folder: Path
    already_finished: bool
    model: str | None
    failed: Mapping[str, str] = field(default_factory=dict)
