"""Phases 3 and 4, ``request_update`` and ``client_update``: local training from the global weights."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.errors import StoreCorrupt
from infra.place import Place, current_place
from tasks.data.loading import training_loader
from tasks.detectors.state import check_finite, load_state, serialise, state_of
from tasks.errors import ClientError, DataError, SpecError
from tasks.site import Site
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.records import ClientFailure, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.turns import TurnReply, UpdateRequest
from tasks.training.local import train
from tasks.turns import hand_out, report_failures


def client_update(site: Site, request: UpdateRequest) -> TurnReply:
    """In a slot: train each client of the turn; its weights and then its record go to the store."""
    updates, failures, downloaded, uploaded = [], [], 0, 0
    for client in request.clients:
        try:
            update, fetched = train_client(site, request, client)
        except (ClientError, DataError) as error:
            failures.append(
                ClientFailure(client=client, phase="request_update", kind="client-error", reason=str(error))
            )
            continue
        updates.append(update)
        downloaded += fetched
        uploaded += update.weights.bytes
    return TurnReply(updates=tuple(updates), failures=tuple(failures), downloaded=downloaded, uploaded=uploaded)


def train_client(site: Site, request: UpdateRequest, client: str) -> tuple[UpdateRecord, int]:
    """One client's turn. Returns its record, and the bytes that came from the store for it.

    Raises:
        ClientError, DataError: the client's own fault.
        StoreUnavailable, StoreCorrupt: the place's.
    """
    started = time.perf_counter()
    spec = request.spec
    data = site.data(spec.data)
    samples = data.train[client]
    fetched = site.weights.get(request.model.key, request.model.sha256, request.model.bytes)
    detector = site.detector(spec, len(data.classes))
    load_state(detector, fetched.path)
    batches = training_loader(
        samples,
        width=detector.width,
        height=detector.height,
        batch_size=spec.training.batch_size,
        epochs=spec.training.local_epochs,
        seed=spec.seed,
        round=request.round,
        client=client,
        augmentation=spec.training.augmentation,
        workers=spec.training.loader_workers,
        cache=site.images,
    )
    result = train(
        detector,
        batches,
        spec.training,
        lr=request.learning_rate,
        warmup_steps=spec.training.schedule.warmup_steps if request.round == 1 else 0,
        seed=request.seeds[client],
        client=client,
    )
    state = state_of(detector)
    check_finite(state, client=client)
    layout = site.layout(request.federation)
    stored = site.weights.put(layout.update_weights(request.round, client), serialise(state))
    record = UpdateRecord(
        federation=request.federation,
        round=request.round,
        client=client,
        spec_digest=request.spec_digest,
        model=request.model.sha256,
        seed=request.seeds[client],
        weights=WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes),
        train_size=len(samples),
        train_loss=result.loss,
        loss_terms=result.terms,
        steps=result.steps,
        seconds=time.perf_counter() - started,
        train_seconds=result.seconds,
        bytes_down=request.model.bytes,
        host=site.host,
        device=site.device_name(spec),
    )
    site.objects.put_json(layout.update_record(request.round, client), record.model_dump(mode="json"))
    return record, fetched.downloaded


def answers_plan(update: UpdateRecord, plan: RoundPlan, key: str) -> str | None:
    """Why ``update`` does not count in the round of ``plan``; None when it does.

    It counts when it was asked for: this federation, round and experiment, a client of the cohort, from the round's
    global weights and with the client's seed, its weights where the plan expects them (``key``).
    """
    if update.client not in plan.cohort:
        return f"client {update.client} is not in the cohort"
    expected = {
        "federation": plan.federation,
        "round": plan.round,
        "spec_digest": plan.spec_digest,
        "model": plan.model.sha256,
        "seed": plan.seeds[update.client],
    }
    for field, value in expected.items():
        if getattr(update, field) != value:
            return f"client {update.client}: {field}: expected {value}, found {getattr(update, field)}"
    if update.weights.key != key:
        return f"client {update.client}: weights: expected {key}, found {update.weights.key}"
    return None


def stored_updates(place: Place, plan: RoundPlan, clients: Sequence[str] | None = None) -> dict[str, UpdateRecord]:
    """Updates of an open round that are in the store and answer its plan, by client; their weights are there too.

    ``clients``: those that are looked for; left out, the whole cohort.
    """
    layout = place.layout
    there = place.objects.list(layout.updates(plan.round))  # most often none: one request, not one a client
    found = {}
    for client in plan.cohort if clients is None else clients:
        key = layout.update_record(plan.round, client)
        document = place.objects.get_json(key) if key in there else None
        if document is None:
            continue
        try:
            update = parse(UpdateRecord, document, source=key, newest=RECORD_VERSION)
        except SpecError:
            continue  # somebody else's object; the client trains anew and writes over it
        weights = layout.update_weights(plan.round, client)
        if answers_plan(update, plan, weights) is None and update.client == client:
            try:
                place.weights.get(update.weights.key, update.weights.sha256, update.weights.bytes)
            except StoreCorrupt:
                continue
            found[client] = update
    return found


@task(
    name="request_update",
    task_run_name="request_update · round {round_number} · {label}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def request_update(
    spec: FederationSpec, plan: RoundPlan, round_number: int, clients: Sequence[str], label: str
) -> TurnReply:
    """Ask one shard of the cohort for its updates; lost turns are run again (:func:`tasks.turns.hand_out`)."""
    place = current_place()
    request = UpdateRequest(
        federation=plan.federation,
        spec=spec,
        clients=tuple(clients),
        round=round_number,
        spec_digest=plan.spec_digest,
        model=plan.model,
        seeds={client: plan.seeds[client] for client in clients},
        learning_rate=plan.learning_rate,
    )

    async def finished() -> set[str]:
        return set(await asyncio.to_thread(stored_updates, place, plan, clients))

    replies = await hand_out(place, request, deadline=spec.participation.turn_deadline, finished=finished)
    failures = [failure for reply in replies for failure in reply.failures]
    dropped = {failure.client for failure in failures}
    updates: dict[str, UpdateRecord] = {}
    for update in (update for reply in replies for update in reply.updates):
        updates.setdefault(update.client, update)  # a second one never counts
    lost_replies = [client for client in clients if client not in updates and client not in dropped]
    if lost_replies:
        # Their turn was lost after the update was in the store.
        updates |= await asyncio.to_thread(stored_updates, place, plan, lost_replies)
    for update in updates.values():
        reason = answers_plan(update, plan, place.layout.update_weights(plan.round, update.client))
        if reason is not None:
            failures.append(
                ClientFailure(
                    client=update.client,
                    phase="request_update",
                    kind="client-error",
                    reason=f"an update that was not asked for: {reason}",
                )
            )
    refused = {failure.client for failure in failures}
    kept = tuple(updates[client] for client in clients if client in updates and client not in refused)
    for update in kept:
        place.reporter.client_done(
            "request_update",
            update.client,
            f"loss {update.train_loss:.3g}, {update.train_size} images in {update.train_seconds:.1f} s",
        )
    report_failures(place, failures)
    return TurnReply(
        updates=kept,
        failures=tuple(failures),
        downloaded=sum(reply.downloaded for reply in replies),
        uploaded=sum(reply.uploaded for reply in replies),
    )
