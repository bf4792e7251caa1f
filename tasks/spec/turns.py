"""What a slot is asked and what it answers: small, serialisable, whole. A request names all that a turn needs.

A client's own errors come back inside the reply; an exception from a turn means that the place failed, not a client.
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
from tasks.spec.records import ClientFailure, ClientInfo, ResourceAnswer, UpdateRecord, WeightRef
from tasks.spec.shares import Weight

# At most 1024 images' loss.
BatchLoss = Annotated[float, Field(ge=-1024 * LARGEST_LOSS, le=1024 * LARGEST_LOSS)]


class TurnRequest(Frozen):
    """What every turn has: an experiment, and the clients of its shard."""

    federation: FederationName
    spec: FederationSpec
    clients: tuple[ClientId, ...] = Field(min_length=1)


class WakeUpRequest(TurnRequest):
    """Phase 1: load and validate the data of each client."""

    phase: Literal["wake_up"] = "wake_up"


class ResourceRequest(TurnRequest):
    """Phase 2: the load of the machine where these clients would train."""

    phase: Literal["check_client_resource"] = "check_client_resource"


class UpdateRequest(TurnRequest):
    """Phase 3: train each client, one after the other, from exactly these global weights."""

    phase: Literal["request_update"] = "request_update"
    round: Count = Field(ge=1)
    spec_digest: Sha256
    model: WeightRef
    seeds: dict[ClientId, DerivedSeed]
    learning_rate: float = Field(gt=0, le=10)
    train_sizes: dict[ClientId, Count] | None = Field(None, description="Of the plan; a client that has others fails.")
    weights: dict[ClientId, Weight] | None = Field(None, description="Of the plan; a partial sum is weighted by them.")


class EvaluationRequest(TurnRequest):
    """Phase 6: score one part of the test set that these clients share: batches ``part``, ``part + parts``, …"""

    phase: Literal["stop_and_eval"] = "stop_and_eval"
    round: Count
    model: WeightRef
    test_digest: Sha256
    test_size: Count = Field(ge=1, description="Images of the whole test set.")
    part: Count
    parts: Count = Field(ge=1)


class SheetRequest(TurnRequest):
    """Test images of the first client's test set, drawn with what was detected in them."""

    phase: Literal["sheet"] = "sheet"
    model: WeightRef
    images: int = Field(ge=1, le=100)


AnyRequest = WakeUpRequest | ResourceRequest | UpdateRequest | EvaluationRequest | SheetRequest


class TurnReply(Frozen):
    """What a turn did, for each client: an answer of its phase's kind, or a failure."""

    failures: tuple[ClientFailure, ...] = Field((), max_length=MOST_CLIENTS)
    ready: tuple[ClientInfo, ...] = Field((), max_length=MOST_CLIENTS)
    answers: tuple[ResourceAnswer, ...] = Field((), max_length=MOST_CLIENTS)
    updates: tuple[UpdateRecord, ...] = Field((), max_length=MOST_CLIENTS)
    downloaded: Bytes = Field(0, description="Bytes that really came from the store to this machine.")
    uploaded: Bytes = Field(0, description="Bytes that went to the store.")
    batch_losses: tuple[BatchLoss, ...] = Field(
        (), max_length=MOST, description="Phase 6: loss times images of each batch of the part."
    )
    images: Count = 0
    detections: WeightRef | None = Field(None, description="Phase 6: the part's detections and truth; the sheet's PNG.")
