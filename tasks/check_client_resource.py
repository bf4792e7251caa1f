"""Phase 2, ``check_client_resource``: draw clients, ask for their load, and store the round's plan."""

from __future__ import annotations

import asyncio
import heapq
import logging
import random
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE

from tasks.errors import FedbenchError
from tasks.hand_out import hand_out, report_failures
from tasks.handles import Handles, current_handles
from tasks.spec.base import RECORD_VERSION
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import ClientInfo, Draw, ResourceAnswer, RoundPlan, WeightRef
from tasks.spec.shares import limited, majority
from tasks.spec.turns import ResourceRequest
from tasks.strategies.registry import strategy_class
from tasks.training.optimizers import learning_rate
from tasks.training.seeds import derive_seed
from tasks.whole import DamagedObject, find_whole, set_aside

log = logging.getLogger(__name__)

# Longest wait between two draws. As in the original, each wait is a second longer than the one before, up to this.
MAX_WAIT_SECONDS = 10


def draw_clients(spec: FederationSpec, ready: Sequence[str], round_number: int, attempt: int) -> tuple[str, ...]:
    """Draw ``clients_per_round`` of the ready clients, or all if no number is set. Return them in client order."""
    wanted = spec.participation.clients_per_round
    if wanted is None or wanted >= len(ready):
        return tuple(ready)
    chosen = random.Random(derive_seed(spec.seed, "draw", round_number, attempt)).sample(range(len(ready)), wanted)
    return tuple(ready[index] for index in sorted(chosen))


def qualified_clients(spec: FederationSpec, answers: Sequence[ResourceAnswer]) -> tuple[str, ...]:
    """Return the clients under ``max_load``; with ``check_load`` off, every client that answered."""
    rule = spec.participation
    return tuple(answer.client for answer in answers if not rule.check_load or answer.load < rule.max_load)


def pack_shards(sizes: dict[str, int], shards: int | None) -> tuple[tuple[str, ...], ...]:
    """Pack the clients into ``shards`` turns of about as many images each. Return the clients of each turn.

    Clients are placed in order of falling size, each in the turn with the fewest images so far. The turn with the most
    images comes first. Without ``shards``, each client has a turn of its own.
    """
    order = sorted(sizes, key=lambda client: -sizes[client])  # the sort is stable: equal sizes stay in client order
    if shards is None or shards >= len(order):
        return tuple((client,) for client in order)
    turns: list[list[str]] = [[] for _ in range(shards)]
    images = [(0, turn) for turn in range(shards)]  # a heap, whose first item is the turn with the fewest images
    for client in order:
        total, turn = images[0]
        turns[turn].append(client)
        heapq.heapreplace(images, (total + sizes[client], turn))
    ordered = sorted(images, key=lambda item: (-item[0], item[1]))
    return tuple(tuple(turns[turn]) for _, turn in ordered)


@task(
    name="check_client_resource",
    task_run_name="check_client_resource · round {round_number}",
    cache_policy=NO_CACHE,
    persist_result=False,
)
async def check_client_resource(
    federation: str, spec: FederationSpec, round_number: int, clients: Sequence[ClientInfo], model: WeightRef
) -> RoundPlan:
    """Return the round's plan: the stored one if this round was begun before, else a new one, which is stored.

    Raises:
        FedbenchError: in none of ``max_draws`` draws were enough clients under the load limit.
    """
    handles = current_handles()
    started = time.monotonic()
    handles.reporter.phase_started("check_client_resource", 0)
    plan = read_plan(handles, spec, round_number, clients, model)
    if plan is None:
        plan = await _new_plan(handles, federation, spec, round_number, clients, model)
        await asyncio.to_thread(
            handles.objects.put_json, handles.layout.plan(round_number), plan.model_dump(mode="json")
        )
    warn_of_majority(handles, spec, plan)
    handles.reporter.phase_finished("check_client_resource", time.monotonic() - started)
    return plan


def warn_of_majority(handles: Handles, spec: FederationSpec, plan: RoundPlan) -> None:
    """Log a warning about a client that holds more than half of the round's weight.

    The display gets the warning only in the first of successive rounds in which that client holds it.
    """
    held = majority(plan.weights or {})
    if held is None:
        return
    client, share = held
    counted = "objects" if spec.strategy.weighting == "objects" else "images"
    text = (
        f"round {plan.round}: warning: client {client} holds {share:.2%} of the weight, by its own count of its "
        f"training {counted}; participation.max_weight_share limits it"
    )
    log.warning("%s", text)
    before = handles.history[-1].plan if handles.history else None
    already = majority(before.weights or {}) if before is not None else None
    if already is None or already[0] != client:
        handles.reporter.message(text)


def read_plan(
    handles: Handles, spec: FederationSpec, round_number: int, clients: Sequence[ClientInfo], model: WeightRef
) -> RoundPlan | None:
    """Return the stored plan of an open round, or None if there is none that still applies.

    It applies when the global weights and all states are the same, its whole cohort is ready, and each client has as
    many training images as before: with another number of images a client could never answer it. A plan from before
    weights were fixed gets weights from ``wake_up``'s counts. A damaged plan is set aside.
    """
    key = handles.layout.plan(round_number)
    try:
        plan = find_whole(handles.objects, key, RoundPlan, RECORD_VERSION)
    except DamagedObject as error:
        kept = set_aside(handles.objects, handles.layout, [key])
        handles.reporter.message(f"{error}: round {round_number} is planned again; what was there is kept in {kept}")
        return None
    if plan is None:
        return None
    sizes = {info.client: info.train_size for info in clients}
    states = _states(handles, spec, plan.cohort)
    # The digest is not compared: a raised max_rounds changes it, but not this round.
    same = plan.model.sha256 == model.sha256 and set(plan.cohort) <= sizes.keys()
    same = same and all(sizes[client] == size for client, size in (plan.train_sizes or {}).items())
    same = same and (plan.server, plan.shared, plan.states) == (states["server"], states["shared"], states["states"])
    if not same:
        return None
    plan = plan.model_copy(update={"spec_digest": spec.digest})
    if plan.train_sizes is None or plan.weights is None:
        # The plan is from a version of fedbench that took the counts from the updates.
        counted = {client: sizes[client] for client in plan.cohort}
        plan = plan.model_copy(update={"train_sizes": counted, "weights": counted})
    return plan


def _counts(spec: FederationSpec, round_number: int, clients: Sequence[ClientInfo]) -> dict[str, int]:
    """Return what each client's update counts by, before any limit.

    Raises:
        FedbenchError: no client has an object, and the updates are weighted by objects.
    """
    match spec.strategy.weighting:
        case "uniform":
            return dict.fromkeys((info.client for info in clients), 1)
        case "objects":
            counts = {info.client: sum(info.class_counts.values()) for info in clients}
            if not any(counts.values()):
                names = ", ".join(counts)
                raise FedbenchError(
                    f"round {round_number}: strategy.weights objects: expected a training object, found none at "
                    f"clients {names}"
                )
            return counts
        case _:
            return {info.client: info.train_size for info in clients}


def _states(handles: Handles, spec: FederationSpec, cohort: Sequence[str]) -> dict[str, Any]:
    """Return the fields ``server``, ``shared`` and ``states`` of a plan: what the last round left."""
    last = handles.history[-1] if handles.history else None
    kept = {} if last is None else last.states
    return {
        "server": None if last is None else last.server,
        "shared": None if last is None else last.shared,
        "states": {client: kept[client] for client in cohort if client in kept}
        if strategy_class(spec).client_state
        else None,
    }


async def _new_plan(
    handles: Handles,
    federation: str,
    spec: FederationSpec,
    round_number: int,
    clients: Sequence[ClientInfo],
    model: WeightRef,
) -> RoundPlan:
    rule = spec.participation
    ready = [info.client for info in clients]
    draws: list[Draw] = []
    for attempt in range(1, rule.max_draws + 1):
        contacted = draw_clients(spec, ready, round_number, attempt)
        request = ResourceRequest(federation=federation, spec=spec, clients=contacted)
        replies = await hand_out(handles, request, deadline=rule.wake_up_deadline)  # ample: a load is read at once
        failures = tuple(failure for reply in replies for failure in reply.failures)
        report_failures(handles, failures)
        answers = tuple(answer for reply in replies for answer in reply.answers)
        qualified = qualified_clients(spec, answers)
        draws.append(
            Draw(attempt=attempt, contacted=contacted, answers=answers, qualified=qualified, failures=failures)
        )
        if len(qualified) > rule.min_qualified * len(contacted):
            break
        handles.reporter.message(
            f"round {round_number}: {len(qualified)} of {len(contacted)} drawn clients are under load {rule.max_load}"
        )
        if attempt < rule.max_draws:
            await asyncio.sleep(min(attempt, MAX_WAIT_SECONDS))
    else:
        raise FedbenchError(
            f"round {round_number}: check_client_resource: in {rule.max_draws} draws never more than "
            f"{rule.min_qualified:.0%} of the clients were under participation.max_load ({rule.max_load})"
        )
    chosen = set(qualified)
    sizes = {info.client: info.train_size for info in clients if info.client in chosen}
    counts = _counts(spec, round_number, [info for info in clients if info.client in chosen])
    try:
        weights = limited(counts, rule.max_weight_share)
    except ValueError as error:
        share = rule.max_weight_share
        raise FedbenchError(f"round {round_number}: participation.max_weight_share ({share}): {error}") from None
    return RoundPlan(
        federation=federation,
        round=round_number,
        spec_digest=spec.digest,
        model=model,
        draws=tuple(draws),
        cohort=tuple(sizes),
        shards=pack_shards(sizes, rule.shards),
        seeds={client: derive_seed(spec.seed, "turn", round_number, client) for client in sizes},
        learning_rate=learning_rate(spec.training.optimizer.lr, spec.training.schedule, round_number),
        partial_sums=rule.partial_sums,
        train_sizes=sizes,
        weights=weights,
        figures=strategy_class(spec).figures,
        means=len(strategy_class(spec).means),
        **_states(handles, spec, tuple(sizes)),
        created=datetime.now(UTC),
    )
