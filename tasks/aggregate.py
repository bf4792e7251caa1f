"""Phase 5, ``aggregate``: turn the cohort's updates into the next global model."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from torch import Tensor

from infra.errors import StoreCorrupt
from tasks.data.batches import cut_batches
from tasks.detectors.initial import initial_detector
from tasks.detectors.roles import roles_of, tensor_roles
from tasks.detectors.state import is_finite, state_of, write_state
from tasks.errors import ClientError
from tasks.hand_out import report_failures
from tasks.handles import Handles, current_handles
from tasks.partial_sums import by_object, incomplete_sums
from tasks.quorum import counted_weights, how_to_go_on, require_quorum
from tasks.replies import failure_of, not_counted
from tasks.request_update import update_fault
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientFailure, RoundPlan, UpdateRecord, WeightRef
from tasks.spec.shares import Weight
from tasks.strategies.base import Planned, ServerResult, ServerRound, Strategy
from tasks.strategies.registry import build_strategy
from tasks.strategies.sums import Counted, Sums
from tasks.strategies.tensor_file import TensorFile
from tasks.strategies.updates import Reference, check_update, read_reference
from tasks.training.optimizers import planned_rates


@dataclass(frozen=True)
class AggregatedState:
    """The new global model and server states, the updates that count in client order, and the clients dropped."""

    result: ServerResult
    counted: list[UpdateRecord]
    dropped: list[ClientFailure]


@dataclass(frozen=True)
class AggregatedModel:
    """The new global weights in the store, the updates that count in client order, and the clients dropped.

    model: None if not all values, those of the server's states included, are finite; nothing is stored then.
    dropped: clients whose update does not fit.
    server, shared: the server's new states, if the method keeps any.
    """

    model: WeightRef | None
    counted: list[UpdateRecord]
    dropped: list[ClientFailure]
    server: WeightRef | None = None
    shared: WeightRef | None = None


def initial_weights(handles: Handles, spec: FederationSpec, classes: int) -> WeightRef:
    """Store the initial model: weights from the specification's weight file, if any, and the rest drawn from its seed.

    Raises:
        DataError: the weight file is missing, has another digest, or does not fit.
        FedbenchError: the method keeps a part at the client that the detector does not have.
    """
    detector, report = initial_detector(spec.detector, classes, seed=spec.seed, file_of=handles.settings.weight_file)
    if report is not None:
        handles.reporter.message(str(report))
    if not spec.strategy.shared_model:
        build_strategy(spec).local_names(tensor_roles(detector))
    return store_global(handles, 0, state_of(detector))


def store_global(handles: Handles, round_number: int, state: Mapping[str, Tensor]) -> WeightRef:
    """Store ``state`` as the global weights of a round. Return their reference."""
    stored = handles.weights.put(handles.layout.global_weights(round_number), partial(write_state, state))
    return WeightRef.of(stored)


def aggregate_updates(
    handles: Handles, spec: FederationSpec, plan: RoundPlan, updates: Sequence[UpdateRecord]
) -> AggregatedState:
    """Stream the updates through the strategy in client order; a partial sum once, at its first client's turn.

    An update that was not asked for, or does not fit, does not count, and its client is dropped with the reason. Nor
    does a partial sum that holds it, so all clients of that sum are dropped too.

    Raises:
        ClientError: no update counts.
    """
    start = handles.weights.get(plan.model.key, plan.model.sha256, plan.model.bytes)
    reference = read_reference(start.path, client="(global model)")
    strategy, last = build_strategy(spec), _last_states(handles, spec, plan)
    if not spec.strategy.shared_model:
        local = strategy.local_names(last.roles)
        reference = {name: tensor for name, tensor in reference.items() if name not in local}
    order = {client: number for number, client in enumerate(plan.cohort)}
    kept, refused = _asked_for(handles, plan, sorted(updates, key=lambda item: order.get(item.client, len(order))))
    while True:
        sums, weights = Sums(strategy, reference), _weights(spec, plan, kept)
        check = partial(_check_figures, strategy, spec, plan, last, reference)
        counted, misfits = _stream(handles, sums, weights, kept, check)
        for client, reason in misfits.items():
            refused.setdefault(client, []).append(reason)
        counted.sort(key=lambda update: order[update.client])
        if not counted or all(weights[client] == weight for client, weight in _weights(spec, plan, counted).items()):
            break
        kept = counted  # without the updates that did not fit, the limit lowers other weights, so stream again
    dropped = [
        failure_of("aggregate", client, reason)
        for client in sorted(refused, key=lambda client: order.get(client, len(order)))
        for reason in refused[client]
    ]
    if not counted:
        reasons = "; ".join(item.reason for item in dropped)
        raise ClientError(f"round {plan.round}: no update counts: {reasons}{how_to_go_on(plan, dropped)}")
    # A client whose first update counts is not dropped for a second one.
    return AggregatedState(strategy.new_model(sums, last), counted, list(not_counted(dropped, counted, ())))


def _last_states(handles: Handles, spec: FederationSpec, plan: RoundPlan) -> ServerRound:
    """Return the global model and the server's states that the round started from. Tensors are read when needed."""

    def tensors(ref: WeightRef | None) -> Mapping[str, Tensor]:
        return {} if ref is None else TensorFile(handles.weights.get(ref.key, ref.sha256, ref.bytes).path)

    classes = len(handles.ready[0].class_counts) if handles.ready else 0
    clients = spec.clients
    return ServerRound(
        start=tensors(plan.model),
        roles_of=lambda: roles_of(spec.detector, classes),
        clients=len(handles.ready) + len(handles.not_ready) if clients is None else len(clients),
        server=tensors(plan.server),
        shared=tensors(plan.shared),
    )


def _check_figures(
    strategy: Strategy[Any],
    spec: FederationSpec,
    plan: RoundPlan,
    last: ServerRound,
    reference: Reference,
    client: Counted,
    file: Path | None,
) -> None:
    """Check the figures that a client reports. file: its update; None for a partial sum.

    Raises:
        ClientError: a figure is not what the plan and the update give, or the update does not fit ``reference``.
    """
    if not strategy.figures or plan.train_sizes is None:
        return
    if file is not None:
        check_update(reference, file, client=client.client)
    training = spec.training
    batches = training.local_epochs * len(cut_batches(plan.train_sizes[client.client], training.batch_size))
    warmup = training.schedule.warmup_steps if plan.round == 1 else 0
    strategy.check_figures(
        client,
        Planned(
            plan.learning_rate,
            planned_rates(batches, training.accumulate, plan.learning_rate, warmup),
            start=last.start,
            roles_of=last.roles_of,
            update=None if file is None else TensorFile(file),
        ),
    )


def _asked_for(
    handles: Handles, plan: RoundPlan, updates: Sequence[UpdateRecord]
) -> tuple[list[UpdateRecord], dict[str, list[str]]]:
    """Return the updates that count, and why the others do not, by client.

    An update counts if the plan asked for it, if it is the client's first, and if its partial sum is complete.
    """
    asked: dict[str, UpdateRecord] = {}
    refused: dict[str, list[str]] = {}
    for update in updates:
        foreign = update_fault(handles.layout, update, plan)
        if foreign is not None:
            refused.setdefault(update.client, []).append(f"an update that was not asked for: {foreign}")
        elif update.client in asked:
            reason = f"client {update.client}: expected one update in a round, found a second"
            refused.setdefault(update.client, []).append(reason)
        else:
            asked[update.client] = update
    incomplete = incomplete_sums(asked, {client: reasons[0] for client, reasons in refused.items()})
    for client, reason in incomplete.items():
        refused.setdefault(client, []).append(reason)
    return [update for update in asked.values() if update.client not in incomplete], refused


def _weights(spec: FederationSpec, plan: RoundPlan, updates: Sequence[UpdateRecord]) -> dict[str, Weight]:
    """Return :func:`counted_weights`, or the plan's weights if there are too few updates for the limit.

    In that case :func:`require_quorum` fails the round.
    """
    weights = counted_weights(spec, plan, updates)
    return {update.client: plan.weight_of(update) for update in updates} if weights is None else weights


def _stream(
    handles: Handles,
    sums: Sums,
    weights: Mapping[str, Weight],
    updates: Sequence[UpdateRecord],
    check: Callable[[Counted, Path | None], None],
) -> tuple[list[UpdateRecord], dict[str, str]]:
    """Add each object of ``updates`` to ``sums``. Return the accepted updates, and why others were refused.

    check: called with each client and the file of its update, or None for a partial sum's; raises ClientError.
    """
    counted: list[UpdateRecord] = []
    refused: dict[str, str] = {}
    for shared in by_object(updates):
        ref, clients = shared[0].weights, [update.client for update in shared]
        label = ", ".join(clients)
        try:
            try:
                fetched = handles.weights.get(ref.key, ref.sha256, ref.bytes)
            except StoreCorrupt as error:
                raise ClientError(f"client {label}: {error}") from None
            parts = [Counted(update.client, weights[update.client], update.figures) for update in shared]
            together = shared[0].shard is not None
            for part in parts:
                check(part, None if together else fetched.path)
            sums.accumulate(fetched.path, parts, partial_sum=together)
        except ClientError as error:
            refused |= dict.fromkeys(clients, str(error))
        else:
            counted += shared
    return counted, refused


@task(
    name="aggregate",
    task_run_name="aggregate · {label}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def aggregate(
    spec: FederationSpec,
    plan: RoundPlan,
    updates: Sequence[UpdateRecord],
    dropped: Sequence[ClientFailure],
    label: str,
) -> AggregatedModel:
    """Aggregate the round's updates and store the new global weights.

    dropped: clients that were dropped before, for the message about a missed quorum.

    Raises:
        FedbenchError: fewer updates count than the quorum.
        ClientError: no update counts.
    """
    handles = current_handles()
    started = time.monotonic()
    handles.reporter.phase_started("aggregate", 0)
    new = await asyncio.to_thread(aggregate_updates, handles, spec, plan, updates)
    report_failures(handles, new.dropped)
    require_quorum(spec, plan, new.counted, [*dropped, *new.dropped])
    model, server, shared = await asyncio.to_thread(_stored, handles, plan.round, new.result)
    handles.reporter.phase_finished("aggregate", time.monotonic() - started)
    return AggregatedModel(model, new.counted, new.dropped, server, shared)


def _stored(
    handles: Handles, round_number: int, result: ServerResult
) -> tuple[WeightRef | None, WeightRef | None, WeightRef | None]:
    """Store the new global weights and the server's states. Return their references; none if a value is not finite."""
    states = (result.model, result.server, result.shared)
    if not all(is_finite(state) for state in states if state is not None):
        return None, None, None

    def put(key: str, state: Mapping[str, Tensor] | None) -> WeightRef | None:
        return None if state is None else WeightRef.of(handles.weights.put(key, partial(write_state, state)))

    layout = handles.layout
    model = store_global(handles, round_number, result.model)
    server = put(layout.server_state(round_number), result.server)
    return model, server, put(layout.shared_state(round_number), result.shared)
