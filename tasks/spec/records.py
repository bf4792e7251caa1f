"""The small records that phases pass to each other and that the store keeps. Tensors are separate objects.

Every record that is stored on its own has a ``version``; :func:`tasks.spec.base.parse` refuses a newer one.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal, Self, get_args

from pydantic import Field

from tasks.spec.base import (
    LARGEST_LOSS,
    MOST_CLASSES,
    MOST_CLIENTS,
    RECORD_VERSION,
    STORE_VERSION,
    Bytes,
    ClassName,
    ClientId,
    Count,
    DerivedSeed,
    FederationName,
    Frozen,
    Loss,
    ReadText,
    Score,
    Seconds,
    Sha256,
)
from tasks.spec.federation import MAP_NAMES, MapName
from tasks.spec.shares import Weight
from tasks.spec.training import PART_NAMES, ScoredOn


class StoreVersion(Frozen):
    """``store.json``: the version of the store's layout."""

    version: Literal[1] = STORE_VERSION


class WeightRef(Frozen):
    """A reference to stored weights: the object's key, its sha256, and its size in bytes."""

    key: str = Field(max_length=1024)
    sha256: Sha256
    bytes: Bytes

    @classmethod
    def of(cls, stored: object) -> Self:
        """Return the reference to an object in a weight store. ``stored``: what its ``put`` returned."""
        return cls.model_validate(stored, from_attributes=True)


PARTS: tuple[ScoredOn, ...] = get_args(ScoredOn)
# How texts name the images of a part.
IMAGES_HAVE: dict[ScoredOn, str] = {"test": "test set has", "holdout": "held-out images have"}

# What a client reports for its method's server, as a sum of learning rates or of squares (tasks.strategies).
Figures = Annotated[
    dict[ClassName, Annotated[float, Field(ge=0, le=LARGEST_LOSS)]], Field(max_length=10, description="For the method.")
]


class ClientInfo(Frozen):
    """Phase 1, ``wake_up``: what a ready client reports about itself."""

    client: ClientId
    train_size: Count = Field(description="Training images.")
    test_size: Count = Field(description="Test images.")
    test_digest: Sha256 = Field(
        description="Content digest of its test set. Clients with equal digests share an evaluation."
    )
    holdout_size: Count = Field(0, description="Held-out images; they are not in train_size.")
    holdout_digest: Sha256 | None = Field(None, description="Content digest of the held-out images; null without any.")
    class_counts: dict[ClassName, Count] = Field(max_length=MOST_CLASSES, description="Training boxes by class.")
    host: ReadText
    device: ReadText

    def scored_size(self, on: ScoredOn) -> int:
        """Return the number of images of this part of the client's data."""
        return self.test_size if on == "test" else self.holdout_size


class ClientFailure(Frozen):
    """A client that a phase dropped, and why.

    ``model-diverged``, only in ``stop_and_eval``: the global model has no finite loss on the client's test set.
    """

    client: ClientId
    phase: Literal["wake_up", "check_client_resource", "request_update", "aggregate", "stop_and_eval"]
    kind: Literal["client-error", "deadline", "infrastructure-lost", "model-diverged"]
    reason: ReadText


class ResourceAnswer(Frozen):
    """Phase 2, ``check_client_resource``: the load of a client's machine, without that of fedbench's own slots."""

    client: ClientId
    load: float = Field(ge=0, le=1e6, description="1-minute load average per core.")
    free_memory: Bytes = Field(description="Bytes.")
    gpu_free_memory: Bytes | None = Field(None, description="Bytes; null without a GPU.")
    gpu_utilisation: float | None = Field(None, ge=0, le=1)


class Draw(Frozen):
    """One draw of clients for a round, their answers, and those under the load limit."""

    attempt: int = Field(ge=1, le=100)
    contacted: tuple[ClientId, ...]
    answers: tuple[ResourceAnswer, ...]
    qualified: tuple[ClientId, ...]
    failures: tuple[ClientFailure, ...] = Field((), description="Clients that gave no answer, and why.")


class RoundStart:
    """What a round starts from, as its plan and the requests to its clients name it."""

    if TYPE_CHECKING:
        model: WeightRef
        shared: WeightRef | None
        states: dict[ClientId, WeightRef] | None

    def states_of(self, client: str) -> tuple[WeightRef, ...]:
        """Return the states that ``client`` starts from: the shared one, then its own; those that exist."""
        return tuple(ref for ref in (self.shared, (self.states or {}).get(client)) if ref is not None)

    def fetched_bytes(self, client: str) -> int:
        """Return the bytes that ``client`` needs from the store: the global weights, the shared state, and its own."""
        # A client's first state may be the global model itself, which is needed once.
        return sum({ref.key: ref.bytes for ref in (self.model, *self.states_of(client))}.values())


class RoundPlan(Frozen, RoundStart):
    """``plan.json``, stored before training: everything that decides the round's result. A resumed round reuses it."""

    version: Literal[1] = RECORD_VERSION
    federation: FederationName
    round: Count = Field(ge=1)
    spec_digest: Sha256
    model: WeightRef = Field(description="The global weights that every client of the cohort starts from.")
    draws: tuple[Draw, ...]
    cohort: tuple[ClientId, ...] = Field(description="Clients that are asked for an update, in client order.")
    shards: tuple[tuple[ClientId, ...], ...] = Field(
        description="Clients of each turn; the turn with most images first."
    )
    seeds: dict[ClientId, DerivedSeed]
    learning_rate: float = Field(gt=0, le=10)
    partial_sums: bool = Field(False, description="Each turn stores one partial sum of its clients' updates.")
    train_sizes: dict[ClientId, Count] | None = Field(
        None, description="Training images that wake_up counted, by client; null in older plans."
    )
    weights: dict[ClientId, Weight] | None = Field(
        None, description="Weight of each client's update; null in older plans, where it is the number of its images."
    )
    server: WeightRef | None = Field(None, description="The server's state that the round starts from, if any.")
    shared: WeightRef | None = Field(None, description="What clients read of the server's state, if anything.")
    states: dict[ClientId, WeightRef] | None = Field(
        None,
        description="State of each client of the cohort that has one, from its last counted round; null: the method "
        "keeps none.",
    )
    figures: tuple[ClassName, ...] = Field((), description="Names of the figures that each update must have.")
    means: int = Field(1, ge=1, le=10, description="Weighted means of the updates that a partial sum holds.")
    created: datetime

    def weight_of(self, update: UpdateRecord) -> Weight:
        """Return the weight of ``update``, which is from a client of the cohort."""
        return update.train_size if self.weights is None else self.weights[update.client]


class UpdateRecord(Frozen):
    """Phases 3 and 4: a client's update. ``weights`` names its object, which is stored before this record.

    Each client of a partial sum has a record, with the same ``weights`` and ``shard``.
    """

    version: Literal[1] = RECORD_VERSION
    federation: FederationName
    round: Count = Field(ge=1)
    client: ClientId
    spec_digest: Sha256
    model: Sha256 = Field(description="sha256 of the global weights that the client started from.")
    seed: DerivedSeed
    weights: WeightRef
    shard: tuple[ClientId, ...] | None = Field(
        None,
        min_length=1,
        max_length=MOST_CLIENTS,
        description="Clients of the partial sum that the weights are (their mean, weighted by train_size); null: the "
        "weights are this client's own.",
    )
    started_from: tuple[Sha256, ...] = Field(
        (), max_length=2, description="sha256 of the states that the client started from: the shared one, then its own."
    )
    state: WeightRef | None = Field(None, description="The client's new state, if the method keeps one.")
    figures: Figures = Field(default_factory=dict)
    train_size: Count = Field(ge=1)
    train_loss: Loss = Field(description="Mean loss over the images of all local epochs.")
    loss_terms: dict[ClassName, Loss] = Field(default_factory=dict, max_length=100)
    steps: Count = Field(ge=1, description="Optimiser steps.")
    seconds: Seconds = Field(description="Wall time of the client's turn.")
    train_seconds: Seconds = Field(description="Wall time of the training loop alone.")
    bytes_down: Bytes = Field(
        description="Bytes that the client needed from the store: the raw size of the weights and states."
    )
    host: ReadText
    device: ReadText

    @property
    def bytes_up(self) -> int:
        """Return the bytes of the weights and the client's state.

        A partial sum counts for its first client, so that totals have it once.
        """
        state = self.state.bytes if self.state is not None else 0
        return state + (self.weights.bytes if self.shard is None or self.shard[0] == self.client else 0)


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
