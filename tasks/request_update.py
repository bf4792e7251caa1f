"""Phases 3 and 4, ``request_update`` and ``client_update``: local training from the global weights."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from infra.errors import StoreCorrupt
from tasks.data.loading import training_loader
from tasks.detectors.state import check_finite, load_state, state_of, write_state
from tasks.errors import ClientError, DataError, SpecError
from tasks.hand_out import hand_out, report_failures
from tasks.handles import Handles, current_handles
from tasks.partial_sums import by_object, incomplete_sums, shard_fault, weights_key
from tasks.replies import HEADER_SLACK, failure_of, record_limit
from tasks.site import Site
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.records import ClientFailure, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.shares import Weight
from tasks.spec.turns import TurnReply, UpdateRequest
from tasks.strategies.fedavg import FedAvg
from tasks.training.local import TrainingResult, train

log = logging.getLogger(__name__)

Figure = TypeVar("Figure", int, Weight)


@dataclass(frozen=True)
class Trained:
    """What a client's turn brought, without its weights. ``downloaded``: bytes that came from the store for it."""

    client: str
    train_size: int
    result: TrainingResult
    seconds: float
    downloaded: int


def client_update(site: Site, request: UpdateRequest) -> TurnReply:
    """In a slot: train each client of the turn; its weights and then its record go to the store.

    With ``participation.partial_sums`` nothing does until all are trained: then the mean of those that did not fail,
    and a record for each of them.

    Raises:
        StoreUnavailable, StoreCorrupt: the place's failure, not a client's.
    """
    layout = site.layout(request.federation)
    together = request.spec.participation.partial_sums
    mean = FedAvg()
    through: list[Trained] = []
    updates: list[UpdateRecord] = []
    failures: list[ClientFailure] = []
    for client in request.clients:
        try:
            trained, state = train_client(site, request, client)
            if together:
                weight = trained.train_size if request.weights is None else request.weights[client]
                mean.accumulate_state(state, weight, client=client)
        except (ClientError, DataError) as error:
            failures.append(_refusal(client, str(error)))
            continue
        through.append(trained)
        if not together:
            updates += put_updates(site, request, layout.update_weights(request.round, client), state, [trained])
    if together and through:
        key = layout.partial_sum(request.round, through[0].client)
        updates = put_updates(site, request, key, mean.result(), through)
    return TurnReply(
        updates=tuple(updates),
        failures=tuple(failures),
        downloaded=sum(trained.downloaded for trained in through),
        uploaded=sum(update.bytes_up for update in updates),
    )


def train_client(site: Site, request: UpdateRequest, client: str) -> tuple[Trained, dict[str, Tensor]]:
    """One client's training. Its state is a view of the site's detector: to be used before the next client's.

    Raises:
        ClientError, DataError: the client's own fault.
        StoreUnavailable, StoreCorrupt: the place's.
    """
    started = time.perf_counter()
    spec = request.spec
    data = site.data_of(spec.data, client)
    samples = data.train[client]
    _check_size(len(samples), request, client)
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
    return Trained(client, len(samples), result, time.perf_counter() - started, fetched.downloaded), state


def _check_size(found: int, request: UpdateRequest, client: str) -> None:
    expected = found if request.train_sizes is None else request.train_sizes[client]
    if found != expected:
        raise ClientError(
            f"client {client}: its training images have changed since wake_up: expected {expected}, found {found}"
        )
    if not found:
        raise ClientError(f"client {client}: expected at least 1 training image, found none")


def put_updates(
    site: Site, request: UpdateRequest, key: str, state: dict[str, Tensor], through: Sequence[Trained]
) -> list[UpdateRecord]:
    """Store ``state`` as ``key``, then the record of each client that it is of."""
    started = time.perf_counter()
    layout = site.layout(request.federation)
    stored = site.weights.put(key, partial(write_state, state))
    together = request.spec.participation.partial_sums
    uploading = (time.perf_counter() - started) / len(through)
    records = []
    for trained in through:
        record = UpdateRecord(
            federation=request.federation,
            round=request.round,
            client=trained.client,
            spec_digest=request.spec_digest,
            model=request.model.sha256,
            seed=request.seeds[trained.client],
            weights=WeightRef(key=stored.key, sha256=stored.sha256, bytes=stored.bytes),
            shard=tuple(member.client for member in through) if together else None,
            train_size=trained.train_size,
            train_loss=trained.result.loss,
            loss_terms=trained.result.terms,
            steps=trained.result.steps,
            seconds=trained.seconds + uploading,
            train_seconds=trained.result.seconds,
            bytes_down=request.model.bytes,
            host=site.host,
            device=site.device_name(request.spec),
        )
        site.objects.put_json(layout.update_record(request.round, trained.client), record.model_dump(mode="json"))
        records.append(record)
    return records


def answers_plan(update: UpdateRecord, plan: RoundPlan, key: str) -> str | None:
    """Why ``update`` does not count in the round of ``plan``; None when it does.

    It counts when it was asked for: this federation, round and experiment, a client of the cohort, from the round's
    global weights and with the client's seed, over as many images as ``wake_up`` counted (which its weight comes
    from), its weights where the plan expects them (``key``), no larger than the global weights, which are all that it
    needed from the store. Of a partial sum that is half of it: all its clients must
    (:func:`tasks.partial_sums.incomplete_sums`).
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
    if plan.train_sizes is not None:
        expected["train_size"] = plan.train_sizes[update.client]
    for field, value in expected.items():
        if getattr(update, field) != value:
            return f"client {update.client}: {field}: expected {value}, found {getattr(update, field)}"
    fault = shard_fault(update, plan)
    if fault is not None:
        return f"client {update.client}: {fault}"
    if update.weights.key != key:
        return f"client {update.client}: weights: expected {key}, found {update.weights.key[:200]}"
    most = plan.model.bytes + HEADER_SLACK
    if update.weights.bytes > most:
        return f"client {update.client}: weights: expected at most {most} bytes, found {update.weights.bytes}"
    if update.bytes_down > plan.model.bytes:
        return f"client {update.client}: bytes_down: expected at most {plan.model.bytes}, found {update.bytes_down}"
    return None


def stored_updates(handles: Handles, plan: RoundPlan, clients: Sequence[str] | None = None) -> dict[str, UpdateRecord]:
    """Updates of an open round that are in the store and answer its plan, by client; their weights are there too.

    ``clients``: those that are looked for; left out, the whole cohort. A partial sum's are all there, or none of them.
    """
    layout = handles.layout
    there = handles.objects.list(layout.updates(plan.round))  # most often none: one request, not one a client
    found = {}
    # Whether a partial sum is whole, the clients that are looked for do not tell.
    for client in plan.cohort if clients is None or plan.partial_sums else clients:
        key = layout.update_record(plan.round, client)
        if key not in there:
            continue
        try:
            document = handles.objects.get_json(key, record_limit(plan))
            update = parse(UpdateRecord, document, source=key, newest=RECORD_VERSION)
        except (SpecError, StoreCorrupt):
            continue  # somebody else's object; the client trains anew and writes over it
        if answers_plan(update, plan, weights_key(layout, update, plan.round)) is None and update.client == client:
            found[client] = update
    incomplete = incomplete_sums(found, {})
    incomplete |= damaged_updates(handles, plan, [found[client] for client in found if client not in incomplete])
    wanted = found.keys() if clients is None else set(clients)
    return {client: update for client, update in found.items() if client in wanted and client not in incomplete}


def damaged_updates(handles: Handles, plan: RoundPlan, updates: Iterable[UpdateRecord]) -> dict[str, str]:
    """Clients whose update answers the plan, while its weights in the store are not those that it names; and why.

    A damaged partial sum is so for each of its clients. The weights of the others are on this machine afterwards.
    """
    asked = [
        update
        for update in updates
        if answers_plan(update, plan, weights_key(handles.layout, update, plan.round)) is None
    ]
    found: dict[str, str] = {}
    for shared in by_object(asked):
        weights = shared[0].weights
        try:
            handles.weights.get(weights.key, weights.sha256, weights.bytes)
        except StoreCorrupt as error:
            found |= {update.client: str(error) for update in shared}
    order = {client: number for number, client in enumerate(plan.cohort)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _refusal(client: str, reason: str) -> ClientFailure:
    return failure_of("request_update", client, reason)


def _of(figures: dict[str, Figure] | None, clients: Sequence[str]) -> dict[str, Figure] | None:
    return None if figures is None else {client: figures[client] for client in clients}


@task(
    name="request_update",
    task_run_name="request_update · round {round_number} · {label}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def request_update(
    spec: FederationSpec, plan: RoundPlan, round_number: int, clients: Sequence[str], label: str
) -> TurnReply:
    """Ask one shard of the cohort for its updates; lost turns are run again (:func:`tasks.hand_out.hand_out`)."""
    handles = current_handles()
    request = UpdateRequest(
        federation=plan.federation,
        spec=spec,
        clients=tuple(clients),
        round=round_number,
        spec_digest=plan.spec_digest,
        model=plan.model,
        seeds={client: plan.seeds[client] for client in clients},
        learning_rate=plan.learning_rate,
        train_sizes=_of(plan.train_sizes, clients),
        weights=_of(plan.weights, clients),
    )

    async def finished() -> set[str]:
        return set(await asyncio.to_thread(stored_updates, handles, plan, clients))

    async def ask(asked: UpdateRequest) -> list[TurnReply]:
        rule = spec.participation
        return await hand_out(
            handles, asked, deadline=rule.turn_deadline, finished=finished, together=rule.partial_sums
        )

    replies = await ask(request)
    failures = [item for reply in replies for item in reply.failures]
    dropped = {item.client for item in failures}
    updates: dict[str, UpdateRecord] = {}
    for update in (update for reply in replies for update in reply.updates):
        updates.setdefault(update.client, update)  # a second one never counts
    lost_replies = [client for client in clients if client not in updates and client not in dropped]
    if lost_replies:
        # Their turn was lost after the update was in the store.
        updates |= await asyncio.to_thread(stored_updates, handles, plan, lost_replies)
    damaged = await asyncio.to_thread(damaged_updates, handles, plan, updates.values())
    if damaged:
        for client, fault in damaged.items():
            log.warning("client %s: its update is asked for again: %s", client, fault)
            handles.reporter.client_retried("request_update", client, 1, fault)
        again = await ask(request.model_copy(update={"clients": tuple(damaged)}))
        replies += again
        failures += [item for reply in again for item in reply.failures]
        updates = {client: update for client, update in updates.items() if client not in damaged}
        updates |= {item.client: item for reply in again for item in reply.updates if item.client in damaged}
    for update in updates.values():
        reason = answers_plan(update, plan, weights_key(handles.layout, update, plan.round))
        if reason is not None:
            failures.append(_refusal(update.client, f"an update that was not asked for: {reason}"))
    reasons = {item.client: item.reason for item in failures}
    answering = {client: update for client, update in updates.items() if client not in reasons}
    failures += [_refusal(client, reason) for client, reason in incomplete_sums(answering, reasons).items()]
    refused = {item.client for item in failures}
    kept = tuple(updates[client] for client in clients if client in updates and client not in refused)
    for update in kept:
        handles.reporter.client_done(
            "request_update",
            update.client,
            f"loss {update.train_loss:.3g}, {update.train_size} images in {update.train_seconds:.1f} s",
        )
    report_failures(handles, failures)
    return TurnReply(
        updates=kept,
        failures=tuple(failures),
        downloaded=sum(reply.downloaded for reply in replies),
        uploaded=sum(reply.uploaded for reply in replies),
    )
