"""What a federation does first when it goes on: damaged objects are derived again, and what was there is kept.

The last global weights or their marker may be damaged, as after a power failure. Then the round before is whole, and
the last one is trained again: a round follows from its plan and the weights before it, so to the same bits. Records of
earlier rounds can be derived from nothing; such damage ends the run.
"""

from __future__ import annotations

from flows.stored.runs import Damage, put_best, readable_history, stopped
from infra.errors import StoreCorrupt
from infra.store.flush import flush
from tasks.errors import FedbenchError
from tasks.handles import Handles
from tasks.spec.federation import FederationSpec
from tasks.spec.records import RoundRecord
from tasks.whole import set_aside


def mended_history(handles: Handles, spec: FederationSpec) -> list[RoundRecord]:
    """Records of the committed rounds, from 0, of which the last is whole and on the disk. The lease is held.

    Says in one line which object was damaged, and which round is done again.

    Raises:
        FedbenchError: what is damaged cannot be derived again; names the object.
    """
    found = readable_history(handles.objects, handles.layout)
    records, damage = found.records, found.damage
    if damage is not None and damage.round < found.newest:
        raise FedbenchError(
            f"{damage.key}: {damage.reason}; rounds up to {found.newest} follow it, so it cannot be derived again: put "
            f"it back from a copy, or train from an earlier round: fedbench resume {handles.layout.federation} --from "
            "ROUND"
        )
    if damage is None and records and _is_needed(records, spec):
        damage = _damaged_weights(handles, records[-1])
    if damage is not None:
        records = _fall_back(handles, records[: damage.round], damage, found.records[damage.round :])
    _mend_best(handles, records)
    if records:  # the process that wrote them may have died before it flushed them
        flush(handles.objects, _kept(handles, records[-1]))
    return records


def _is_needed(records: list[RoundRecord], spec: FederationSpec) -> bool:
    """Whether anything is still done with the last round's weights."""
    return not stopped(spec, records) or records[-1].decision.best_round == records[-1].round


def _kept(handles: Handles, record: RoundRecord) -> list[str]:
    there = handles.objects.list(handles.layout.round(record.round))
    return [key for key in (record.model.key, handles.layout.marker(record.round)) if key in there]


def _damaged_weights(handles: Handles, record: RoundRecord) -> Damage | None:
    """What is wrong with a round's global weights in the store. If this machine has them, they are put there again."""
    model = record.model
    fault = handles.weights.fault(model.key, model.sha256, model.bytes)
    if fault is None:
        return None
    reason = f"damaged: {fault.removeprefix(f'{model.key}: ')}"
    if handles.weights.has(model.sha256, model.bytes):
        kept = set_aside(handles.objects, handles.layout, [model.key])
        if handles.weights.put_back(model.key, model.sha256, model.bytes):
            handles.reporter.message(
                f"{model.key}: {reason}: put there again from this machine's cache; what was there is kept in {kept}"
            )
            return None
    return Damage(record.round, model.key, reason)


def _fall_back(
    handles: Handles, records: list[RoundRecord], damage: Damage, damaged: list[RoundRecord]
) -> list[RoundRecord]:
    """Set the damaged last round aside, if the one before is whole. ``damaged``: its record, if that can be read."""
    objects, layout, number = handles.objects, handles.layout, damage.round
    before = _damaged_weights(handles, records[-1]) if records else None
    if before is not None:
        raise FedbenchError(
            f"{damage.key}: {damage.reason}; and {before.key}, from which round {number} is trained: {before.reason}; "
            f"put one of them back from a copy, or train from an earlier round: fedbench resume {layout.federation} "
            "--from ROUND"
        )
    keys = [layout.marker(number), layout.global_weights(number)]
    kept = set_aside(objects, layout, keys)
    if damaged and damaged[0].plan is not None:
        objects.put_json(layout.plan(number), damaged[0].plan.model_dump(mode="json"))
    objects.delete(keys[:1])
    objects.delete(keys[1:])
    how = f"round {number} is done again from round {number - 1}" if number else "round 0 is done again"
    handles.reporter.message(f"{damage.key}: {damage.reason}: {how}; what was there is kept in {kept}")
    handles.went_back(records)
    return records


def _mend_best(handles: Handles, records: list[RoundRecord]) -> None:
    """Have ``best.json`` as the last record says: it may be older, after a kill between the two, or damaged."""
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
        handles.reporter.message(f"{error}: written again; what was there is kept in {kept}")
    put_best(objects, layout, best)
