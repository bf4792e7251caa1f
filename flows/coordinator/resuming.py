"""Prepare ``fedbench resume``: put rounds aside, or discard stored updates, before the federation goes on.

Users need both after they have found a client that spoiled the federation. The federation then goes on from what is
left, as after a kill.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from flows.stored.runs import opened_store, put_best, read_history, read_spec
from flows.stored.states import states_of_clients, states_of_server
from infra.errors import StoreCorrupt
from infra.settings import Settings
from infra.store.flush import flush, flush_removal
from infra.store.holding import Subject, subject_held
from infra.store.layout import FederationLayout
from infra.store.leased import LeasedStore
from infra.store.objects import ObjectStore
from tasks.errors import SpecError
from tasks.replies import record_limit
from tasks.spec.base import RECORD_VERSION, parse
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import RoundPlan
from tasks.spec.records import RoundRecord

MOST_NAMED = 5  # missing states in a message


def prepare(
    settings: Settings,
    name: str,
    *,
    from_round: int | None,
    retrain: Sequence[str],
    say: Callable[[str], None] | None = None,
) -> tuple[FederationSpec, list[str]]:
    """Go back to ``from_round``, or discard the stored updates of the clients ``retrain``.

    say: called with a line when another process must be waited for.

    Returns the federation's specification, and a line for each change.

    Raises:
        SpecError: there is no such federation, round or client; or both changes are asked for.
        RunLocked: a process, on this machine or another, is running the federation.
        StoreUnavailable: the store failed midway; the same call completes the change.
    """
    if from_round is not None and retrain:
        raise SpecError("--from, --retrain: expected one of them, because no update of a round put aside is taken over")
    with opened_store(settings) as objects:
        spec = read_spec(objects, settings, name)
        layout = FederationLayout(settings.s3.prefix, name)
        what = "fedbench resume " + ("--retrain" if from_round is None else "--from")
        with subject_held(objects, settings, Subject.federation(settings, name), what, say) as lease:
            objects = LeasedStore(objects, lease)
            if from_round is not None:
                return spec, go_back(objects, layout, from_round)
            return spec, discard_updates(objects, layout, retrain)


def go_back(objects: ObjectStore, layout: FederationLayout, number: int) -> list[str]:
    """Put aside all rounds after ``number``, committed or not, so that the federation goes on from ``number``.

    Each round's objects are copied below ``superseded/`` before its marker is removed, the newest round first. So if
    this is interrupted, no round before a remaining one is missing, and nothing is lost.

    Returns a line for each change.

    Raises:
        SpecError: round ``number`` is not committed, or its global weights are not kept, or its record is damaged, or a
            state that the record names is missing.
        FedbenchError: a marker before it is missing.
    """
    keys = objects.list(layout.root)
    kept = [done for done in layout.committed_rounds(keys) if layout.global_weights(done) in keys]
    if number not in kept:
        known = ", ".join(map(str, kept)) or "none yet"
        raise SpecError(f"--from: expected a round whose global weights are kept ({known}), found {number}")
    history = read_history(objects, layout, last=number)
    size = keys[layout.global_weights(number)]
    if size != history[-1].model.bytes:
        raise SpecError(
            f"--from: {layout.global_weights(number)}: expected {history[-1].model.bytes} bytes, as the record of "
            f"round {number} says, found {size}"
        )
    _require_states(keys, history[-1])
    later = [begun for begun in layout.begun_rounds(keys) if begun > number]
    best = history[history[-1].decision.best_round]
    # First, because best.json may be older than the last record, as after a kill between the two, but never newer.
    put_best(objects, layout, best)
    if not later:
        return [f"{layout.federation}: nothing follows round {number}"]
    folder = max(layout.superseded_folders(keys), default=0) + 1
    objects.put_json(
        layout.superseded_record(folder),
        {"version": 1, "from": number, "rounds": later, "put_aside": datetime.now(UTC).isoformat()},
    )
    for begun in reversed(later):
        _put_aside(objects, layout, [key for key in keys if key.startswith(layout.round(begun))], begun, folder)
    lines = [
        f"{layout.federation}: goes on from round {number}; rounds put aside in {layout.superseded}{folder:04d}/: "
        + ", ".join(map(str, later))
    ]
    if layout.global_weights(best.round) not in keys:
        lines.append(
            f"{layout.federation}: round {best.round} is the best up to there, but its weights are no longer kept: "
            "there is no best model to register or use until a round is better"
        )
    return lines


def _require_states(there: Mapping[str, int], record: RoundRecord) -> None:
    """Check that the states from which a round after ``record`` starts are in the store, by their sizes.

    Raises:
        SpecError: some are not; the message names the first ones.
    """
    states = [*states_of_server(record), *states_of_clients(record)]
    faults = [f"{state.ref.key}: {fault}" for state in states if (fault := state.fault(there)) is not None]
    if faults:
        more = f"; and {len(faults) - MOST_NAMED} more" if len(faults) > MOST_NAMED else ""
        raise SpecError(
            f"--from: round {record.round} cannot be gone on from, because the store has not all states that its "
            f"record names: {'; '.join(faults[:MOST_NAMED])}{more}; restore them from a copy, or name another round"
        )


def _put_aside(objects: ObjectStore, layout: FederationLayout, keys: Sequence[str], number: int, folder: int) -> None:
    copies = {key: layout.put_aside(key, folder) for key in keys}
    for key, copy in copies.items():
        objects.copy(key, copy)
    flush(objects, [layout.superseded_record(folder), *copies.values()])
    objects.delete([layout.marker(number)])
    objects.delete([key for key in keys if key != layout.marker(number)])


def discard_updates(objects: ObjectStore, layout: FederationLayout, clients: Sequence[str]) -> list[str]:
    """Remove the updates and new states of ``clients`` in the open round.

    A partial sum goes with the updates of all its clients.

    Returns a line for each client.

    Raises:
        SpecError: no round is open, or a client is not in its cohort.
    """
    committed = layout.committed_rounds(objects.list(layout.rounds))
    number = committed[-1] + 1 if committed else 0
    document = objects.get_json(layout.plan(number))
    if document is None:
        raise SpecError(f"--retrain: expected a federation with an open round, found none after round {number - 1}")
    plan = parse(RoundPlan, document, source=layout.plan(number), newest=RECORD_VERSION)
    for client in clients:
        if client not in plan.cohort:
            raise SpecError(
                f"--retrain: expected a client of round {number} ({', '.join(plan.cohort)}), found {client}"
            )
    return [_discard(objects, layout, plan, client) for client in clients]


def _discard(objects: ObjectStore, layout: FederationLayout, plan: RoundPlan, client: str) -> str:
    there = objects.list(layout.round(plan.round))
    key = layout.update_record(plan.round, client)
    members = _together(_record(objects, key, plan) if key in there else None, plan, client)
    records = [layout.update_record(plan.round, member) for member in members]
    weights = [layout.update_weights(plan.round, client), layout.partial_sum(plan.round, members[0])]
    weights += [layout.client_state(plan.round, member) for member in members]
    # Records first: a record without its weights would look like a store that has lost them.
    for keys in (records, weights):
        found = [key for key in keys if key in there]
        if found:
            objects.delete(found)
            flush_removal(objects, found)  # else a power failure could bring an update back, and it would count
    if key not in there:
        return f"client {client}: no update of round {plan.round} is stored"
    others = [member for member in members if member != client]
    also = f", with those of {', '.join(others)} in the same partial sum" if others else ""
    return f"client {client}: its update of round {plan.round} is discarded{also}"


def _record(objects: ObjectStore, key: str, plan: RoundPlan) -> Any:
    """Return a client's record, unchecked; None if it cannot be read: even then it is to be removed."""
    try:
        return objects.get_json(key, record_limit(plan))
    except StoreCorrupt:
        return None


def _together(document: Any, plan: RoundPlan, client: str) -> list[str]:
    """Return the clients whose updates are removed together: ``client``, and those of its turn in its partial sum."""
    shard = document.get("shard") if isinstance(document, dict) else None
    turn = next((turn for turn in plan.shards if client in turn), ())
    members = [member for member in shard if member in turn] if isinstance(shard, list) else []
    return members if client in members else [client]
