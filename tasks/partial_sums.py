"""Partial sums: one object for the clients of a turn in place of one for each (``participation.partial_sums``).

Stored is the clients' *mean*, weighted by their training images, as FedAvg's accumulator holds it: in float32, one
model's bytes a turn. Times the images, which the clients' records have, it is their sum. A sum in float64 would be
twice the bytes, for digits that the next global model, float32 as well, does not keep.

A partial sum counts whole or not at all. All its clients have a record that names it; when one of them is missing or
refused, it holds an update that must not count, and nobody can take that out again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from infra.store.layout import FederationLayout
from tasks.spec.records import RoundPlan, UpdateRecord


def weights_key(layout: FederationLayout, update: UpdateRecord, round_number: int) -> str:
    """Where the weights of ``update``, its client's own or a partial sum, must be in the store.

    A partial sum is named by the first client *in* it: sums without a common client then never share a name, not even
    when a client that failed in one turn is asked again in another.
    """
    if update.shard:
        return layout.partial_sum(round_number, update.shard[0])
    return layout.update_weights(round_number, update.client)


def shard_fault(update: UpdateRecord, plan: RoundPlan) -> str | None:
    """What is wrong with the clients that ``update`` says are in its weights; None when the plan asked for them."""
    if not plan.partial_sums:
        return None if update.shard is None else f"shard: expected none, found {', '.join(update.shard)}"
    turn = next((turn for turn in plan.shards if update.client in turn), ())
    shard = update.shard or ()
    if update.client in shard and len(set(shard)) == len(shard) and set(shard) <= set(turn):
        return None
    found = ", ".join(shard) or "none"
    return f"shard: expected clients of its turn ({', '.join(turn)}), itself among them, each once; found {found}"


def incomplete_sums(updates: Mapping[str, UpdateRecord], refused: Mapping[str, str]) -> dict[str, str]:
    """Of ``updates``, by client, those whose partial sum cannot be counted, each with the reason.

    refused: why other clients' updates do not count, as far as it is known.
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
    """The updates that share their weights, together; in the order of each one's first."""
    together: dict[str, list[UpdateRecord]] = {}
    for update in updates:
        together.setdefault(update.weights.key, []).append(update)
    return list(together.values())
