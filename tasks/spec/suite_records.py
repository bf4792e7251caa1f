"""The records of a suite in the store: one for each cell when it ends, and the result of all cells."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field, StringConstraints

from tasks.spec.base import RECORD_VERSION, Bytes, Count, FederationName, Frozen, Loss, Score, Seconds, Sha256
from tasks.spec.federation import FederationSpec, MapName
from tasks.spec.records import Environment, PersonalMetrics
from tasks.spec.suite import ExperimentName, Role, Seed, SuiteName, SuiteSpec, cell_label
from tasks.spec.training import ScoredOn

# A digest of a machine's name. It shows which runs shared a machine without naming it.
HostMark = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}$")]


class SuiteStart(Frozen):
    """``suite.json`` of a suite run, written first: the suite to run. A later start must ask for the same suite."""

    version: Literal[1] = RECORD_VERSION
    suite_run: FederationName
    suite: SuiteSpec
    digest: Sha256
    started: datetime


class Point(Frozen):
    """A run at one of its rounds: its figures, and its costs up to that round.

    figures: the four mAPs, ``recall``, ``loss`` (test) and ``train_loss``; null if the round has no such figure.
    passes: passes over the run's training images, as a mean over images.
    seconds: wall time.
    exchanged: bytes that clients needed and sent.
    steps: optimiser steps, as the mean over each round's updates, weighted by training images; null in older results.
    committed: when the round was committed; null in older results.
    """

    round: Count
    figures: dict[str, Loss | None]
    passes: float = Field(ge=0, le=1e12)
    seconds: Seconds
    exchanged: Bytes
    steps: float | None = Field(None, ge=0, le=1e12)
    committed: datetime | None = None


class CellResult(Frozen):
    """The result of one run: its figures in each round, and those of the last round by class and by client."""

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
        description="The last round's four mAPs, recall and loss by client, if clients have test sets of their own.",
    )
    personal: PersonalMetrics | None = Field(
        None, description="The figures of the clients' own models at the last round, if the method keeps any."
    )
    on: ScoredOn = Field("test", description="The images that the figures are of: test sets, or held-out images.")
    best_round: Count | None = Field(
        None,
        description="The best round by the suite's metric on held-out images, if these decide; null: the figures above "
        "decide.",
    )
    rounds_to_target: Count | None = Field(
        None, description="First round in which the suite's metric reaches its target."
    )
    moved: Bytes = Field(description="Bytes to and from the store, over all rounds.")
    gpu_seconds: Seconds = Field(0, description="Seconds of clients' turns on GPUs, in all rounds.")
    hosts: tuple[HostMark, ...] = Field(
        (), description="Digests of the names of all clients' machines, in order; empty in older results."
    )
    mlflow_url: str | None = None
    machine: Environment | None = Field(
        None, description="Software and processor that ran a cell imported from another store; null: run from this one."
    )

    @property
    def name(self) -> str:
        """Return the cell's name, as in ``failed`` and ``missing``."""
        return f"{self.experiment}.{cell_label(self.role, self.seed, self.device)}"

    @property
    def last(self) -> Point:
        return self.points[-1]


class ImportedCell(Frozen):
    """What a suite's result and report need of a finished cell, without its federation and its weights.

    best_rounds: the best round on held-out images by each metric, because the digest of a suite does not hold its
    metric; empty if held-out images do not decide.
    """

    result: CellResult
    best_rounds: dict[MapName, Count] = Field(default_factory=dict)
    weights: dict[Count, Sha256] = Field(description="sha256 of the global weights: of the first, best and last round.")


class CellRecord(Frozen):
    """``cells/<digest>-<code version>.json``: a cell that has ended. It is run again if it has failed.

    seconds: the whole wall time of the cell, over all of its starts within this suite run.
    """

    version: Literal[1] = RECORD_VERSION
    suite_run: FederationName
    cell: str
    spec_digest: Sha256
    code_version: str
    federation: FederationName
    state: Literal["done", "failed"]
    reason: str | None = Field(None, description="The error of a failed cell's last start.")
    seconds: Seconds
    ended: datetime
    imported: ImportedCell | None = Field(
        None, description="The figures of a cell imported from another store; null: this store has its federation."
    )


class SuiteExport(Frozen):
    """The file of ``fedbench suite export``: the finished cells of a suite run, by name, each with its figures."""

    version: Literal[1] = RECORD_VERSION
    kind: Literal["suite-cells"] = "suite-cells"
    suite_run: FederationName
    suite: SuiteSpec
    digest: Sha256
    cells: dict[str, CellRecord] = Field(min_length=1)


class FailedCell(Frozen):
    """A cell without a result, and why."""

    cell: str
    reason: str


class SuiteResult(Frozen):
    """``result.json``: everything that tables, plots, the report and the comparison with an accepted result need."""

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
        default_factory=dict, description="Each experiment's specification; its seed is replaced by each of the seeds."
    )
    cells: tuple[CellResult, ...]
    failed: tuple[FailedCell, ...] = ()
    missing: tuple[str, ...] = Field((), description="Cells that have not ended yet.")


class AcceptedResult(Frozen):
    """``_references/<suite>/accepted.json``: the result that later results of the suite are compared with."""

    version: Literal[1] = RECORD_VERSION
    accepted: datetime
    by: str
    note: str = ""
    result: SuiteResult
