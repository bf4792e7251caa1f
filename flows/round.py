"""One round: its phases in the order of the protocol's table, then its commit.

A round is committed when ``round.json`` is in the store. It is written last, after the weights that it names. An
interrupted round is done again with the same plan, and takes over the updates that are already in the store.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial

from prefect import flow

from flows.commit import clear_up, commit
from flows.new_model import NewModel, usable_model
from flows.stored.detections import keep_scored
from flows.views.prefect_page import show_clients
from infra.orchestrator.flow_runs import unsearched
from tasks.aggregate import initial_weights
from tasks.check_client_resource import check_client_resource
from tasks.decide import decide
from tasks.environment import this_environment
from tasks.handles import Handles, current_handles
from tasks.metrics.over_clients import aggregate_metrics
from tasks.plain_text import few_of
from tasks.quorum import counted_weights, require_quorum
from tasks.replies import not_counted
from tasks.request_update import request_update, stored_updates
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, ClientInfo, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.records import Decision, Metrics, RoundRecord
from tasks.spec.turns import TurnReply
from tasks.stop_and_eval import Evaluations, images_to_score, joined, own_images_to_score, stop_and_eval
from tasks.strategies.registry import strategy_class


@flow(
    name="round",
    flow_run_name="{federation} · round {round_number}",
    persist_result=False,
    validate_parameters=False,
)
async def federated_round(federation: str, spec: FederationSpec, round_number: int) -> RoundRecord:
    """Run one of the rounds 1 to ``max_rounds``: plan, train, aggregate, evaluate, decide, commit.

    Raises:
        FedbenchError: the round cannot be completed; the message says which clients are missing and why.
    """
    handles = current_handles()
    history = handles.history
    clients = handles.ready
    clock = Clock()
    plan = await check_client_resource(federation, spec, round_number, unsearched(clients), history[-1].model)
    clock.lap("check_client_resource")
    gathered = await gather_updates(handles, spec, plan)
    dropped = [*handles.not_ready, *gathered.dropped]
    require_quorum(spec, plan, gathered.updates, dropped)
    clock.lap("request_update")
    evaluate = partial(evaluate_updated, federation, spec, round_number, clients)
    new = await usable_model(handles, spec, plan, gathered.updates, dropped, evaluate, clock.lap)
    metrics = aggregate_metrics(
        new.updates,
        new.evaluations,
        weights=counted_weights(spec, plan, new.updates),
        max_share=spec.participation.max_weight_share,
        personal=new.personal,
        shared_model=spec.strategy.shared_model,
    )
    decision = await decide(spec, round_number, unsearched([*(record.metrics for record in history), metrics]))
    clock.lap("decide")
    record = round_record(federation, spec, new, metrics, decision, clock, plan=plan, gathered=gathered)
    await asyncio.to_thread(keep_scored, handles, spec, record, new.scored)
    await asyncio.to_thread(commit, handles, record)
    await asyncio.gather(asyncio.to_thread(clear_up, handles, record), show_clients(handles, record))
    return record


@flow(
    name="round-0",
    flow_run_name="{federation} · initial model",
    persist_result=False,
    validate_parameters=False,
)
async def initial_round(federation: str, spec: FederationSpec) -> RoundRecord:
    """Run round 0: make the initial model from the seed, evaluate and commit it."""
    handles = current_handles()
    clients = handles.ready
    clock = Clock()
    model = await asyncio.to_thread(initial_weights, handles, spec, len(clients[0].class_counts))
    clock.lap("initial_weights")
    evaluated = await evaluate_models(federation, spec, 0, clients, model, first_states(spec, model))
    clock.lap("stop_and_eval")
    metrics = aggregate_metrics(
        [],
        evaluated.records,
        max_share=spec.participation.max_weight_share,
        personal=evaluated.personal,
        shared_model=spec.strategy.shared_model,
    )
    decision = await decide(spec, 0, [metrics])
    new = NewModel(
        model,
        [],
        [],
        evaluated.records,
        evaluated.unscored,
        evaluated.bytes_down,
        evaluated.bytes_up,
        personal=evaluated.personal,
        without_personal=evaluated.without_personal,
        scored=evaluated.scored,
    )
    record = round_record(federation, spec, new, metrics, decision, clock)
    await asyncio.to_thread(keep_scored, handles, spec, record, new.scored)
    await asyncio.to_thread(commit, handles, record)
    await asyncio.to_thread(clear_up, handles, record)
    return record


class Clock:
    """The wall time of each phase, in seconds. The times of a repeated phase add up."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.monotonic()

    def lap(self, phase: str) -> None:
        now = time.monotonic()
        self.laps[phase] = round(self.laps.get(phase, 0) + now - self._last, 4)
        self._last = now


@dataclass(frozen=True)
class GatheredUpdates:
    """The updates of a round's cohort and its dropped clients, both in client order, and the bytes transferred."""

    updates: list[UpdateRecord] = field(default_factory=list)
    dropped: list[ClientFailure] = field(default_factory=list)
    bytes_down: int = 0
    bytes_up: int = 0


def round_record(
    federation: str,
    spec: FederationSpec,
    new: NewModel,
    metrics: Metrics,
    decision: Decision,
    clock: Clock,
    *,
    plan: RoundPlan | None = None,
    gathered: GatheredUpdates = GatheredUpdates(),
) -> RoundRecord:
    """Return the record that commits a round at this moment. Round 0 has neither a plan nor updates."""
    handles = current_handles()
    dropped = [*handles.not_ready, *gathered.dropped, *new.dropped, *new.unscored]
    return RoundRecord(
        federation=federation,
        round=0 if plan is None else plan.round,
        spec_digest=spec.digest,
        plan=plan,
        clients=tuple(handles.ready),
        updates=tuple(new.updates),
        dropped=(
            *not_counted(dropped, new.updates, new.evaluations, of_each=len(spec.evaluation.parts)),
            *new.without_personal,
        ),
        model=new.model,
        server=new.server,
        shared=new.shared,
        states=first_states(spec, new.model) if plan is None else current_states(handles, new.updates),
        evaluations=tuple(new.evaluations),
        personal=tuple(new.personal),
        metrics=metrics,
        decision=decision,
        seconds=clock.laps,
        bytes_up=gathered.bytes_up + new.bytes_up,
        bytes_down=gathered.bytes_down + new.bytes_down,
        environment=this_environment(spec),
        committed=datetime.now(UTC),
    )


def first_states(spec: FederationSpec, model: WeightRef) -> dict[str, WeightRef]:
    """Return the state of each client after round 0: ``model``, the initial one, if the method begins with it.

    All clients of the federation are in it, whether ready or not, because one may be drawn first in any later round.
    """
    return dict.fromkeys(spec.clients or (), model) if strategy_class(spec).begins_with_model else {}


def current_states(handles: Handles, updates: Sequence[UpdateRecord]) -> dict[str, WeightRef]:
    """Return the state of each client after a round with ``updates``: a new one, or that of its last counted round."""
    before = handles.history[-1].states if handles.history else {}
    return before | {update.client: update.state for update in updates if update.state is not None}


async def gather_updates(handles: Handles, spec: FederationSpec, plan: RoundPlan) -> GatheredUpdates:
    """Run one task per shard, all at once. Take over stored updates of the interrupted round that fit the plan."""
    started = time.monotonic()
    handles.reporter.phase_started("request_update", len(plan.cohort))
    stored = await asyncio.to_thread(stored_updates, handles, plan)
    for client in stored:
        handles.reporter.client_done("request_update", client, "taken over from before the interruption")
    shards = [tuple(client for client in shard if client not in stored) for shard in plan.shards]
    replies: list[TurnReply] = await asyncio.gather(
        *(request_update(spec, unsearched(plan), plan.round, shard, shard_label(shard)) for shard in shards if shard)
    )
    handles.reporter.phase_finished("request_update", time.monotonic() - started)
    updates = stored | {update.client: update for reply in replies for update in reply.updates}
    failures = {failure.client: failure for reply in replies for failure in reply.failures}
    return GatheredUpdates(
        updates=[updates[client] for client in plan.cohort if client in updates],
        dropped=[failures[client] for client in plan.cohort if client in failures],
        bytes_down=sum(reply.downloaded for reply in replies),
        bytes_up=sum(reply.uploaded for reply in replies) + sum(update.bytes_up for update in stored.values()),
    )


def shard_label(clients: Sequence[str]) -> str:
    """Return the label of a shard's task run, as ``client 3`` or ``clients 1, 2, 5 and 4 more``."""
    return f"client{'s' if len(clients) > 1 else ''} {few_of(clients)}"


async def evaluate_updated(
    federation: str,
    spec: FederationSpec,
    round_number: int,
    clients: Sequence[ClientInfo],
    model: WeightRef,
    updates: Sequence[UpdateRecord],
    suffix: str = "",
) -> Evaluations:
    """Evaluate ``model``, which is made of ``updates``, as :func:`evaluate_models`."""
    states = current_states(current_handles(), updates)
    return await evaluate_models(federation, spec, round_number, clients, model, states, suffix)


async def evaluate_models(
    federation: str,
    spec: FederationSpec,
    round_number: int,
    clients: Sequence[ClientInfo],
    model: WeightRef,
    states: Mapping[str, WeightRef],
    suffix: str = "",
) -> Evaluations:
    """Evaluate ``model``, if it is complete, and each client's own model, if the method keeps any.

    ``model`` is scored on all images that ``spec`` scores, one task for each test set or client's held-out images; an
    own model, which ``model`` and the client's state in ``states`` make up, on its client's. The tasks run all at once.
    ``suffix`` ends their names.
    """
    handles = current_handles()
    started = time.monotonic()
    shared = images_to_score(spec, clients) if spec.strategy.shared_model else []
    own = own_images_to_score(spec, clients) if spec.strategy.personal else []
    handles.reporter.phase_started("stop_and_eval", len(shared) + len(own))

    def label(group: Sequence[ClientInfo], on: str, what: str = "") -> str:
        return shard_label([info.client for info in group]) + what + (" · held-out" if on == "holdout" else "") + suffix

    ask = partial(stop_and_eval, federation, spec, round_number)
    answers = await asyncio.gather(
        *(ask(unsearched(group), model, label(group, on), on) for on, group in shared),
        *(
            ask(unsearched([info]), model, label([info], on, " · own model"), on, True, states.get(info.client))
            for on, info in own
        ),
    )
    handles.reporter.phase_finished("stop_and_eval", time.monotonic() - started)
    return joined(answers)
