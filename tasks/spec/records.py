"""The records of a round after its updates: evaluations, figures, the decision, and the round itself, which has all.

Every record that is stored on its own has a ``version``; :func:`tasks.spec.base.parse` refuses a newer one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from tasks.spec.base import (
    LARGEST_LOSS,
    RECORD_VERSION,
    Bytes,
    ClientId,
    Count,
    FederationName,
    Frozen,
    Loss,
    Score,
    Seconds,
    Sha256,
)
from tasks.spec.federation import MAP_NAMES, MapName
from tasks.spec.plans import (
    PARTS,
    ClientFailure,
    ClientInfo,
    RoundPlan,
    UpdateRecord,
    WeightRef,
)
from tasks.spec.training import PART_NAMES, ScoredOn


class EvaluationRecord(Frozen):
    """Phase 6: the global model scored on one test set, for every client that has it, or on a client's held-out images.

    Older records have only VOC 2010's measures; the others are null there.
    """

    clients: tuple[ClientId, ...]
    on: ScoredOn = Field("test", description="test, also in older records: a test set; holdout: held-out images.")
    test_digest: Sha256 = Field(description="Content digest of the images.")
    test_size: Count = Field(description="Number of the images.")
    loss: Loss | None = Field(description="Mean loss per image, BatchNorm in evaluation mode.")
    map50_voc10: Score | None = Field(description="VOC 2010 mAP at IoU 0.5; null without any true object.")
    map50_voc07: Score | None = Field(None, description="VOC 2007 mAP (11 points) at IoU 0.5.")
    map50_coco: Score | None = Field(None, description="COCO mAP at IoU 0.5.")
    map_coco: Score | None = Field(None, description="COCO mAP, mean of IoU 0.50 to 0.95.")
    recall: Score | None = Field(description="Part of the objects found at IoU 0.5 by VOC's rule, mean over classes.")
    per_class: dict[str, Score | None] = Field(
        description="VOC 2010 AP at IoU 0.5 by class; null for a class without true objects, here and below."
    )
    per_class_coco: dict[str, Score | None] = Field(
        default_factory=dict, description="COCO AP by class, mean of IoU 0.50 to 0.95."
    )
    per_class_recall: dict[str, Score | None] = Field(default_factory=dict, description="Recall by class.")
    objects: dict[str, Count] = Field(
        default_factory=dict, description="Objects by class, without difficult ones; empty in older records."
    )
    score_threshold: float = Field(ge=0, le=1)
    seconds: Seconds


class ClientSpread(Frozen):
    """A figure of the clients' own models: its plain mean over clients, the worst client's, the standard deviation."""

    mean: Loss
    worst: Loss
    worst_client: ClientId
    deviation: float = Field(ge=0, le=2 * LARGEST_LOSS, description="Standard deviation over these clients; 0 for one.")
    clients: Count = Field(ge=1, description="Clients that have the figure.")


class PersonalMetrics(Frozen):
    """The figures of the clients' own models, each scored at its client on the client's images."""

    figures: dict[str, ClientSpread] = Field(max_length=10, description="By name: loss, the four mAPs, recall.")
    clients: Count = Field(description="Clients that were scored.")
    common: bool = Field(False, description="All were scored on one test set, which the clients have in common.")
    decides: bool = Field(
        False, description="There is no complete shared model, so the means decide the best round, patience and target."
    )

    def mean(self, name: str) -> float | None:
        """Return the mean over clients of the figure ``name``; None if no client has it."""
        spread = self.figures.get(name)
        return None if spread is None else spread.mean


class Metrics(Frozen):
    """Phase 7: means over clients, weighted by test size. ``unweighted``: plain means, as the original reported.

    ``holdout`` has the same figures on held-out images, weighted by their number. Beside it the others are null if the
    round scored no test set.
    """

    train_loss: Loss | None = None
    loss: Loss | None = None
    map50_voc10: Score | None = None
    map50_voc07: Score | None = None
    map50_coco: Score | None = None
    map_coco: Score | None = None
    recall: Score | None = None
    per_class: dict[str, Score | None] = Field(default_factory=dict)
    per_class_coco: dict[str, Score | None] = Field(default_factory=dict)
    per_class_recall: dict[str, Score | None] = Field(default_factory=dict)
    unweighted: dict[str, Loss | None] = Field(default_factory=dict)
    personal: PersonalMetrics | None = Field(None, description="Of the clients' own models, if the method keeps any.")
    holdout: Metrics | None = Field(None, description="Null if the round scored no held-out images, or none could be.")

    def on(self, part: ScoredOn) -> Metrics:
        """Return the figures on this part of the data; all null if the round did not score it."""
        return self if part == "test" else self.holdout or Metrics()

    @property
    def deciding(self) -> Metrics:
        """Return the figures that decide: the shared model's, else the means over the clients' own models."""
        own = self.personal
        if own is None or not own.decides:
            return self
        return self.model_copy(update={name: own.mean(name) for name in PERSONAL_FIGURES})


class Decision(Frozen):
    """Phase 8: whether the federation stops after this round, and why; the best round so far."""

    stop: bool
    reason: Literal["max_rounds", "patience", "target_map"] | None = None
    on: ScoredOn = Field("test", description="The images whose figures decide; test in older records.")
    best_round: Count
    best_map50_voc10: Score | None = Field(None, description="Of the best round.")
    best_metric: MapName = Field("map50_voc10", description="Metric that decides the best round.")
    best_value: Score | None = Field(None, description="The best round's value of it; null in older records.")

    @property
    def best(self) -> float | None:
        """Return the best round's value of ``best_metric``, also in older records."""
        return self.best_map50_voc10 if self.best_metric == "map50_voc10" else self.best_value

    @property
    def best_name(self) -> str:
        """Return the name of :attr:`best` for people to read. It says so if held-out images decided."""
        return self.best_metric if self.on == "test" else f"{PART_NAMES[self.on]} {self.best_metric}"


class Environment(Frozen):
    """The software and processor that must be equal for results to be equal to the last bit."""

    fedbench: str
    python: str
    torch: str
    torchvision: str
    cpu: str
    threads: int = Field(ge=1, le=10_000)


# The figures that are reported for clients' own models.
PERSONAL_FIGURES = ("loss", *MAP_NAMES, "recall")


class RoundRecord(Frozen):
    """``round.json``, written last: the commit marker. A round is committed when this record is in the store."""

    version: Literal[1] = RECORD_VERSION
    federation: FederationName
    round: Count
    spec_digest: Sha256
    plan: RoundPlan | None = Field(None, description="Null in round 0, the initial model.")
    clients: tuple[ClientInfo, ...]
    updates: tuple[UpdateRecord, ...] = ()
    dropped: tuple[ClientFailure, ...] = ()
    model: WeightRef = Field(description="The result of this round.")
    server: WeightRef | None = Field(None, description="The server's state after this round, if the method keeps one.")
    shared: WeightRef | None = Field(None, description="What clients read of that state, if anything.")
    states: dict[ClientId, WeightRef] = Field(
        default_factory=dict, description="State of every client that has one, from its last counted round."
    )
    evaluations: tuple[EvaluationRecord, ...]
    personal: tuple[EvaluationRecord, ...] = Field(
        (), description="Each ready client's own model, scored at the client; empty if the method keeps none."
    )
    metrics: Metrics
    decision: Decision
    seconds: dict[str, Seconds] = Field(description="Wall time of each phase.")
    bytes_up: Bytes = 0
    bytes_down: Bytes = 0
    environment: Environment
    committed: datetime

    @property
    def scored_on(self) -> tuple[ScoredOn, ...]:
        """Return the parts of the data that the round scored."""
        found = {item.on for item in (*self.evaluations, *self.personal)}
        return tuple(part for part in PARTS if part in found)

    @property
    def shown_on(self) -> ScoredOn:
        """Return the part of the data that the round's figures are shown for: the test sets if they were scored."""
        scored = (*self.evaluations, *self.personal)
        return "test" if any(item.on == "test" for item in scored) else self.decision.on

    @property
    def shown(self) -> Metrics:
        """Return the round's figures on the part :attr:`shown_on`: the shared model's, else means of clients' own."""
        return self.figures_on(self.shown_on)

    def figures_on(self, part: ScoredOn) -> Metrics:
        """Return the figures on a part of the data: the shared model's, else the means of the clients' own models."""
        return self.metrics.on(part).deciding

    def evaluations_on(self, part: ScoredOn) -> tuple[EvaluationRecord, ...]:
        """Return the evaluations on this part of the data."""
        return tuple(item for item in self.evaluations if item.on == part)

    @property
    def state_refs(self) -> tuple[WeightRef, ...]:
        """Return the references to all states that are current after this round."""
        return tuple(ref for ref in (self.server, self.shared, *self.states.values()) if ref is not None)


class FineTunedRecord(Frozen):
    """``_fine-tuned.json``: the models that clients made of the last round's by training alone, and their figures."""

    version: Literal[1] = RECORD_VERSION
    federation: FederationName
    round: Count = Field(description="The last round.")
    spec_digest: Sha256
    model: WeightRef = Field(description="The global weights that every client started from.")
    updates: tuple[UpdateRecord, ...] = Field(description="Each client's model. Their round is the one after the last.")
    dropped: tuple[ClientFailure, ...] = ()
    evaluations: tuple[EvaluationRecord, ...] = Field(description="Each model, scored at its client.")
    metrics: Metrics
    seconds: Seconds
    bytes_up: Bytes = 0
    bytes_down: Bytes = 0
    created: datetime

    @property
    def shown(self) -> PersonalMetrics | None:
        """Return the figures of the clients' models: on the test sets if they were scored, else on held-out images."""
        return self.metrics.personal or self.metrics.on("holdout").personal
