"""Phase 4, ``client_update``: local training from the global weights, in a slot."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor

from infra.store.layout import FederationLayout
from tasks.detectors.state import load_state, write_state
from tasks.errors import ClientError, DataError
from tasks.replies import failure_of
from tasks.site import Site
from tasks.spec.plans import ClientFailure, UpdateRecord, WeightRef
from tasks.spec.turns import TurnReply, UpdateRequest
from tasks.strategies.base import Strategy
from tasks.strategies.registry import build_strategy
from tasks.strategies.sums import Counted, Sums
from tasks.strategies.tensor_file import TensorFile
from tasks.training.local import TrainingResult
from tasks.training.turn import give_back, train_turn


@dataclass(frozen=True)
class Trained:
    """The result of training one client, without its weights.

    figures: what the client reports for its method. state: the client's new state in the store, if it keeps one.
    downloaded: bytes fetched from the store for it.
    """

    client: str
    train_size: int
    result: TrainingResult
    seconds: float
    downloaded: int
    figures: dict[str, float] = field(default_factory=dict)
    state: WeightRef | None = None


def client_update(site: Site, request: UpdateRequest) -> TurnReply:
    """Train each client of the turn. Store its weights, then its record.

    With ``participation.partial_sums`` nothing is stored until all clients are trained; then the weighted mean of the
    clients that did not fail is stored, and a record for each of them.

    Raises:
        StoreUnavailable, StoreCorrupt: the store failed, not a client.
    """
    layout = site.layout(request.federation)
    together = request.spec.participation.partial_sums
    strategy = build_strategy(request.spec)
    sums = Sums(strategy)
    succeeded: list[Trained] = []
    updates: list[UpdateRecord] = []
    failures: list[ClientFailure] = []
    for client in request.clients:
        try:
            trained, state = train_client(site, request, client, strategy)
            if together:
                weight = trained.train_size if request.weights is None else request.weights[client]
                sums.accumulate_state(state, Counted(client, weight, trained.figures))
        except (ClientError, DataError) as error:
            failures.append(failure_of("request_update", client, str(error)))
            continue
        succeeded.append(trained)
        if not together:
            updates += put_updates(site, request, weights_key(layout, request, client), state, [trained])
    give_back(request.spec.training.device)
    if together and succeeded:
        key = layout.partial_sum(request.round, succeeded[0].client)
        updates = put_updates(site, request, key, sums.partial_sum(), succeeded)
    return TurnReply(
        updates=tuple(updates),
        failures=tuple(failures),
        downloaded=sum(trained.downloaded for trained in succeeded),
        uploaded=sum(update.bytes_up for update in updates),
    )


def weights_key(layout: FederationLayout, request: UpdateRequest, client: str) -> str:
    """Return the key of the weights that a client has trained."""
    if request.tuning:
        return layout.fine_tuned_weights(request.round - 1, client)
    return layout.update_weights(request.round, client)


def record_key(layout: FederationLayout, request: UpdateRequest, client: str) -> str:
    """Return the key of the record of a client's weights."""
    if request.tuning:
        return layout.fine_tuned_update(request.round - 1, client)
    return layout.update_record(request.round, client)


def train_client(
    site: Site, request: UpdateRequest, client: str, strategy: Strategy[Any]
) -> tuple[Trained, dict[str, Tensor]]:
    """Train one client. Return the result and its update. If the method keeps a client state, the new one is stored.

    The update is a view of the site's detector: use it before the next client is trained.

    Raises:
        ClientError, DataError: the client is at fault.
        StoreUnavailable, StoreCorrupt: the store failed, not the client.
    """
    started = time.perf_counter()
    spec = request.spec
    data = site.data_of(spec.data, client)
    samples = data.train[client]
    _check_size(len(samples), request, client)
    fetched = site.weights.get(request.model.key, request.model.sha256, request.model.bytes)
    detector = site.detector(spec, len(data.classes))
    load_state(detector, fetched.path)
    shared, from_shared = _tensors(site, request.shared)
    own, from_own = _tensors(site, (request.states or {}).get(client))
    outcome = train_turn(
        strategy,
        spec,
        samples,
        detector,
        site.images,
        client=client,
        round=request.round,
        seed=request.seeds[client],
        learning_rate=request.learning_rate,
        model=TensorFile(fetched.path),
        shared=shared,
        own=own,
        on_device=site.images_on_device(spec),
    )
    state = None
    if outcome.own is not None:
        key = site.layout(request.federation).client_state(request.round, client)
        state = WeightRef.of(site.weights.put(key, partial(write_state, outcome.own)))
    trained = Trained(
        client,
        len(samples),
        outcome.result,
        time.perf_counter() - started,
        fetched.downloaded + from_shared + from_own,
        outcome.figures,
        state,
    )
    return trained, outcome.state


def _tensors(site: Site, ref: WeightRef | None) -> tuple[Mapping[str, Tensor], int]:
    """Return the tensors of a state in the store, and the bytes fetched for them; nothing without a reference."""
    if ref is None:
        return {}, 0
    fetched = site.weights.get(ref.key, ref.sha256, ref.bytes)
    return TensorFile(fetched.path), fetched.downloaded


def _check_size(found: int, request: UpdateRequest, client: str) -> None:
    expected = found if request.train_sizes is None else request.train_sizes[client]
    if found != expected:
        raise ClientError(
            f"client {client}: its training images have changed since wake_up: expected {expected}, found {found}"
        )
    if not found:
        raise ClientError(f"client {client}: expected at least 1 training image, found none")


def put_updates(
    site: Site, request: UpdateRequest, key: str, state: dict[str, Tensor], succeeded: Sequence[Trained]
) -> list[UpdateRecord]:
    """Store ``state`` as ``key``, then a record for each of the clients ``succeeded``, whose update it is."""
    started = time.perf_counter()
    layout = site.layout(request.federation)
    stored = site.weights.put(key, partial(write_state, state))
    together = request.spec.participation.partial_sums
    uploading = (time.perf_counter() - started) / len(succeeded)
    records = []
    for trained in succeeded:
        record = UpdateRecord(
            federation=request.federation,
            round=request.round,
            client=trained.client,
            spec_digest=request.spec_digest,
            model=request.model.sha256,
            seed=request.seeds[trained.client],
            weights=WeightRef.of(stored),
            shard=tuple(member.client for member in succeeded) if together else None,
            started_from=tuple(ref.sha256 for ref in request.states_of(trained.client)),
            state=trained.state,
            figures=trained.figures,
            train_size=trained.train_size,
            train_loss=trained.result.loss,
            loss_terms=trained.result.terms,
            steps=trained.result.steps,
            seconds=trained.seconds + uploading,
            train_seconds=trained.result.seconds,
            bytes_down=request.fetched_bytes(trained.client),
            host=site.host,
            device=site.device_name(request.spec),
        )
        site.objects.put_json(record_key(layout, request, trained.client), record.model_dump(mode="json"))
        records.append(record)
    return records
