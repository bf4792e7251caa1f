"""Mend damaged objects when a federation goes on: compute them again, and keep the damaged ones.

A power failure may damage the last round's global weights, its marker, or the states that a federated method wrote in
it. Then the round before is intact, and the last round is trained again. A round is determined by its plan, and by the
weights and states before it, so the result has the same bits. Records and states of earlier rounds cannot be computed
again, so such damage ends the run.
"""

from __future__ import annotations

from flows.stored.runs import Damage, put_best, readable_history, stopped
from flows.stored.states import states_of_clients, states_of_server
from infra.errors import StoreCorrupt
from infra.store.flush import flush
from tasks.errors import FedbenchError
from tasks.handles import Handles
from tasks.spec.federation import FederationSpec
from tasks.spec.plans import WeightRef
from tasks.spec.records import RoundRecord
from tasks.whole import set_aside


def mended_history(handles: Handles, spec: FederationSpec) -> list[RoundRecord]:
    """Mend what is damaged, and return the records of the committed rounds, from 0. The last round is on the disk.

    The caller holds the lease. Each mended object is reported in one line, with the round that is done again.

    Raises:
        FedbenchError: a damaged object cannot be mended; the message names it.
    """
    found = readable_history(handles.objects, handles.layout)
    records, damage = found.records, found.damage
    if damage is not None and damage.round < found.newest:
        raise FedbenchError(
            f"{damage.key}: {damage.reason}; rounds up to {found.newest} follow it, so it cannot be made again; "
            f"restore it from a copy, or go on from an earlier round: fedbench resume {handles.layout.federation} "
            "--from ROUND"
        )
    if damage is None and records and _is_needed(records, spec):
        damage = _damaged_weights(handles, records[-1].round, records[-1].model)
    if damage is None and records and not stopped(spec, records):
        damage = _damaged_states(handles, records[-1])
        if damage is not None and damage.round < records[-1].round:
            raise FedbenchError(_how_to_replace(handles, damage, records[-1].round))
    if damage is not None:
        records = _fall_back(handles, records[: damage.round], damage, found.records[damage.round :])
    _mend_best(handles, records)
    if records:  # the process that wrote the last round may have died before it flushed it
        flush(handles.objects, _kept(handles, records[-1]))
    return records


def _is_needed(records: list[RoundRecord], spec: FederationSpec) -> bool:
    """Return whether the last round's weights are still needed: by another round, or as the best model."""
    return not stopped(spec, records) or records[-1].decision.best_round == records[-1].round


def _kept(handles: Handles, record: RoundRecord) -> list[str]:
    there = handles.objects.list(handles.layout.round(record.round))
    return [key for key in (record.model.key, handles.layout.marker(record.round)) if key in there]


def _damaged_weights(handles: Handles, number: int, ref: WeightRef) -> Damage | None:
    """Return the damage in the store of an object of round ``number``, its weights or a state; None if there is none.

    If this machine's cache has the content, put it into the store again, and return None.
    """
    fault = handles.weights.fault(ref.key, ref.sha256, ref.bytes)
    if fault is None:
        return None
    return _restored(handles, Damage(number, ref.key, f"damaged: {fault.removeprefix(f'{ref.key}: ')}"), ref)


def _restored(handles: Handles, damage: Damage, ref: WeightRef) -> Damage | None:
    """Write a damaged object again, if this machine's cache has its content, and return None; else ``damage``."""
    if handles.weights.has(ref.sha256, ref.bytes):
        kept = set_aside(handles.objects, handles.layout, [ref.key])
        if handles.weights.put_back(ref.key, ref.sha256, ref.bytes):
            flush(handles.objects, [ref.key])
            handles.reporter.message(
                f"{ref.key}: {damage.reason}: restored from this machine's cache; any damaged object is kept in {kept}"
            )
            return None
    return damage


def _damaged_states(handles: Handles, record: RoundRecord) -> Damage | None:
    """Return the damage of a state that the next round starts from; None if there is none. Restore what the cache has.

    If several are damaged, it is the one from the earliest round. The states of clients are compared by size, because
    there may be many; the turn that reads one checks its content.
    """
    damages = [_damaged_weights(handles, record.round, state.ref) for state in states_of_server(record)]
    there = handles.objects.list(handles.layout.rounds) if record.states else {}
    for state in states_of_clients(record):
        fault = state.fault(there)
        if fault is not None:
            damage = Damage(handles.layout.round_of(state.ref.key), state.ref.key, f"damaged: {fault}")
            damages.append(_restored(handles, damage, state.ref))
    return min((damage for damage in damages if damage is not None), key=lambda damage: damage.round, default=None)


def _how_to_replace(handles: Handles, damage: Damage, last: int) -> str:
    """Return the message about the damaged state of a client that was not counted after round ``damage.round``."""
    layout = handles.layout
    there = handles.objects.list(layout.rounds)
    before = [number for number in range(damage.round) if layout.global_weights(number) in there]
    way = f"fedbench resume {layout.federation} --from {before[-1]}" if before else "fedbench run with another --name"
    how = "go on from an earlier round" if before else "begin anew, because no earlier round's weights are kept"
    return (
        f"{damage.key}: {damage.reason}; rounds up to {last} follow it, so it cannot be made again; restore it from a "
        f"copy, or {how}: {way}"
    )


def _fall_back(
    handles: Handles, records: list[RoundRecord], damage: Damage, damaged: list[RoundRecord]
) -> list[RoundRecord]:
    """Set the damaged last round aside, if weights and states of the round before are intact. Return ``records``.

    records: of the rounds before. damaged: the record of the last round, or nothing if it cannot be read.

    Raises:
        FedbenchError: the weights or states of the round before are damaged too.
    """
    objects, layout, number = handles.objects, handles.layout, damage.round
    before = None
    if records:
        before = _damaged_weights(handles, records[-1].round, records[-1].model)
        before = before or _damaged_states(handles, records[-1])
    if before is not None:
        raise FedbenchError(
            f"{damage.key}: {damage.reason}; and {before.key}, from which round {number} is trained: {before.reason}; "
            f"restore one of them from a copy, or go on from an earlier round: fedbench resume {layout.federation} "
            "--from ROUND"
        )
    keys = [layout.marker(number), layout.global_weights(number)]
    # States too: a stored update would be taken over with a state of the right size, whatever its content is.
    keys += [key for key in objects.list(layout.round(number)) if layout.is_state(key)]
    kept = set_aside(objects, layout, keys)
    if damaged and damaged[0].plan is not None:
        objects.put_json(layout.plan(number), damaged[0].plan.model_dump(mode="json"))
    objects.delete(keys[:1])
    objects.delete(keys[1:])
    how = f"round {number} is done again from round {number - 1}" if number else "round 0 is done again"
    handles.reporter.message(f"{damage.key}: {damage.reason}: {how}; the old objects are kept in {kept}")
    handles.went_back(records)
    return records


def _mend_best(handles: Handles, records: list[RoundRecord]) -> None:
    """Write ``best.json`` again unless it agrees with the last record.

    It may be damaged. Or it is older than the record, because the process was killed between writing the two.
    """
    objects, layout = handles.objects, handles.layout
    if not records:
        return
    best = records[records[-1].decision.best_round]
    try:
        document = objects.get_json(layout.best)
        weights = document.get("weights") if isinstance(document, dict) else None
        if weights == best.model.model_dump(mode="json"):
            return
    except StoreCorrupt as error:
        kept = set_aside(objects, layout, [layout.best])
        handles.reporter.message(f"{error}: written again; the damaged one is kept in {kept}")
    put_best(objects, layout, best)
