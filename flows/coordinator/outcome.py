"""The outcome of a finished run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tasks.spec.records import FineTunedRecord, RoundRecord


@dataclass(frozen=True)
class Outcome:
    """The records of a finished run, and the folder of its plots.

    already_finished: whether nothing was left to do. model: URI of the best model in MLflow's registry; None if MLflow
    failed, or if no round is the best. failed: why a part of the report failed, by the part's name. tuned: the record
    of fine-tuning. pages: addresses of the run's pages in Prefect and MLflow, if servers serve them after this command.
    """

    records: Sequence[RoundRecord]
    folder: Path
    already_finished: bool
    model: str | None
    failed: Mapping[str, str] = field(default_factory=dict)
    tuned: FineTunedRecord | None = None
    pages: Sequence[str] = ()
