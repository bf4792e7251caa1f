"""Commit a round, and remove what the store need not keep after it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from flows.stored.runs import put_best
from infra.store.flush import flush
from tasks.handles import Handles
from tasks.spec.records import RoundRecord


def commit(handles: Handles, record: RoundRecord) -> None:
    """Write the commit marker, then ``best.json`` if this round is the best. Each is on the disk before the next.

    Raises:
        RunLocked: another coordinator holds the federation by now, or has committed this round.
    """
    objects, layout = handles.objects, handles.layout
    marker, document = layout.marker(record.round), record.model_dump(mode="json")
    flush(objects, [ref.key for ref in (record.model, *record.state_refs)])
    if handles.lease is None:
        objects.put_json(marker, document)
    else:
        handles.lease.commit(marker, document)
    flush(objects, [marker])
    if record.decision.best_round == record.round:
        put_best(objects, layout, record)


def clear_up(handles: Handles, record: RoundRecord) -> None:
    """Remove what retention does not keep from the store, and from this machine's cache what nobody reads again.

    These are a committed round's updates, and the states of the round that is no longer among the last.
    """
    apply_retention(handles, record)
    handles.weights.forget({update.weights.sha256 for update in record.updates} - {record.model.sha256})
    left = [past for past in handles.history if past.round == record.round - handles.settings.keep_globals]
    handles.weights.forget(_states(left, "sha256") - _states(_kept(handles, record), "sha256"))


def _kept(handles: Handles, record: RoundRecord) -> list[RoundRecord]:
    """Return the records of the best round and the last ones. record: of the newest round."""
    first = record.round - handles.settings.keep_globals + 1
    records = [*(past for past in handles.history if past.round < record.round), record]
    return [past for past in records if past.round >= first or past.round == record.decision.best_round]


def _states(records: Sequence[RoundRecord], field: Literal["key", "sha256"]) -> set[str]:
    """Return the keys, or the digests, of the states that ``records`` name."""
    return {getattr(ref, field) for record in records for ref in record.state_refs}


def apply_retention(handles: Handles, record: RoundRecord) -> None:
    """Remove the newest round's updates and evaluation parts, and global weights neither best nor among the last.

    States and detections go with the global weights: those stay that a round with kept weights names or has. The
    settings ``keep_updates`` and ``keep_globals`` say what stays. record: of the newest round.
    """
    layout, settings, newest = handles.layout, handles.settings, record.round
    keys = list(handles.objects.list(layout.evaluations(newest)))
    if not settings.keep_updates:
        keys += handles.objects.list(layout.updates(newest))
    keep = {record.decision.best_round, *range(newest - settings.keep_globals + 1, newest + 1)}
    old = [number for number in range(newest + 1) if number not in keep]
    globals_ = {key for number in old for key in (layout.global_weights(number), layout.detections(number))}
    states = _states(_kept(handles, record), "key")
    for key in handles.objects.list(layout.rounds):
        # A state may be the initial global model (Ditto's first one).
        if (key in globals_ or layout.is_state(key)) and key not in states:
            keys.append(key)
    if keys:
        handles.objects.delete(keys)
