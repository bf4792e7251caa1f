"""The records of a round up to its updates: clients, what they can do, the plan, and what each client has trained.

Tensors are separate objects (:class:`WeightRef`). Every record that is stored on its own has a ``version``;
:func:`tasks.spec.base.parse` refuses a newer one.
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
    Seconds,
    Sha256,
)
from tasks.spec.shares import Weight
from tasks.spec.training import ScoredOn


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
