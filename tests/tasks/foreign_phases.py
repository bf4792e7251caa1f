"""Run each phase with the three silos to its end. Return the clients that count, those dropped, and the records."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from tasks.aggregate import aggregate_updates
from tasks.check_client_resource import check_client_resource
from tasks.draw_sheet import read_sheet
from tasks.hand_out import hand_out
from tasks.metrics.over_clients import aggregate_metrics
from tasks.request_update import request_update, stored_updates
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure
from tasks.spec.turns import AnyRequest, SheetRequest, TurnReply, UpdateRequest
from tasks.stop_and_eval import stop_and_eval
from tasks.wake_up import wake_up
from tests.tasks.foreign_silos import CLIENTS, DIGEST, FOREIGN, SPEC, Silos, info


@dataclass
class Outcome:
    counted: list[str]
    dropped: list[ClientFailure]
    records: list[BaseModel]


def awake(silos: Silos, spec: FederationSpec = SPEC) -> Outcome:
    ready, failures = silos.runner.run(wake_up.fn("foreign", spec, CLIENTS, 2))
    return Outcome([item.client for item in ready], failures, list(ready))


def drawn(silos: Silos, spec: FederationSpec = SPEC) -> Outcome:
    infos = [info(name) for name in CLIENTS]
    plan = silos.runner.run(check_client_resource.fn("foreign", spec, 3, infos, silos.model))
    return Outcome(list(plan.cohort), list(plan.draws[-1].failures), [plan])


def updated(silos: Silos, spec: FederationSpec = SPEC) -> Outcome:
    async def ask() -> list[TurnReply]:
        return await asyncio.gather(*(request_update.fn(spec, silos.plan, 3, (name,), name) for name in CLIENTS))

    replies = silos.runner.run(ask())
    updates = [update for reply in replies for update in reply.updates]
    new = aggregate_updates(silos.handles, spec, silos.plan, updates)
    dropped = [item for reply in replies for item in reply.failures] + new.dropped
    return Outcome([item.client for item in new.counted], dropped, [*new.counted, aggregate_metrics(new.counted, [])])


def scored(silos: Silos, spec: FederationSpec = SPEC) -> Outcome:
    infos = [info(name) for name in CLIENTS]
    found = silos.runner.run(stop_and_eval.fn("foreign", spec, 3, infos, silos.model, "all"))
    if not found.records:
        return Outcome([], found.unscored, [])
    (evaluation,) = found.records
    return Outcome(list(evaluation.clients), found.unscored, [evaluation, aggregate_metrics([], [evaluation])])


def taken_over(silos: Silos, spec: FederationSpec = SPEC) -> Outcome:
    """Take over the records of an interrupted round. ``tamper`` changes the foreign silo's record."""
    for client in CLIENTS:
        request = UpdateRequest(
            federation="foreign", spec=spec, clients=(client,), round=3, spec_digest=DIGEST, model=silos.model,
            seeds={}, learning_rate=0.1,
        )  # fmt: skip
        silos.put_record(request)
    found = stored_updates(silos.handles, silos.plan)
    dropped = [ClientFailure(client=FOREIGN, phase="request_update", kind="client-error", reason="trains again")]
    return Outcome(list(found), [] if FOREIGN in found else dropped, list(found.values()))


def pictured(silos: Silos, spec: FederationSpec = SPEC) -> Outcome:
    """Let the foreign silo draw a sheet. The other clients are not asked, and count."""
    found: list[bytes] = []

    async def accept(asked: AnyRequest, reply: TurnReply) -> None:
        assert isinstance(asked, SheetRequest)
        found.append(await asyncio.to_thread(read_sheet, silos.handles, asked, reply))

    request = SheetRequest(federation="foreign", spec=spec, clients=(FOREIGN,), model=silos.model, images=3)
    replies = silos.runner.run(hand_out(silos.handles, request, accept=accept))
    counted = [client for client in CLIENTS if client != FOREIGN or found]
    return Outcome(counted, [item for reply in replies for item in reply.failures], [])


Phase = Callable[[Silos, Any], Outcome]
PHASES: dict[str, Phase] = {
    "wake_up": awake,
    "check_client_resource": drawn,
    "request_update": updated,
    "stop_and_eval": scored,
    "stored": taken_over,
    "sheet": pictured,
}
