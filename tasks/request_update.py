"""Phase 3, ``request_update``: ask the cohort for its updates, and accept those that answer the round's plan."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE

from infra.errors import StoreCorrupt
from infra.store.layout import FederationLayout
from tasks.errors import SpecError
from tasks.hand_out import hand_out, report_failures
from tasks.handles import Handles, current_handles
from tasks.partial_sums import by_object, incomplete_sums, shard_fault, weights_key
from tasks.replies import HEADER_SLACK, failure_of, record_limit
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.shares import Weight
from tasks.spec.turns import TurnReply, UpdateRequest

log = logging.getLogger(__name__)

Figure = TypeVar("Figure", int, Weight)


def answers_plan(update: UpdateRecord, plan: RoundPlan, key: str) -> str | None:
    """Return why ``update`` does not count in the round of ``plan``; None when it does.

    It counts when it matches what the plan asked for: federation, round, experiment, a client of the cohort, the
    round's global weights, the client's seed, and the number of images that ``wake_up`` counted, on which its weight is
    based. Its weights must be at ``key``, and no larger than the global weights; a partial sum may have that size for
    each of its means. The client must not report that it downloaded more than the plan gave it. A partial sum counts
    only if the updates of all its clients do, which :func:`tasks.partial_sums.incomplete_sums` checks.
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
    means = 1 if update.shard is None else plan.means
    most = means * (plan.model.bytes + HEADER_SLACK)
    if update.weights.bytes > most:
        return f"client {update.client}: weights: expected at most {most} bytes, found {update.weights.bytes}"
    most = plan.fetched_bytes(update.client)
    if update.bytes_down > most:
        return f"client {update.client}: bytes_down: expected at most {most}, found {update.bytes_down}"
    return None


def update_fault(layout: FederationLayout, update: UpdateRecord, plan: RoundPlan) -> str | None:
    """Return why ``update`` does not count in the round of ``plan``, its state and figures included; else None."""
    fault = answers_plan(update, plan, weights_key(layout, update, plan.round))
    if fault is not None:
        return fault
    fault = method_fault(update, plan, layout.client_state(plan.round, update.client))
    return None if fault is None else f"client {update.client}: {fault}"


def method_fault(update: UpdateRecord, plan: RoundPlan, state_key: str) -> str | None:
    """Return what is wrong with the states or the figures of ``update`` for the round's method; None if nothing is.

    The client must have started from the states of the plan: from others it would have trained another model.
    """
    states = tuple(ref.sha256 for ref in plan.states_of(update.client))
    if update.started_from != states:
        expected, found = (", ".join(digests) or "no state" for digests in (states, update.started_from))
        return f"started_from: expected {expected}, found {found}"
    if set(update.figures) != set(plan.figures):
        expected, found = (", ".join(sorted(names)) or "none" for names in (plan.figures, update.figures))
        return f"figures: expected {expected}, found {found[:200]}"
    if plan.states is None:
        return None if update.state is None else f"state: expected none, found {update.state.key[:200]}"
    if update.state is None:
        return f"state: expected {state_key}, found none"
    if update.state.key != state_key:
        return f"state: expected {state_key}, found {update.state.key[:200]}"
    most = plan.model.bytes + HEADER_SLACK
    if update.state.bytes > most:
        return f"state: expected at most {most} bytes, found {update.state.bytes}"
    return None


def stored_updates(handles: Handles, plan: RoundPlan, clients: Sequence[str] | None = None) -> dict[str, UpdateRecord]:
    """Return the stored updates of an open round that answer its plan, by client. Their weights are intact.

    ``clients``: whose updates to look for; left out, the whole cohort. The updates of a partial sum count only if those
    of all its clients are stored.
    """
    layout = handles.layout
    # One listing instead of a request for each client: most often no update is there.
    there = handles.objects.list(layout.updates(plan.round))
    found = {}
    # A partial sum may also hold clients that are not looked for, so the whole cohort is read.
    for client in plan.cohort if clients is None or plan.partial_sums else clients:
        key = layout.update_record(plan.round, client)
        if key not in there:
            continue
        try:
            document = handles.objects.get_json(key, record_limit(plan))
            update = parse(UpdateRecord, document, source=key, newest=RECORD_VERSION)
        except (SpecError, StoreCorrupt):
            continue  # not an update of ours: the client trains again and overwrites it
        if update.client == client and update_fault(layout, update, plan) is None:
            found[client] = update
    incomplete = incomplete_sums(found, {})
    incomplete |= damaged_updates(handles, plan, [found[client] for client in found if client not in incomplete])
    wanted = found.keys() if clients is None else set(clients)
    return {client: update for client, update in found.items() if client in wanted and client not in incomplete}


def damaged_updates(handles: Handles, plan: RoundPlan, updates: Iterable[UpdateRecord]) -> dict[str, str]:
    """Return the clients whose update answers the plan but whose stored weights are missing or damaged, and the fault.

    Each client of a partial sum is reported if the sum or a state of one of its clients is damaged. Intact weights are
    cached on this machine afterwards. A client's state must be there with its size; its content is checked by the turn
    that reads it.
    """
    asked = [update for update in updates if update_fault(handles.layout, update, plan) is None]
    keeps_states = plan.states is not None and asked
    states = handles.objects.list(handles.layout.client_states(plan.round)) if keeps_states else {}
    found: dict[str, str] = {}
    for shared in by_object(asked):
        weights = shared[0].weights
        try:
            handles.weights.get(weights.key, weights.sha256, weights.bytes)
            _require_states([update.state for update in shared if update.state is not None], states)
        except StoreCorrupt as error:
            found |= {update.client: str(error) for update in shared}
    order = {client: number for number, client in enumerate(plan.cohort)}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _require_states(states: Iterable[WeightRef], there: Mapping[str, int]) -> None:
    """
    Raises:
        StoreCorrupt: a state is missing, or has another size. there: the sizes of the stored states, by key.
    """
    for state in states:
        size = there.get(state.key)
        if size != state.bytes:
            found = "no object" if size is None else f"{size} bytes"
            raise StoreCorrupt(f"{state.key}: expected {state.bytes} bytes, found {found}")


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
    """Ask one shard of the cohort for its updates. Return those that answer the plan, and a failure for each other.

    Lost turns run again (:func:`tasks.hand_out.hand_out`).
    """
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
        shared=plan.shared,
        states=None if plan.states is None else {name: plan.states[name] for name in clients if name in plan.states},
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
        # The turn was lost after it had stored these clients' updates.
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
        reason = update_fault(handles.layout, update, plan)
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
