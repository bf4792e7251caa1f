"""Fine-tuning after the last round: each client trains the global model on its own images, and keeps the result.

It is no round. The models are at ``fine-tuned/NNNN/`` of the last round ``NNNN``, whose commit comes first. A client's
model and its record are written like an update's, so that a killed run takes them over. The record of all is written
last. A federation that is extended keeps it, and tunes again at its new end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.errors import StoreCorrupt
from tasks.check_client_resource import pack_shards
from tasks.errors import SpecError
from tasks.hand_out import hand_out, report_failures
from tasks.handles import Handles, current_handles
from tasks.replies import failure_of, record_limit
from tasks.request_update import answers_plan, method_fault
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientInfo, RoundPlan, UpdateRecord
from tasks.spec.records import FineTunedRecord, RoundRecord
from tasks.spec.strategies import FedAvgSpec
from tasks.spec.turns import TurnReply, UpdateRequest
from tasks.training.optimizers import learning_rate
from tasks.training.seeds import derive_seed
from tasks.whole import DamagedObject, find_whole


def tuning_spec(spec: FederationSpec) -> FederationSpec:
    """Return the specification of the clients' turns: plain training, for as many epochs as ``spec.fine_tuning``."""
    assert spec.fine_tuning is not None
    return spec.model_copy(
        update={
            "strategy": FedAvgSpec(),
            "training": spec.training.model_copy(update={"local_epochs": spec.fine_tuning.epochs}),
            "participation": spec.participation.model_copy(update={"partial_sums": False}),
            "fine_tuning": None,
        }
    )


def tuning_plan(spec: FederationSpec, last: RoundRecord, clients: Sequence[ClientInfo]) -> RoundPlan:
    """Return the plan of fine-tuning the model of ``last`` at ``clients``, as of the round that would be next."""
    assert spec.fine_tuning is not None
    number = last.round + 1
    sizes = {info.client: info.train_size for info in clients}
    scheduled = learning_rate(spec.training.optimizer.lr, spec.training.schedule, number)
    return RoundPlan(
        federation=last.federation,
        round=number,
        spec_digest=spec.digest,
        model=last.model,
        draws=(),
        cohort=tuple(sizes),
        shards=pack_shards(sizes, spec.participation.shards),
        seeds={client: derive_seed(spec.seed, "fine-tuning", last.round, client) for client in sizes},
        learning_rate=scheduled if spec.fine_tuning.lr is None else spec.fine_tuning.lr,
        train_sizes=sizes,
        created=datetime.now(UTC),
    )


def read_fine_tuned(handles: Handles, spec: FederationSpec, last: RoundRecord) -> FineTunedRecord | None:
    """Return the record of fine-tuning the model of ``last``; None if it is not done, or that of another model."""
    try:
        record = find_whole(
            handles.objects, handles.layout.fine_tuned_record(last.round), FineTunedRecord, RECORD_VERSION
        )
    except DamagedObject:
        return None
    return record if record is not None and record.model == last.model else None


def tuning_fault(handles: Handles, update: UpdateRecord, plan: RoundPlan) -> str | None:
    """Return why ``update`` is not the fine-tuned model that ``plan`` asks for; None if it is."""
    key = handles.layout.fine_tuned_weights(plan.round - 1, update.client)
    return answers_plan(update, plan, key) or method_fault(update, plan, "")


def stored_models(handles: Handles, plan: RoundPlan, clients: Sequence[str]) -> dict[str, UpdateRecord]:
    """Return the stored models of ``clients`` that answer the plan, by client. Their weights are intact."""
    layout, number = handles.layout, plan.round - 1
    there = handles.objects.list(layout.fine_tuned(number))
    found = {}
    for client in clients:
        key = layout.fine_tuned_update(number, client)
        if key not in there:
            continue
        try:
            document = handles.objects.get_json(key, record_limit(plan))
            update = parse(UpdateRecord, document, source=key, newest=RECORD_VERSION)
            if update.client == client and tuning_fault(handles, update, plan) is None:
                handles.weights.get(update.weights.key, update.weights.sha256, update.weights.bytes)
                found[client] = update
        except (SpecError, StoreCorrupt):
            continue  # the client trains again and overwrites it
    return found


@task(name="fine_tune", task_run_name="fine_tune · {label}", cache_policy=NO_CACHE, persist_result=False)
async def fine_tune(spec: FederationSpec, plan: RoundPlan, clients: Sequence[str], label: str) -> TurnReply:
    """Ask ``clients`` for their fine-tuned models. Return those that answer the plan, and a failure for each other."""
    handles = current_handles()
    request = UpdateRequest(
        federation=plan.federation,
        spec=tuning_spec(spec),
        clients=tuple(clients),
        round=plan.round,
        spec_digest=plan.spec_digest,
        model=plan.model,
        seeds={client: plan.seeds[client] for client in clients},
        learning_rate=plan.learning_rate,
        train_sizes={client: (plan.train_sizes or {})[client] for client in clients},
        tuning=True,
    )

    async def finished() -> set[str]:
        return set(await asyncio.to_thread(stored_models, handles, plan, clients))

    replies = await hand_out(handles, request, deadline=spec.participation.turn_deadline, finished=finished)
    failures = {item.client: item for reply in replies for item in reply.failures}
    updates = {update.client: update for reply in replies for update in reply.updates}
    lost = [client for client in clients if client not in updates and client not in failures]
    if lost:  # the turn was lost after it had stored these clients' models
        updates |= await asyncio.to_thread(stored_models, handles, plan, lost)
    for client in clients:
        reason = tuning_fault(handles, updates[client], plan) if client in updates else "no fine-tuned model came"
        if reason is not None:
            failures.setdefault(client, failure_of("request_update", client, reason))
    report_failures(handles, list(failures.values()))
    return TurnReply(
        updates=tuple(updates[client] for client in clients if client not in failures),
        failures=tuple(failures[client] for client in clients if client in failures),
        downloaded=sum(reply.downloaded for reply in replies),
        uploaded=sum(reply.uploaded for reply in replies),
    )
