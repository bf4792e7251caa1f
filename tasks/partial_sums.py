"""Partial sums: one object for all clients of a turn instead of one for each (``participation.partial_sums``).

The object holds the clients' *mean*, weighted by their training images, as FedAvg's accumulator holds it: in float32,
one model's bytes for each turn. Their sum is the mean times the number of images, which the clients' records name. A
sum in float64 would take twice the bytes, for digits that the next global model, which is float32 too, does not keep.

A partial sum counts whole or not at all. Each of its clients has a record that names it. If one of these records is
missing or refused, the sum holds an update that must not count, and that update cannot be taken out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infra.store.layout import FederationLayout
from tasks.spec.plans import RoundPlan, UpdateRecord


def weights_key(layout: FederationLayout, update: UpdateRecord, round_number: int) -> str:
    """Return the key that the weights of ``update`` must have, whether they are its client's own or a partial sum.

    A partial sum is named after the first client *in* it. So two sums without a common client never share a name, even
    if a client that failed in one turn is asked again in another.
    """
    if update.shard:
        return layout.partial_sum(round_number, update.shard[0])
    return layout.update_weights(round_number, update.client)


def shard_fault(update: UpdateRecord, plan: RoundPlan) -> str | None:
    """Return what is wrong with the clients that ``update`` lists in its ``shard``; None when the plan asked for them.

    Without partial sums, ``update`` must not have a shard.
    """
    if not plan.partial_sums:
        return None if update.shard is None else f"shard: expected none, found {', '.join(update.shard)}"
    turn = next((turn for turn in plan.shards if update.client in turn), ())
    shard = update.shard or ()
    if update.client in shard and len(set(shard)) == len(shard) and set(shard) <= set(turn):
        return None
    found = ", ".join(shard) or "none"
    return f"shard: expected clients of its turn ({', '.join(turn)}), itself among them, each once; found {found}"


def incomplete_sums(updates: Mapping[str, UpdateRecord], refused: Mapping[str, str]) -> dict[str, str]:
    """Return the clients of ``updates`` whose partial sum cannot be counted, each with the reason.

    refused: why other clients' updates do not count, by client, where this is known.
    """
    reasons = {}
    for update in updates.values():
        for member in update.shard or ():
            other = updates.get(member)
            if other is None or (other.weights, other.shard) != (update.weights, update.shard):
                why = refused.get(member, "no record of that client names this sum")
                reasons[update.client] = f"its partial sum also holds client {member}, who does not count: {why}"
                break
    return reasons


def by_object(updates: Iterable[UpdateRecord]) -> list[list[UpdateRecord]]:
    """Group the updates by the object of their weights, in the order in which each object first occurs."""
    together: dict[str, list[UpdateRecord]] = {}
    for update in updates:
        together.setdefault(update.weights.key, []).append(update)
    return list(together.values())
