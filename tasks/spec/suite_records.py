"""What a suite leaves in the store: a record for each cell as it ends, and the result of all of them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from tasks.spec.base import RECORD_VERSION, Bytes, Count, FederationName, Frozen, Loss, Score, Seconds, Sha256
from tasks.spec.federation import FederationSpec, MapName
from tasks.spec.records import Environment
from tasks.spec.suite import ExperimentName, Role, Seed, SuiteName, SuiteSpec, cell_label


class SuiteStart(Frozen):
    """``suite.json`` of a suite run, written first: what is run. A later start must ask for the same."""

    version: Literal[1] = RECORD_VERSION
    suite_run: FederationName
    suite: SuiteSpec
    digest: Sha256
    started: datetime


class CellRecord(Frozen):
    """``cells/<digest>-<code version>.json``: a cell that has ended; it is run again unless it is done.

    seconds: wall time of the cell, with everything; over all of its starts within this suite run.
    """

    version: Literal[1] = RECORD_VERSION
    suite_run: FederationName
    cell: str
    spec_digest: Sha256
    code_version: str
    federation: FederationName
    state: Literal["done", "failed"]
    reason: str | None = Field(None, description="Of a failed cell: what its last start said.")
    seconds: Seconds
    ended: datetime


class Point(Frozen):
    """A run at one of its rounds: what it reached, and what was spent up to there.

    figures: the four mAPs, ``recall``, ``loss`` (test), ``train_loss``; a figure that there is not is null.
    passes: over the run's training images, on the mean. seconds: wall. exchanged: bytes that clients needed and sent.
    """

    round: Count
    figures: dict[str, Loss | None]
    passes: float = Field(ge=0, le=1e12)
    seconds: Seconds
    exchanged: Bytes


class CellResult(Frozen):
    """One run: what it reached in each round, and at its last one by class and by client."""

    experiment: ExperimentName
    role: Role
    seed: Seed
    device: str | None = None
    spec_digest: Sha256
    federation: FederationName
    clients: Count = Field(ge=1)
    points: tuple[Point, ...] = Field(min_length=1, description="Rounds 0 to the last.")
    per_class: dict[str, Score | None] = Field(description="AP50 by VOC 2010, by class, at the last round.")
    per_client: dict[str, dict[str, Loss | None]] = Field(
        default_factory=dict,
        description="By client, where clients have test sets of their own: the four mAPs, recall, loss; last round.",
    )
    rounds_to_target: Count | None = Field(
        None, description="First round at which the suite's metric is at its target."
    )
    moved: Bytes = Field(description="Bytes to and from the store, over all rounds.")
    gpu_seconds: Seconds = Field(0, description="Seconds of clients' turns on GPUs, over all rounds.")
    mlflow_url: str | None = None

    @property
    def name(self) -> str:
        """The cell's, as failed and missing ones are called."""
        return f"{self.experiment}.{cell_label(self.role, self.seed, self.device)}"

    @property
    def last(self) -> Point:
        return self.points[-1]


class FailedCell(Frozen):
    """A cell without a result, and why."""

    cell: str
    reason: str


class SuiteResult(Frozen):
    """``result.json``: all that tables, plots, the report and the comparison with an accepted result read."""

    version: Literal[1] = RECORD_VERSION
    suite: SuiteName
    suite_run: FederationName
    suite_digest: Sha256
    metric: MapName
    target: float = Field(ge=0, le=1)
    code_version: str
    environment: Environment
    created: datetime
    specs: dict[ExperimentName, FederationSpec] = Field(
        default_factory=dict, description="What each experiment runs; its seed is replaced by each of the seeds."
    )
    cells: tuple[CellResult, ...]
    failed: tuple[FailedCell, ...] = ()
    missing: tuple[str, ...] = Field((), description="Cells that have not ended yet.")


class AcceptedResult(Frozen):
    """``_references/<suite>/accepted.json``: what later results of the suite are held against."""

    version: Literal[1] = RECORD_VERSION
    accepted: datetime
    by: str
    note: str = ""
    result: SuiteResult
