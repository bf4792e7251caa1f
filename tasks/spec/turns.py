"""The requests to slots and their replies: small and serialisable. A request names everything that a turn needs.

A reply holds the clients' own errors. An exception from a turn means that the slot or the store failed, not a client.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tasks.spec.base import (
    LARGEST_LOSS,
    MOST,
    MOST_CLIENTS,
    Bytes,
    ClientId,
    Count,
    DerivedSeed,
    FederationName,
    Frozen,
    Sha256,
)
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, ClientInfo, ResourceAnswer, RoundStart, UpdateRecord, WeightRef
from tasks.spec.shares import Weight
from tasks.spec.training import ScoredOn

# The sum of the losses of a batch, which has at most 1024 images.
BatchLoss = Annotated[float, Field(ge=-1024 * LARGEST_LOSS, le=1024 * LARGEST_LOSS)]


class TurnRequest(Frozen):
    """The fields that every request has: an experiment, and the clients of the turn."""

    federation: FederationName
    spec: FederationSpec
    clients: tuple[ClientId, ...] = Field(min_length=1)


class WakeUpRequest(TurnRequest):
    """Phase 1: load and validate the data of each client."""

    phase: Literal["wake_up"] = "wake_up"


class ResourceRequest(TurnRequest):
    """Phase 2: measure the load of the machine where these clients would train."""

    phase: Literal["check_client_resource"] = "check_client_resource"


class UpdateRequest(TurnRequest, RoundStart):
    """Phase 3: train each client, one after the other, from exactly these global weights.

    With ``tuning`` it is the fine-tuning after the last round, which is the one before ``round``.
    """

    phase: Literal["request_update"] = "request_update"
    round: Count = Field(ge=1)
    spec_digest: Sha256
    model: WeightRef
    seeds: dict[ClientId, DerivedSeed]
    learning_rate: float = Field(gt=0, le=10)
    train_sizes: dict[ClientId, Count] | None = Field(
        None, description="From the plan; a client with another number fails."
    )
    weights: dict[ClientId, Weight] | None = Field(None, description="From the plan; they weight a partial sum.")
    tuning: bool = Field(False, description="Store the results as fine-tuned models, and not as updates of the round.")
    shared: WeightRef | None = Field(None, description="From the plan, as states.")
    states: dict[ClientId, WeightRef] | None = Field(
        None, description="State of each client of the turn that has one; null: the method keeps none."
    )


class EvaluationRequest(TurnRequest):
    """Phase 6: score a part of the test set that these clients share: the batches ``part``, ``part + parts``, …

    With ``on: holdout`` it is a part of the held-out images of one client.
    """

    phase: Literal["stop_and_eval"] = "stop_and_eval"
    round: Count
    model: WeightRef
    personal: bool = Field(False, description="Score the one client's own model, which the method makes of both.")
    own: WeightRef | None = Field(None, description="The client's state; null: its own model is as the global one.")
    on: ScoredOn = "test"
    test_digest: Sha256
    test_size: Count = Field(ge=1, description="Images of the whole test set, or held-out images.")
    part: Count
    parts: Count = Field(ge=1)


class SheetRequest(TurnRequest):
    """Draw images of the first client's test set with true and detected boxes."""

    phase: Literal["sheet"] = "sheet"
    model: WeightRef
    personal: bool = Field(False, description="Draw the detections of the client's own model, as in an evaluation.")
    own: WeightRef | None = None
    images: int = Field(ge=1, le=100)


AnyRequest = WakeUpRequest | ResourceRequest | UpdateRequest | EvaluationRequest | SheetRequest


class TurnReply(Frozen):
    """The reply of a turn: for each client an answer of the phase's kind, or a failure."""

    failures: tuple[ClientFailure, ...] = Field((), max_length=MOST_CLIENTS)
    ready: tuple[ClientInfo, ...] = Field((), max_length=MOST_CLIENTS)
    answers: tuple[ResourceAnswer, ...] = Field((), max_length=MOST_CLIENTS)
    updates: tuple[UpdateRecord, ...] = Field((), max_length=MOST_CLIENTS)
    downloaded: Bytes = Field(0, description="Bytes fetched from the store; weights from the cache do not count.")
    uploaded: Bytes = Field(0, description="Bytes that went to the store.")
    batch_losses: tuple[BatchLoss, ...] = Field(
        (), max_length=MOST, description="Phase 6: mean loss times number of images, for each batch of the part."
    )
    images: Count = 0
    detections: WeightRef | None = Field(None, description="Phase 6: the part's detections and truth; the sheet's PNG.")
